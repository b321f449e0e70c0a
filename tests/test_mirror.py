"""Every module has a test file of its name, in the folder of tests that has the name of its own."""
from pathlib import Path

import timm_stn

PACKAGE, TESTS = Path(timm_stn.__file__).parent, Path(__file__).parent
ELSEWHERE = {  # module -> the file that tests it, and why it is not one of the module's name
    'modules/scripting': 'network/test_scripting.py',  # pytest wants file names that differ: both are tested together
    'cli/push': 'publish/test_push.py',  # the same; a push is asked for both ways there
    'network/timm_model': 'network/test_wrapper.py',  # types alone, which mypy checks
    'cli/common': 'cli/test_cli.py',  # how commands refuse
    'cli/over_time': 'view/test_over_time.py',  # file names differ: the command and its work are tested together
    'data/addition': 'data/test_tasks.py', 'data/volumes': 'data/test_tasks.py',  # as tasks
    # they share most of what timm demands
    **dict.fromkeys(('nets/base', 'nets/mnist', 'nets/signs', 'nets/svhn'), 'test_nets.py'),
}


def modules():
    """A folder within a folder (transforms, kernels) counts as one module."""
    parts = [path.relative_to(PACKAGE).with_suffix('').parts for path in PACKAGE.rglob('*.py')]
    named = {'/'.join(p[:2]) for p in parts if not p[-1].startswith('_') or len(p) > 2}
    return named - {'version'}


def test_every_module_has_a_test_file():
    where = {m: ELSEWHERE.get(m, '/'.join([*m.split('/')[:-1], f"test_{m.split('/')[-1]}.py"])) for m in modules()}
    assert len(where) > 40
    assert not {m: file for m, file in where.items() if not (TESTS / file).is_file()}


def test_exceptions_are_modules_and_names_of_test_files_differ():
    assert set(ELSEWHERE) <= modules()
    names = [path.name for path in TESTS.rglob('test_*.py')]
    assert len(names) == len(set(names))
