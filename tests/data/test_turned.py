"""Turned images against scipy and numpy; upright digits are those of MNIST."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import rand, write_mnist
from scipy.ndimage import affine_transform, rotate

from timm_stn import data
from timm_stn.data import TASKS, load_mnist
from timm_stn.data.turned import CROP_DRAWS, turned

MODES = {'zeros': 'grid-constant', 'border': 'nearest', 'reflection': 'reflect'}  # of scipy: half-pixels are mirrored


@pytest.mark.parametrize('mode', MODES)
@settings(max_examples=10, deadline=None)
@given(share=st.floats(0, 1), side=st.integers(2, 13))
def test_turned_images_are_those_of_scipy(mode, share, side):
    images, u = rand(3, 2, side, side, seed=side).double(), torch.tensor([[share, 0.3]], dtype=torch.float64)
    (found,), classes = turned(images, torch.tensor([4, 5, 6]), torch.tensor([1]), u, mode)
    expected = rotate(images[1].numpy(), 360 * share, axes=(2, 1), reshape=False, order=1, mode=MODES[mode])
    assert np.abs(found.numpy() - expected).max() < 1e-6 and classes.tolist() == [5]


@pytest.mark.parametrize('mode', MODES)
def test_quarters_are_those_of_numpy(mode):
    images = rand(4, 3, 8, 8)
    found, _ = turned(images, torch.arange(4), torch.arange(4), torch.arange(4)[:, None] / 4, mode)
    for quarters, (image, other) in enumerate(zip(images, found, strict=True)):
        expected = np.rot90(image.numpy(), quarters, axes=(1, 2))
        np.testing.assert_allclose(other.numpy(), expected, rtol=0, atol=1e-5)


def test_digits_are_turned_by_all_angles_equally_often():
    wedge = torch.zeros(1, 1, 28, 28)
    wedge[..., 13:15, 22:26] = 1  # at the right
    u = rand(4000, 1)
    x, y = TASKS['TURNED'].make(wedge, torch.tensor([7]), torch.zeros(4000, dtype=torch.long), u)
    grid = torch.arange(28) - 13.5
    middle = [(x[:, 0] * weights).sum((1, 2)) for weights in (grid, -grid[:, None])]  # x, and y upwards
    angles = torch.atan2(middle[1], middle[0]).numpy() % (2 * math.pi)
    counts = np.histogram(angles, 8, (0, 2 * math.pi))[0]
    assert abs(counts - 500).max() < 5 * 500 ** 0.5 and set(y.tolist()) == {7}
    apart = (angles - 2 * math.pi * u[:, 0].numpy() + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(apart).max() < 0.02


def test_upright_digits_are_those_of_mnist(tmp_path):
    write_mnist(tmp_path, test=20)
    images, labels = load_mnist(tmp_path, 'test')
    x, y = data.test_set('UPRIGHT', tmp_path)
    assert torch.equal((x * 255).round().to(torch.uint8), images) and torch.equal(y, labels)
    turned_digits, y = data.test_set('TURNED', tmp_path)
    assert torch.equal(y, labels) and turned_digits.shape == x.shape
    assert not torch.allclose(turned_digits, x, atol=0.1)


def test_birds_are_tested_turned_and_whole():
    photos, u = (255 * rand(2, 3, 12, 12)).to(torch.uint8), rand(2, CROP_DRAWS)
    x, y = TASKS['BIRDS-TURNED'].make(photos, torch.tensor([3, 199]), torch.tensor([1, 0]), u)
    for found, photo, share in zip(x, photos.flip(0), u[:, 0], strict=True):
        expected = rotate(photo.double().numpy() / 255, 360 * float(share), axes=(2, 1), reshape=False, order=1,
                          mode='reflect')
        assert np.abs(found.numpy() - expected).max() < 1e-4
    assert y.tolist() == [199, 3]


@pytest.mark.parametrize('mirrored', [False, True])
def test_birds_are_trained_on_crops_of_turned_ones(mirrored):
    """The crop, by hand: half the area, to the left and below the middle."""
    photo, side, share, left, low = rand(1, 3, 24, 24), 24, 0.15, 0.1, 0.8
    area, aspect = (0.5 - 0.35) / 0.65, 0.75  # u of half the area, and of sides in ratio sqrt(4 / 3)
    u = torch.tensor([[share, area, aspect, left, low, 0.7 if mirrored else 0.2]])
    x, _ = TASKS['BIRDS-TURNED'].to_train_on(photo, torch.zeros(1, dtype=torch.long), torch.tensor([0]), u)
    wide, high = 0.5 ** 0.5 * (4 / 3) ** 0.25, 0.5 ** 0.5 / (4 / 3) ** 0.25
    crop = np.diag([high, -wide if mirrored else wide])  # yx
    shift = np.array([(2 * low - 1) * (1 - high), (2 * left - 1) * (1 - wide)])
    angle = 2 * math.pi * share
    cos, sin = math.cos(angle), math.sin(angle)
    back = np.array([[cos, sin], [-sin, cos]])  # yx, from output to source
    matrix, centre = back @ crop, np.full(2, (side - 1) / 2)
    offset = centre + back @ shift * side / 2 - matrix @ centre
    for channel, found in zip(photo[0].double().numpy(), x[0].numpy(), strict=True):
        expected = affine_transform(channel, matrix, offset, order=1, mode='reflect')
        assert np.abs(found - expected).max() < 1e-4
