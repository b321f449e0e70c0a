"""The command line: what it prints, what it draws, and how it refuses."""
import subprocess
import sys

from commands import refused


def test_refuses_other_commands(capsys):
    assert 'invalid choice' in refused(capsys, 'shew')
    assert 'required: COMMAND' in refused(capsys)


def test_as_a_command():
    """With a reader that leaves, as `head` does, there is no traceback either."""
    run = subprocess.Popen(
        [sys.executable, '-m', 'timm_stn.cli', 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().startswith('stn_')
    run.stdout.close()
    assert 'Traceback' not in run.stderr.read()
    assert run.wait() in (0, 141)
