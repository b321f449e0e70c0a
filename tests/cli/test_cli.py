"""The command line: what it prints, what it draws, and how it refuses."""
import os
import subprocess
import sys

import pytest
from commands import refused

from timm_stn import cli
from timm_stn.cli.common import Refused, attempt


def test_refuses_other_commands(capsys):
    assert 'invalid choice' in refused(capsys, 'shew')
    assert refused(capsys, 'demo', 'x').startswith('timm-stn demo: error: unrecognized arguments: x')


def test_alone_it_prints_its_help(capsys):
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith('usage: timm-stn') and '\n    demo ' in captured.err


@pytest.mark.parametrize('command', [['demo'], ['show', 'a.png', '--model', 'stn_test_resnet', '--no-pretrained']])
def test_an_output_that_cannot_be_written_is_refused_at_once(photos, capsys, monkeypatch, command):
    def make(*args, **kwargs):
        raise AssertionError('a model is made')
    monkeypatch.setattr('timm.create_model', make)
    monkeypatch.chdir(photos)
    (photos / 'folder.png').mkdir()
    for output, why in (('a.png/new/b.png', 'Not a directory'), ('folder.png', 'Is a directory'), ('/proc/b.png', '')):
        assert f"argument --output: cannot write '{output}': {why}" in refused(capsys, *command, '--output', output)
    assert 'takes the name of a picture' in refused(capsys, *command, '--output', 'look')
    assert sorted(path.name for path in photos.iterdir()) == ['a.png', 'b.jpg', 'folder.png', 'more', 'notes.txt']


def test_names_without_letters_on_the_terminal(tmp_path):
    env = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'TIMM_STN_DATA': ''}
    argv = [sys.executable, '-m', 'timm_stn', 'demo', '--count', '1', '--output', str(tmp_path / 'ä ß' / 'ü.png')]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and r'\xe4 \xdf/\xfc.png: 1 of 1 right' in done.stdout, done.stderr
    assert (tmp_path / 'ä ß' / 'ü.png').is_file()


def test_an_error_of_another_library_is_one_short_line(monkeypatch):
    def fail(error):
        raise error

    with pytest.raises(Refused, match=r'^argument --x: RuntimeError: why\. Try y$'):
        attempt('--x', fail, RuntimeError('why'), hint='Try y')
    with pytest.raises(Refused, match='characters') as refusal:
        attempt('--x', fail, RuntimeError('k' * 100_000))
    assert len(str(refusal.value)) < 3000
    monkeypatch.setenv('HF_TOKEN', 'hf_ümlaut')
    with pytest.raises(Refused, match='^argument --x: HF_TOKEN must be one word of ASCII'):
        attempt('--x', str.encode, 'hf_ümlaut', 'ascii')


def test_as_a_command():
    done = subprocess.run([sys.executable, '-m', 'timm_stn.cli', '--version'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.startswith('timm-stn ')
