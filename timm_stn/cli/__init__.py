"""The command `timm-stn`. A wrong argument gives one line on stderr and exit status 2."""
import argparse
import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from .._ending import ends_quietly
from .._progress import quiet
from ..version import __version__
from . import app, data, diagnose, digits, doctor, models, push, show
from .common import Refused
from .scripts import SCRIPTS, run_timm_script

__all__ = ['main']


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())}\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Raises:
        SystemExit: With status 2 for wrong arguments, 0 for ``--help`` and ``--version``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    with ends_quietly():
        return _run(argv)


def _run(argv: list[str]) -> int:
    if not argv:
        _parser().print_help(sys.stderr)
        return 2
    if argv[0] in SCRIPTS:
        return _try(Parser(prog=f'timm-stn {argv[0]}'), partial(run_timm_script, *argv))
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f'unrecognized arguments: {" ".join(unknown)}')
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files that a terminal has no letters for
    with quiet(getattr(args, 'quiet', False)):
        return _try(args.parser, partial(args.run, args))


def _try(parser: Parser, run: Callable[[], int]) -> int:
    try:
        return run()
    except Refused as error:
        parser.error(str(error))


def _parser() -> Parser:
    parser = Parser(prog='timm-stn', description='Spatial transformers for timm: train, evaluate, show, publish.')
    parser.add_argument('--version', action='version', version=f'timm-stn {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, run, text, arguments in (
            ('demo', digits.demo, 'classify held-out digits and draw where the transformer looked; works offline',
             digits.demo_arguments),
            ('show', show.show, 'draw where a transformer of any stn_ model looks in images; a line of JSON for each',
             show.show_arguments),
            ('diagnose', diagnose.diagnose, 'say what is wrong with the transformers of a trained network, and which '
             'knob to turn: docs/diagnosis.md', diagnose.diagnose_arguments),
            ('app', app.app, 'a page in the browser: pictures, drawn digits, sliders that distort them, and where a '
             'network looks; docs/app.md', app.app_arguments),
            ('eval', digits.evaluate, 'test error on 10,000 distorted digits (your own images: timm-stn validate)',
             digits.eval_arguments),
            ('data', data.data, 'turn the published archives of CUB-200-2011, GTSRB or SVHN into folders to train on: '
             'docs/data.md', data.data_arguments),
            ('push', push.push, 'publish a trained network on the Hugging Face Hub: docs/hub.md', push.push_arguments),
            ('list', models.list_models, 'list model names', models.list_arguments),
            ('doctor', doctor.doctor, 'versions, devices, timm features and a self-check', lambda add: None),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.')
        command.set_defaults(run=run, parser=command)
        arguments(command.add_argument)
    for name in SCRIPTS:  # only for the list of commands: `main` runs the script
        commands.add_parser(name, help=f"timm's {name}.py, with all its arguments; TIMM_SCRIPTS names its folder")
    return parser
