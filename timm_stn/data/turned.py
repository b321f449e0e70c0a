"""Square images turned about their centres by any angle.

Not set R of `timm_stn.data.distortions`, whose digits are turned by at most 90 degrees to either side.
"""
import math

import torch
from torch import Tensor

from timm_stn.data import birds
from timm_stn.data.distortions import as_float
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid

__all__ = ['CROP_DRAWS', 'DRAWS', 'rotations', 'turned', 'turned_crops']

DRAWS = 1  # uniform numbers of an image
CROP_DRAWS = DRAWS + birds.CROP_DRAWS


def turned(
        images: Tensor,
        classes: Tensor,
        index: Tensor,
        u: Tensor,
        padding_mode: str = 'zeros',
) -> tuple[Tensor, Tensor]:
    """Images (N, C, S, S) in [0, 1], turned by u[:, 0] of a full turn, and classes; a `Task.make`.

    Args:
        images: (M, C, S, S), bytes or in [0, 1].
        classes: (M,).
        index: (N,), of the images.
        u: (N, 1 or more), uniform in [0, 1); only the first numbers are read.
        padding_mode: What corners show: ``zeros`` (black), ``border``, ``reflection``.
    """
    return _warped(as_float(images[index]), rotations(u[:, 0]), padding_mode), classes[index]


def turned_crops(images: Tensor, classes: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The same with corners that show reflections, then random crops of it, see `timm_stn.data.birds.crops`.

    u is (N, 6): of the turn, then of the crop. Pixels are sampled once.
    """
    turn, crop = rotations(u[:, 0]), birds.crops(u[:, 1:])
    linear = turn[:, :, :2] @ crop
    theta = torch.cat((linear[:, :, :2], linear[:, :, 2:] + turn[:, :, 2:]), dim=2)
    return _warped(as_float(images[index]), theta, 'reflection'), classes[index]


def rotations(share: Tensor) -> Tensor:
    """Matrices (N, 2, 3) that turn square images by a share (N,) of a full turn, from output to source coordinates.

    Anticlockwise to the eye: a quarter brings the right edge to the top.
    """
    cos, sin = (2 * math.pi * share).cos(), (2 * math.pi * share).sin()
    zero = torch.zeros_like(cos)
    return torch.stack((cos, -sin, zero, sin, cos, zero), dim=1).reshape(-1, 2, 3)


def _warped(images: Tensor, theta: Tensor, padding_mode: str) -> Tensor:
    return sample(images, matrix_grid(theta, (images.shape[2], images.shape[3])), padding_mode=padding_mode)
