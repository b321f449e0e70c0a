"""Fixtures of several test files."""
import signal

import numpy as np
import pytest
import torch
from PIL import Image

pytest.register_assert_rewrite('commands', 'makers', 'pushing')


@pytest.fixture
def seeded():
    """torch's own generator starts at 0."""
    torch.manual_seed(0)


@pytest.fixture
def heeding_signals():
    """Children heed signals that this process ignores, as it does in the background and under nohup."""
    ignored = [s for s in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM) if signal.getsignal(s) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)  # which is not handed on to children
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def photos(tmp_path):
    """A folder with three pictures, and one file that is none."""
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (90, 120, 3)), ('b.jpg', (120, 90, 3)), ('more/c.png', (64, 64))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('not a picture')
    return folder
