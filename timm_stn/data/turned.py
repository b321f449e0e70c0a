"""Images turned about their centre by any angle, and those that are left upright.

Not set R of `timm_stn.data.distortions`, whose digits are turned by at most 90 degrees to either side.
"""
import math

from torch import Tensor

from timm_stn.data.distortions import as_float
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import get_transform, matrix_grid

__all__ = ['DRAWS', 'turn', 'turned', 'upright']

DRAWS = 1  # uniform numbers of an image


def upright(images: Tensor, classes: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """As they are: images (N, C, S, S) in [0, 1] and classes, see `timm_stn.data.tasks.Task.make`."""
    return as_float(images[index]), classes[index]


def turned(images: Tensor, classes: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Turned by u (N, 1) of a full turn, with black corners: images (N, C, S, S) in [0, 1] and classes."""
    return turn(as_float(images[index]), u[:, 0], 'zeros'), classes[index]


def turn(images: Tensor, share: Tensor, padding_mode: str) -> Tensor:
    """Square images (N, C, S, S) in floating point, turned about their centres, sampled bilinearly.

    Args:
        images: The images.
        share: Of a full turn (N,), in the sense that the eye calls anticlockwise: a quarter brings the right
            edge to the top.
        padding_mode: What corners show: ``zeros``, ``border``, ``reflection``.
    """
    theta = get_transform('rotation').matrix(2 * math.pi * share[:, None])
    return sample(images, matrix_grid(theta, (images.shape[2], images.shape[3])), padding_mode=padding_mode)
