"""Distortions of an input, compared with scipy's."""
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from makers import rand
from scipy.ndimage import affine_transform

from timm_stn.app.distort import MOST_CLUTTER, Distortion, distort, theta_of

BLACK, GREY = (0.0,), (0.2, 0.4, 0.6)
PIECES = torch.ones(1, 1, 28, 28)


def by_scipy(channel, by, fill):
    """Of one channel: content turned clockwise and scaled about the centre, then shifted; bilinear."""
    height, width = channel.shape
    angle = math.radians(by.turn)
    content_to_output = by.scale * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    matrix = np.linalg.inv(content_to_output)  # rows first: (y, x)
    center = np.array([height - 1, width - 1]) / 2
    offset = center - matrix @ (center + np.array([by.down * height, by.right * width]))
    big = np.pad(channel, 20, constant_values=fill)  # scipy's own edge is half a pixel wide of ours
    return affine_transform(big, matrix, offset + 20, channel.shape, order=1, cval=fill)


@pytest.mark.parametrize('by', [
    Distortion(turn=30), Distortion(scale=1.4), Distortion(right=0.2), Distortion(down=-0.1),
    Distortion(-70, 1.2, 0.1, 0.3),
], ids=str)
def test_it_is_scipys(by):
    image = rand(3, 20, 32)
    found = distort(image, by, GREY, image[None])
    for c, fill in enumerate(GREY):
        expected = by_scipy(image[c].double().numpy(), by, fill)
        assert np.abs(found[c].numpy() - expected).max() < 1e-4


def test_without_a_distortion_it_is_the_image():
    image = rand(1, 42, 42)
    assert torch.allclose(distort(image, Distortion(), BLACK, PIECES), image, atol=1e-5)
    assert torch.allclose(theta_of(Distortion(), 20, 30), torch.tensor([[[1., 0, 0], [0, 1, 0]]]))


def test_it_shrinks_without_aliasing():
    stripes = (torch.arange(64) % 2).float().expand(1, 64, 64)
    middle = distort(stripes, Distortion(scale=0.5), BLACK, PIECES)[0, 24:40, 24:40]
    assert (middle - 0.5).abs().max() < 0.1  # where bilinear interpolation alone gives stripes or nothing


def test_one_more_patch_leaves_the_others():
    black = torch.zeros(1, 60, 60)
    areas = [distort(black, Distortion(clutter=n), BLACK, PIECES) for n in range(MOST_CLUTTER + 1)]
    assert areas[0].sum() == 0 and areas[1].sum() == 36  # 6 x 6 pixels of ones, as in the paper's clutter
    for fewer, more in pairwise(areas):
        assert (more >= fewer).all() and more.sum() > fewer.sum() and more.max() <= 1


def test_clutter_is_added_to_grey_and_pasted_on_colours():
    grey, colours = torch.full((1, 40, 40), 0.5), torch.full((3, 40, 40), 0.5)
    by = Distortion(clutter=1)
    added = distort(grey, by, BLACK, torch.full((1, 1, 28, 28), 0.2)).mul(1000).round().unique().tolist()
    assert added == [500, 700]
    pasted = distort(colours, by, GREY, torch.full((1, 3, 40, 40), 0.2)).mul(1000).round().unique().tolist()
    assert pasted == [200, 500]
