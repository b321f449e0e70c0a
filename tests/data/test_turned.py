"""Turned images against scipy and numpy; upright digits are those of MNIST."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import rand, write_mnist
from scipy.ndimage import rotate

from timm_stn import data
from timm_stn.data import TASKS, load_mnist
from timm_stn.data.turned import turn

MODES = {'zeros': 'grid-constant', 'border': 'nearest', 'reflection': 'reflect'}  # of scipy: half-pixels are mirrored


@pytest.mark.parametrize('mode', MODES)
@settings(max_examples=10, deadline=None)
@given(share=st.floats(0, 1), side=st.integers(2, 13))
def test_turned_images_are_those_of_scipy(mode, share, side):
    image = rand(1, 2, side, side, seed=side)
    found = turn(image.double(), torch.tensor([share], dtype=torch.float64), mode)[0].numpy()
    expected = rotate(image[0].double().numpy(), 360 * share, axes=(2, 1), reshape=False, order=1, mode=MODES[mode])
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize('mode', MODES)
def test_quarters_are_those_of_numpy(mode):
    images = rand(4, 3, 8, 8)
    found = turn(images, torch.arange(4) / 4, mode)
    for quarters, (image, other) in enumerate(zip(images, found, strict=True)):
        expected = np.rot90(image.numpy(), quarters, axes=(1, 2))
        np.testing.assert_allclose(other.numpy(), expected, rtol=0, atol=1e-5)


def test_digits_are_turned_by_all_angles_equally_often():
    wedge = torch.zeros(1, 1, 28, 28)
    wedge[..., 13:15, 22:26] = 1  # at the right
    x, y = TASKS['TURNED'].make(wedge, torch.tensor([7]), torch.zeros(4000, dtype=torch.long), rand(4000, 1))
    grid = torch.arange(28) - 13.5
    middle = [(x[:, 0] * weights).sum((1, 2)) for weights in (grid, -grid[:, None])]  # x, and y upwards
    angles = torch.atan2(middle[1], middle[0]).numpy() % (2 * math.pi)
    counts = np.histogram(angles, 8, (0, 2 * math.pi))[0]
    assert abs(counts - 500).max() < 5 * 500 ** 0.5 and set(y.tolist()) == {7}
    np.testing.assert_allclose(angles, 2 * math.pi * rand(4000, 1)[:, 0].numpy(), atol=0.02)
    assert x[:, 0, 0, 0].max() == 0, 'corners are black'


def test_upright_digits_are_those_of_mnist(tmp_path):
    write_mnist(tmp_path, test=20)
    images, labels = load_mnist(tmp_path, 'test')
    x, y = data.test_set('UPRIGHT', tmp_path)
    assert torch.equal((x * 255).round().to(torch.uint8), images) and torch.equal(y, labels)
    turned, y = data.test_set('TURNED', tmp_path)
    assert torch.equal(y, labels) and turned.shape == x.shape and not torch.allclose(turned, x, atol=0.1)
