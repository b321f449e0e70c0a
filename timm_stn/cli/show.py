"""`timm-stn show`: draws where transformers of models look in images."""
import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..view.boxes import read_boxes
from ..view.contact_sheet import card_of, page_of
from ..view.dependence import tell
from ..view.draw import save_picture
from ..view.gallery import Files, Trouble, Truths, Viewed, sights
from ..view.images import BadImage, in_turn, natural
from ..view.masks import find_masks
from ..view.rows import picture_of_rows, told_of
from ..whole_file import check_place, write_text
from .common import Refused, attempt, check_output, positive, quiet_argument, refusal
from .files import image_files
from .lines import Said, count_of, said_of
from .over_time import OUTPUT, over_time
from .several import load_viewed, several_arguments, without_images

__all__ = ['show', 'show_arguments']

NAMED = 20  # files that are named of those that cannot be read
PICTURE, PAGE = 24, 1000  # images, at most, where --count does not say how many
ENDS = ('.html', '.htm')  # of pages

T = TypeVar('T')


def show_arguments(add: Callable[..., Any]) -> None:
    add('images', nargs='*', metavar='IMAGE',
        help='files, or folders of them; of folders of classes, one image of each class, then a second, ...')
    several_arguments(add)
    add('--stage', help="stage of the transformer to show, as in stn_stages (default: 'input' if there is one)")
    add('--labels', metavar='FILE',
        help='names of all classes, one per line (default: those of the model, else the folders, if as many as '
             'classes)')
    add('--grid', action='store_true', help='draw the lines of the sampling grid, too, bent as they are')
    add('--boxes', metavar='FILE',
        help='true boxes to draw: a CSV file with columns file,x1,y1,x2,y2, in pixels of the upright image')
    add('--masks', metavar='FOLDER',
        help='true masks to draw, pictures that are named as the images and are not zero where the object is')
    add('--count', type=positive, help=f'largest number of images (default: {PICTURE}, of a page {PAGE})')
    add('--over-time', action='store_true',
        help='IMAGE is the folder of a run of `timm-stn train ... --stn-log N`: an animation of its pictures')
    add('--output', metavar='FILE',
        help='a picture; or a page of many images that can be sorted, if it ends in .html '
             f'(default: look.png; {OUTPUT} with --over-time)')
    quiet_argument(add)


def show(args: argparse.Namespace) -> int:
    if args.over_time:
        return over_time(args)
    args.output = 'look.png' if args.output is None else args.output
    is_page = _is_page(args.output)
    args.model, behind = without_images(args.model or [])
    given = args.images + behind
    if not given:
        raise Refused('argument IMAGE: it takes files, or folders of them')
    lost: list[tuple[Path, str]] = []
    files = image_files(given, Path(args.output), lost)
    truths, names = _truths(args), _read_labels(args.labels) if args.labels else []
    labels, count = [file.label for file in files], args.count or (PAGE if is_page else PICTURE)
    viewed = load_viewed(args, sorted({label for label in labels if label}, key=natural), names)
    order = sorted(in_turn(labels, count), key=lambda i: not files[i].named)
    trouble = Trouble()
    looks = sights(viewed, Files([file.path for file in files], labels), order, count, truths, trouble)
    rows: dict[int, Any] = {}
    said: dict[int, Said] = {}
    told: list[str] = []
    for i, row in _refusing(viewed, looks):
        said[i] = said_of(files[i].path, bool(labels[i]), viewed, row)
        told = told_of(row, viewed, trouble.met | {'grid'} if args.grid else trouble.met)
        rows[i] = card_of(str(files[i].path), row, viewed, args.grid) if is_page else row
    drawn, lines = [rows[i] for i in sorted(rows)], [said[i] for i in sorted(rows)]
    counts = count_of(viewed, lines, len(lost) + len(trouble.bad), len(files) - len(rows) - len(trouble.bad))
    if is_page:
        page = page_of(drawn, ', '.join(v.name for v in viewed), [counts, *told])
        attempt(f'--output {args.output}', write_text, Path(args.output), page)
    else:
        attempt(f'--output {args.output}', save_picture, picture_of_rows(drawn, viewed, told, args.grid), args.output)
    for one in lines:  # after the picture: they may go to `head`
        print(*one.lines, sep='\n')
    print(f'{args.output}: {counts}', file=sys.stderr)
    bad = [*(f'{folder}: {reason}' for folder, reason in lost), *trouble.bad]
    more = [f'skipped {len(bad) - NAMED} more'] if len(bad) > NAMED else []
    unmet = [f'--{kind} {vars(args)[kind]}: none is of these images' for kind in truths.asked() - trouble.met]
    advice = [f'{v.name}: {line}' if len(viewed) > 1 else line for v in viewed for line in v.witness.advice()]
    tell([*(f'skipped {line}' for line in bad[:NAMED]), *more, *unmet, *trouble.lines(), *advice])
    return 0


def _is_page(output: str) -> bool:
    """Whether the output is a page of HTML. It is refused if it could not be written."""
    if Path(output).suffix.lower() not in ENDS:
        check_output(output)
        return False
    try:
        check_place(Path(output))
    except OSError as error:
        raise Refused(f'argument --output: cannot write {output!r}: {error.strerror or error}') from error
    return True


def _truths(args: argparse.Namespace) -> Truths:
    return Truths(
        attempt(f'--boxes {args.boxes}', read_boxes, args.boxes) if args.boxes else {},
        attempt(f'--masks {args.masks}', find_masks, Path(args.masks)) if args.masks else {})


def _read_labels(path: str) -> list[str]:
    text = attempt(f'--labels {path}', Path(path).read_text, 'utf-8-sig')
    return [line.strip() for line in text.rstrip().splitlines()]


def _refusing(viewed: Sequence[Viewed], items: Iterable[T]) -> Iterator[T]:
    """The items; an error in making them is one of the images, or else of the models."""
    try:
        yield from items
    except BadImage as error:
        raise refusal('IMAGE', error) from error
    except Exception as error:
        raise refusal(f'--model {" ".join(v.name for v in viewed)}', error) from error
