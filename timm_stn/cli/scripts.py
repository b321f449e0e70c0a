"""timm's own scripts as commands: `timm-stn train` and the like."""
import argparse
import re
import textwrap
from pathlib import Path

from ..network.arguments import ARGUMENTS
from ..run import ScriptNotFound, find_script, run_script
from ..training_log.option import HELP as LOG_HELP
from ..training_log.option import take_option
from .common import Refused
from .models import check_known

__all__ = ['SCRIPTS', 'run_timm_script']

SCRIPTS = ('train', 'validate', 'inference', 'benchmark', 'onnx_export')  # in the folder TIMM_SCRIPTS
HELP = '''usage: timm-stn {name} [any argument of timm's {name}.py]

timm's {name}.py, unchanged, with the stn_ models. Its own arguments follow here once it is there: {missing}

arguments of stn_ models, as --model-kwargs KEY=VALUE ...:
{arguments}
{log}
The localization networks and examples: https://github.com/timm-stn/timm_stn#arguments'''


def run_timm_script(name: str, *args: str) -> int:
    """Run timm's script of this name; without a checkout of the scripts, ``--help`` tells what is known of it.

    For `train` there is one more option, which the script does not see.
    """
    log = f'\n{LOG_HELP}\n' if name == 'train' else ''
    try:
        script = find_script(name, here=False)
    except ScriptNotFound as error:
        if {'-h', '--help'}.isdisjoint(args):
            raise Refused(str(error)) from error
        print(HELP.format(name=name, missing=error, arguments='\n'.join(map(_help, ARGUMENTS)), log=log))
        return 0
    _check_model(args)
    if not log:
        run_script(script, args)
        return 0
    if not {'-h', '--help'}.isdisjoint(args):
        print(log.strip(), end='\n\n')  # before what the script prints at its end
    try:
        every, own = take_option(args)
    except ValueError as error:
        raise Refused(str(error)) from error
    run_script(script, own, every)
    return 0


def _help(name: str) -> str:
    shown = ARGUMENTS[name].metadata
    text = f"{shown['meaning']} (default: {shown['shown'] or repr(ARGUMENTS[name].default)})"
    text = re.sub(r'\[.*?\]\((.*?)\)', r'\1', text).replace('`', '').replace('networks below', 'networks')
    return textwrap.fill(text, 110, initial_indent=f'  {name:<22} ', subsequent_indent=25 * ' ')


def _check_model(args: tuple[str, ...]) -> None:
    """Refuse an unknown ``stn_`` name at once; of other names, and of modules that register some, the script knows."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument('-m', '--model', default='')
    parser.add_argument('--device-modules', nargs='+')
    try:
        given, _ = parser.parse_known_args(args)
    except argparse.ArgumentError:
        return  # the script says it better
    is_name = given.model.startswith('stn_') and not any(c in given.model for c in '*?[:')
    if is_name and not given.device_modules and not Path(given.model).is_file():
        check_known(given.model)
