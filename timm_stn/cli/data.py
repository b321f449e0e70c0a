"""`timm-stn data`: a data set's published archives become the folders that the other commands, and timm, read."""
import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.archives import HOMES, InTheWay, Unpacked, WrongSource, unpack_cub, unpack_gtsrb, unpack_svhn
from ..whole_file import place_of_folder
from .common import Refused, quiet_argument

__all__ = ['data', 'data_arguments']

MAKERS: dict[str, Callable[..., list[Unpacked]]] = {
    'cub': lambda *args: [unpack_cub(*args)], 'gtsrb': lambda *args: [unpack_gtsrb(*args)], 'svhn': unpack_svhn}
NEXT = {  # what to run then, with the folder
    'cub': ("next (downloads timm's weights):",
            'timm-stn show {out}/test --boxes {out}/test-boxes.csv --model resnet50 --as saliency:2 --count 8',
            'scripts/train_cub.sh {out} OUTPUT'),
    'gtsrb': ('next:', 'timm-stn eval stn_gtsrb --data {out}',),
    'svhn': ('next:',
             'python scripts/train/train_task.py --set SVHN64 --model stn_svhn_cnn --data {out} --output OUTPUT',),
}


def data_arguments(add: Callable[..., Any]) -> None:
    add('set', choices=list(HOMES), help='; '.join(  # a help breaks addresses into lines
        f'{key}: {home.title}, {" ".join(home.archives)}' for key, home in HOMES.items()) + '; addresses: docs/data.md')
    add('--source', nargs='+', required=True, metavar='FILE',
        help='the archives, as published; or a folder where they are unpacked (of svhn, any of the three)')
    add('--out', required=True, metavar='DIR', type=place_of_folder, help='the folder to fill, which is made')
    add('--subset', action='store_true', help='accept other counts than those of the whole set')
    quiet_argument(add)


def data(args: argparse.Namespace) -> int:
    home = HOMES[args.set]
    try:
        done = MAKERS[args.set](args.source, args.out, args.subset)
    except WrongSource as error:
        raise Refused(f'argument --source: {error}; {home.title} {home.accepted}') from error
    except InTheWay as error:
        raise Refused(f'argument --out: {error}') from error
    except OSError as error:
        raise Refused(f'argument --out: cannot write {str(error.filename or args.out)!r}: {error.strerror or error}; '
                      'run it again, and it goes on') from error
    for unpacked in done:
        counts = ', '.join(f'{count:,} {what}' for what, count in unpacked.counts.items())
        where = ', '.join(str(unpacked.out / name) for name in unpacked.names)
        print(f'{where}: {counts}{" (there already)" if unpacked.was_there else ""}')
    heading, *commands = NEXT[args.set]
    print(heading)
    for command in commands:
        print(f'    {command.format(out=shlex.quote(str(Path(args.out))))}')
    return 0
