"""Bars on a terminal only, and not where quiet is asked for."""
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from makers import ROOT

from timm_stn import _progress
from timm_stn._progress import is_quiet, progress, quiet

CODE = '''
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location('_progress', 'timm_stn/_progress.py')  # without torch, which takes seconds
_progress = module_from_spec(spec)
spec.loader.exec_module(_progress)
_progress.DELAY = 0
with {within}:
    print(sum(_progress.progress(iter(range(5)), 'counting', total=5)))
'''


def said(within, terminal):
    """What a process writes on stderr that counts to five."""
    master, end = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    argv = [sys.executable, '-c', CODE.format(within=within)]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=end)
    assert done.stdout == b'10\n'
    os.set_blocking(master, False)
    try:
        return os.read(master, 10_000).decode()
    except BlockingIOError:
        return ''
    finally:
        os.close(end)
        os.close(master)


def test_a_bar_is_on_a_terminal_alone():
    shown = said('nullcontext()', terminal=True)
    assert 'counting' in shown and '/5' in shown
    assert said('nullcontext()', terminal=False) == ''
    assert said('_progress.quiet()', terminal=True) == ''


def test_quiet_ends_where_it_ends():
    before = are_progress_bars_disabled()
    with pytest.raises(KeyError), quiet():
        assert is_quiet() and are_progress_bars_disabled()
        raise KeyError
    assert not is_quiet() and are_progress_bars_disabled() == before
    with quiet(False):
        assert not is_quiet()


def test_items_stay_as_they_are():
    assert list(progress([3, 1, 2], 'running')) == [3, 1, 2] and _progress.DELAY >= 0.5, 'nothing flickers'
