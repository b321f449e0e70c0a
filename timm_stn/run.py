"""Runs any script, unchanged, with the plugin loaded: ``python -m timm_stn.run SCRIPT [args...]``.

SCRIPT is a file, or the name of one of timm's scripts (``train.py``, ``train``) in the checkout of
huggingface/pytorch-image-models that the environment variable TIMM_SCRIPTS names. A script started as a plain file
imports the ``timm`` of its own checkout. Here, it and the processes it starts import the installed timm.
"""
import math
import os
import re
import runpy
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import timm

from ._ending import ends_quietly
from .names.registry import unknown
from .training_log.option import HELP, take_option
from .view.dependence import tell, witnessing

__all__ = ['ScriptNotFound', 'TIMM_SCRIPTS', 'clone_command', 'find_script', 'main', 'run_script']

TIMM_SCRIPTS = 'TIMM_SCRIPTS'
REPOSITORY = 'https://github.com/huggingface/pytorch-image-models'
USAGE = 'usage: python -m timm_stn.run SCRIPT [args...]'
NO_MODEL = re.compile(r'Unknown model \((.+)\)|Invalid pretrained tag \((.+)\) for (.+)\.')  # errors of timm
NOISE = dict(validate=1, benchmark=math.inf, onnx_export=math.inf)  # number of first forward passes on noise


class ScriptNotFound(FileNotFoundError):
    """There is no such script; the message says what to do."""


def main() -> None:
    """Run the script named on the command line. Its exit status and exceptions become those of the process."""
    with ends_quietly():
        _main()


def _main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(__doc__, USAGE, f'\n{HELP}', sep='\n', file=sys.stdout if len(sys.argv) > 1 else sys.stderr)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    try:
        script = find_script(sys.argv[1])
        log_every, args = take_option(sys.argv[2:])
    except (ScriptNotFound, ValueError) as error:
        print(f'timm_stn.run: error: {error}', file=sys.stderr)
        sys.exit(2)
    run_script(script, args, log_every)


def find_script(name: str, here: bool = True) -> Path:
    """The file of a script, from a path or the name of one of timm's scripts.

    Args:
        name: A path, or a bare name, with or without ``.py``.
        here: Look in the current folder before the checkout, as ``python NAME`` does.

    Raises:
        ScriptNotFound: There is none.
    """
    bare = os.sep not in name and '/' not in name
    if (here or not bare) and Path(name).is_file():
        return Path(name)
    if not bare:
        raise ScriptNotFound(f'there is no script {name!r}')
    file = name if name.endswith('.py') else f'{name}.py'
    checkout = os.environ.get(TIMM_SCRIPTS)
    if not checkout:
        where = f"there is no {file} here, and " if here else ''
        raise ScriptNotFound(
            f"{where}{TIMM_SCRIPTS} does not name a checkout with timm's scripts, which are not part of the installed "
            f'timm: {clone_command()} && export {TIMM_SCRIPTS}=$PWD/pytorch-image-models')
    path = Path(checkout).expanduser() / file
    if not path.is_file():
        raise ScriptNotFound(
            f'{TIMM_SCRIPTS}={checkout} has no {file}; it names a folder as this makes it: {clone_command()}')
    return path


def clone_command() -> str:
    """What fetches the scripts that belong to the installed timm."""
    released = re.fullmatch(r'[\d.]+', timm.__version__)
    return f'git clone {f"--branch v{timm.__version__} " if released else ""}{REPOSITORY}'


def run_script(script: Path, args: Sequence[str], log_every: int | None = None) -> None:
    """Run a script as ``__main__`` with these arguments, the plugin loaded and the installed timm kept.

    At its end, even by an exception, a warning names transformers that did the same for all images: see
    :mod:`timm_stn.view.dependence`. timm's error about an unknown name of a model gets the names nearest to it.

    Args:
        script: The file.
        args: Its arguments.
        log_every: Optimizer steps between lines of a log (:mod:`timm_stn.training_log`). Default: there is no log.
    """
    _leave_current_folder()
    _add_folder(script.resolve().parent)
    if os.environ.get('RANK', '0') == '0':
        print(_in_use(script), file=sys.stderr, flush=True)
    sys.argv[:] = [str(script), *args]
    with witnessing(NOISE.get(script.stem, 0)) as witness, _logging(log_every):
        try:
            runpy.run_path(str(script), run_name='__main__')
        except RuntimeError as error:
            _add_names(error)
            raise
        finally:
            tell(witness.advice())


def _logging(every: int | None) -> AbstractContextManager[None]:
    if every is None:
        return nullcontext()
    from .training_log.log import logging_training
    return logging_training(every)


def _add_names(error: RuntimeError) -> None:
    found = NO_MODEL.fullmatch(str(error))
    if found:
        arch, tag, tagged = found.groups()
        error.args = (f"{error}: {unknown(arch or f'{tagged}.{tag}')}",)


def _home() -> Path:
    """The folder that timm was imported from."""
    return Path(str(timm.__file__)).resolve().parents[1]


def _leave_current_folder() -> None:
    """Remove the current folder from sys.path. ``python -m`` puts it first; ``python SCRIPT`` does not.

    If the current folder is a checkout of timm, the plugin has already imported that timm instead of the installed one.
    Then restart the process.
    """
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    if spec is None or getattr(sys.flags, 'safe_path', False) or sys.path[:1] != [os.getcwd()]:
        return
    here = Path(sys.path.pop(0)).resolve()
    others = (finder.find_spec('timm', None) for finder in sys.meta_path)
    if _home() == here and here not in _resolved() and any(others):
        count = len(sys.argv) + 1  # -m, its module, and the arguments
        flags = sys.orig_argv[1:-count] if sys.orig_argv[-count] == '-m' else []
        code = f'import runpy, sys; del sys.path[0]; runpy.run_module({spec.name!r}, None, "__main__", True)'
        os.execv(sys.executable, [sys.executable, *flags, '-c', code, *sys.argv[1:]])


def _add_folder(folder: Path) -> None:
    """Put the script's folder on sys.path: first, unless it holds another timm; then after the timm in use.

    Processes that the script spawns inherit the path, but not the imported modules.
    """
    home = _home()
    if home == folder or not (folder / 'timm').is_dir():
        sys.path.insert(0, str(folder))
        return
    if home not in _resolved():  # for an editable install
        sys.path.append(str(home))
    sys.path.insert(_resolved().index(home) + 1, str(folder))


def _resolved() -> list[Path]:
    return [Path(entry).resolve() for entry in sys.path]


def _in_use(script: Path) -> str:
    text = f'timm-stn: {script} with timm {timm.__version__} of {_home()}'
    version = script.resolve().parent / 'timm' / 'version.py'
    if version.is_file() and version.resolve() != _home() / 'timm' / 'version.py':
        found = re.search(r'''__version__ = ['"](.*)['"]''', version.read_text())
        text += f', not the {found.group(1) if found else "one"} beside it'
    return text


if __name__ == '__main__':
    main()
