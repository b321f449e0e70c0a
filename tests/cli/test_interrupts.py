"""Commands that take long: a bar while they run, and Ctrl-C ends them in one line, with nothing half written."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from makers import ROOT, write_mnist
from PIL import Image

pytestmark = pytest.mark.usefixtures('heeding_signals')

SLOW = '--model stn_test_resnet --no-pretrained --count 3000 --output out.png'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with many pictures, and one with many digits."""
    folder = tmp_path_factory.mktemp('place')
    for i in range(3000):
        path = folder / 'many' / str(i % 2) / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 2:
            Image.fromarray(np.full((400, 400, 3), i, dtype=np.uint8)).save(path)
        else:
            os.link(folder / 'many' / str(i % 2) / f'{i % 2}.png', path)
    write_mnist(folder / 'mnist', test=10_000)
    return folder


def started(place, *argv):
    """A command whose stderr is a terminal, and the other end of that."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen([sys.executable, '-m', 'timm_stn', *argv], cwd=place, env=env, stdout=subprocess.DEVNULL,
                               stderr=theirs, start_new_session=True)
    os.close(theirs)
    return process, ours


def read_until(terminal, pattern, seconds=60):
    said, deadline = '', time.monotonic() + seconds
    while not re.search(pattern, said) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                said += os.read(terminal, 10_000).decode()
            except OSError:  # it has ended
                break
    return said


@pytest.mark.parametrize('argv,bar', [
    (f'show many {SLOW}', 'looking'), (f'diagnose --data many {SLOW}', 'reading'),
    ('eval stn_mnist_cnn_rts --data .', 'eval'),
])
def test_a_bar_and_then_one_line(place, argv, bar):
    before = sorted(place.glob('*'))
    process, terminal = started(place, *argv.split())
    said = read_until(terminal, rf'{bar}:.*\d+/\d+')
    assert bar in said, said
    process.send_signal(signal.SIGINT)
    said = read_until(terminal, 'interrupted')
    assert process.wait(30) == 130
    os.close(terminal)
    assert said.rstrip().endswith('timm-stn: interrupted') and 'Traceback' not in said
    assert sorted(place.glob('*')) == before


def test_quiet(place):
    process, terminal = started(place, 'eval', 'stn_mnist_cnn_rts', '--data', '.', '--quiet')
    said = read_until(terminal, 'nothing of the kind')
    assert process.wait(60) == 0 and said == ''
    os.close(terminal)
