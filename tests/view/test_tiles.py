"""Tiles: grids on the input, true boxes and masks on what was seen, against positions that are known."""
import numpy as np
import torch
from PIL import Image, ImageColor

from timm_stn.view.lattice import SIDE
from timm_stn.view.tiles import COLORS, TINT, draw_outlines, framed, picture_of, tinted

FAR = torch.full((1, 4, 2), 40.0)  # an outline that is out of sight


def lattice_of(matrix):
    side = torch.linspace(-1, 1, SIDE)
    points = torch.cartesian_prod(side, side).flip(-1)
    return points @ torch.tensor(matrix)[:, :2].T + torch.tensor(matrix)[:, 2]


def near(picture, color, tolerance=60):
    """Pixel centres (K, 2), xy, of about that colour."""
    away = np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(color)).max(-1)
    rows, columns = np.nonzero(away < tolerance)
    return np.stack([columns, rows], 1) + 0.5


def test_lines_are_drawn_where_they_are_in_the_color_of_their_glimpse():
    lines = torch.tensor([[-1.0, 0.25], [1.0, 0.25]])[None, None].expand(2, 1, 2, 2).clone()
    lines[1, ..., 1] = -0.5
    tile = draw_outlines(torch.zeros(3, 50, 50), FAR.expand(2, 4, 2), 800, 1.25, lines=lines)
    for color, y in zip(COLORS, (0.25, -0.5)):
        points = near(tile, color)
        assert abs(points[:, 1].mean() - (y / 1.25 + 1) * 400) < 1
        assert abs(points[:, 0].min() - (1 - 1 / 1.25) * 400) < 2 and abs(points[:, 0].max() - (1 + 1 / 1.25) * 400) < 2


def test_boxes_come_to_lie_where_the_look_brings_them():
    """Seen through a look at half the size about (0.2, 0): a point x of the input lies at (x - 0.2) / 0.5."""
    lattice = lattice_of([[0.5, 0.0, 0.2], [0.0, 0.5, 0.0]])
    boxes = torch.tensor([[0.0, -0.2, 0.5, 0.3], [-0.9, -0.9, -0.8, -0.8]])
    side = 400
    tile = framed(Image.new('RGB', (300, 300), 'navy'), side, None, boxes, lattice)
    points = near(tile, '#FFFFFF')
    points = points[(points > 15).all(1) & (points < side - 15).all(1)]  # without the paper beside the picture
    expected = np.array([[-0.4, -0.4], [0.6, 0.6]])
    inner = side / 2 * (1 + expected * (2 * side - 20) / (2 * side))  # a frame of 10 of 800 is left free
    assert np.abs(np.stack([points.min(0), points.max(0)]) - inner).max() < 3, 'and the other is out of sight'


def test_a_box_about_all_that_was_seen_is_not_drawn():
    lattice = lattice_of([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
    dark = Image.new('RGB', (100, 100), 'navy')
    around = framed(dark, 200, 0, torch.tensor([[-0.9, -0.9, 0.9, 0.9]]), lattice)
    assert around == framed(dark, 200, 0) == framed(dark, 200, 0, torch.zeros(0, 4), lattice)


def test_masks_tint_what_they_cover():
    mask = torch.zeros(20, 30)
    mask[5:10, 3:9] = 1
    changed = np.asarray(tinted(Image.new('RGB', (30, 20), 'black'), mask)).astype(int)
    expected = np.array(ImageColor.getrgb(TINT)) * 0.4
    assert np.abs(changed[5:10, 3:9] - expected).max() <= 1 and changed.sum() == changed[5:10, 3:9].sum()


def test_grey_images_have_three_equal_channels():
    assert np.asarray(picture_of(torch.tensor([[[0.0, 0.5, 2.0]]]))).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
