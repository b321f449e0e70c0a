"""Distorts an input live: turned, scaled, shifted, cluttered."""
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry.functional import warp

__all__ = ['MOST_CLUTTER', 'Distortion', 'distort', 'theta_of']

MOST_CLUTTER = 12  # patches
PATCH = 0.1  # side of one, of the image's shorter side; of 60 x 60 pixels as in the paper's cluttered digits
SEED = 1  # of where patches are: always the same, so that one more changes nothing else


class Distortion(NamedTuple):
    """What the sliders say."""
    turn: float = 0.0  # degrees, clockwise
    scale: float = 1.0
    right: float = 0.0  # shift, in widths of the image
    down: float = 0.0  # in heights
    clutter: int = 0  # patches, at most MOST_CLUTTER


def distort(pixels: Tensor, by: Distortion, fill: tuple[float, ...], pieces: Tensor) -> Tensor:
    """An image (C, H, W) in [0, 1], turned and scaled about its centre, shifted and cluttered; of the same size.

    Args:
        pixels: The image.
        by: How.
        fill: Values of the C channels beyond its edge.
        pieces: Images (M, C, h, w) of whose middles clutter is cut. Onto one channel, light on dark, it is added, as in
            the paper's cluttered digits; onto colours it is pasted.
    """
    theta = theta_of(by, pixels.shape[1], pixels.shape[2]).to(pixels)
    moved = warp(pixels[None], theta, padding_mode='fill', fill=list(fill), antialias=by.scale < 1)[0].clamp(0, 1)
    return _cluttered(moved, by.clutter, pieces)


def theta_of(by: Distortion, height: int, width: int) -> Tensor:
    """The matrix (1, 2, 3) from coordinates of the output to those of the image, in [-1, 1] from edge to edge."""
    angle = math.radians(by.turn)
    cos, sin = math.cos(angle) / by.scale, math.sin(angle) / by.scale
    sides = torch.tensor([width, height], dtype=torch.float64)
    linear = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)  # of pixels
    linear = linear * sides / sides[:, None]
    shift = 2 * torch.tensor([by.right, by.down], dtype=torch.float64)
    return torch.cat([linear, -linear @ shift[:, None]], 1)[None].float()


def _cluttered(pixels: Tensor, count: int, pieces: Tensor) -> Tensor:
    """With so many patches at random places."""
    canvas = pixels.clone()
    height, width = canvas.shape[1:]
    side = max(2, round(PATCH * min(height, width)))
    places = torch.rand(MOST_CLUTTER, 5, generator=torch.Generator().manual_seed(SEED)).tolist()
    for which, *source, y, x in places[:count]:
        piece = pieces[int(which * len(pieces))]
        (top, left), (bottom, right) = (
            [round(share * (whole - side)) for share, whole in zip(place, size)]
            for place, size in (((0.25 + s / 2 for s in source), piece.shape[1:]), ((y, x), (height, width))))
        patch, under = piece[:, top:top + side, left:left + side], canvas[:, bottom:bottom + side, right:right + side]
        under.copy_((under + patch).clamp(max=1) if len(canvas) == 1 else patch)
    return canvas
