"""The command line: what it prints, what it draws, and how it refuses."""
import subprocess
import sys

import pytest
from commands import refused

from timm_stn.cli.common import Refused, attempt


def test_refuses_other_commands(capsys):
    assert 'invalid choice' in refused(capsys, 'shew')
    assert 'required: COMMAND' in refused(capsys)


def test_an_error_of_another_library_is_one_short_line(monkeypatch):
    def fail(error):
        raise error

    with pytest.raises(Refused, match=r'^argument --x: RuntimeError: why Try y$'):
        attempt('--x', fail, RuntimeError('why'), hint='Try y')
    with pytest.raises(Refused, match='characters') as refusal:
        attempt('--x', fail, RuntimeError('k' * 100_000))
    assert len(str(refusal.value)) < 3000
    monkeypatch.setenv('HF_TOKEN', 'hf_ümlaut')
    with pytest.raises(Refused, match='^argument --x: HF_TOKEN must be one word of ASCII'):
        attempt('--x', str.encode, 'hf_ümlaut', 'ascii')


def test_as_a_command():
    """With a reader that leaves, as `head` does, there is no traceback either."""
    run = subprocess.Popen(
        [sys.executable, '-m', 'timm_stn.cli', 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().startswith('stn_')
    run.stdout.close()
    assert 'Traceback' not in run.stderr.read()
    assert run.wait() in (0, 141)
