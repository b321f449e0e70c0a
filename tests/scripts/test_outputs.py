"""Scripts that take long refuse an output that cannot be written before they begin."""
import importlib
import os
import subprocess
import sys

import pytest
from makers import ROOT

SCRIPTS = {
    'train_task': ['--output', '{}'],
    'sweep': ['--output', '{}/a'],
    'timm_tests': ['--output', '{}/a'],
    'benchmark_gpu': ['--device', 'cpu', '--output', '{}/a'],
    'measure_learning': ['--data', 'nowhere', '--output', '{}/a'],
    'gpu': ['run', '--device', 'cpu', '--smoke', '--output', '{}'],
}
SHELL = {
    'check/check_timm_scripts.sh': ['--markdown', '{}/a'],
    'train/train_birds.sh': ['.', '{}', '{}'],
    'train_cub.sh': ['.', '{}'],
}


@pytest.fixture
def wrong(tmp_path):
    """A file, where a folder is needed."""
    for name in ('train', 'test'):
        (tmp_path / name).mkdir()
    for name in ('file', 'train.py'):
        (tmp_path / name).touch()
    return tmp_path / 'file'


@pytest.mark.parametrize('name', SCRIPTS)
def test_python(wrong, monkeypatch, capsys, name):
    argv = [text.format(wrong) for text in SCRIPTS[name]]
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *argv])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    assert stop.value.code == 2
    assert f"argument --output: cannot write '{argv[-1]}': Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize('name', SHELL)
def test_shell(wrong, name):
    argv = [text.format(wrong) for text in SHELL[name]]
    env = {**os.environ, 'TIMM_SCRIPTS': str(wrong.parent), 'PYTHON': 'false'}
    done = subprocess.run(['bash', str(ROOT / 'scripts' / name), *argv], cwd=wrong.parent, env=env,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and argv[-1] in done.stderr
