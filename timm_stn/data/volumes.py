"""Extruded digits in volumes (the paper's appendix A.3, which names 60 voxels a side, places and rotations at random).

Our choices: a digit is 10 voxels thick, turned about the axes x, y and z in this order, by up to 45 degrees about each,
and its centre moves by up to 10 voxels along each axis.
"""
import math

import torch
from torch import Tensor

from timm_stn.data.distortions import as_float
from timm_stn.geometry.sampler import sample

__all__ = ['DRAWS', 'extruded_digits']

DRAWS = 6  # uniform numbers per volume: three angles, three offsets
DIGIT, THICKNESS, ROOM = 28, 10, 10  # voxels


def extruded_digits(digits: Tensor, labels: Tensor, index: Tensor, u: Tensor, size: int = 60) -> tuple[Tensor, Tensor]:
    """Volumes (N, 1, S, S, S) in [0, 1], with the order of axes z, y, x, and classes (N,).

    Args:
        digits: All digits (M, 1, 28, 28), floating point in [0, 1] or uint8.
        labels: Their classes (M,).
        index: The digit (N,) in each volume.
        u: Uniform random numbers (N, DRAWS).
        size: Side S of the volumes, in voxels.
    """
    to_digit = _rotations((2 * u[:, :3] - 1) * (math.pi / 4)).mT  # (N, 3, 3), of coordinates x, y, z
    side = torch.arange(size, device=u.device) - (size - 1) / 2  # voxels from the centre
    z, y, x = torch.meshgrid(side, side, side, indexing='ij')
    points = torch.stack((x, y, z), dim=-1).reshape(1, -1, 3) - (2 * u[:, None, 3:] - 1) * ROOM  # (N, S^3, 3)
    points = points @ to_digit.mT  # of the digit's own axes, its face across z
    on_face = (points[..., :2] * (2 / DIGIT)).reshape(len(u), size * size, size, 2)
    face = sample(as_float(digits[index]), on_face, padding_mode='zeros')
    within = (THICKNESS / 2 + 0.5 - points[..., 2].abs()).clamp(0, 1)
    return (face.reshape_as(within) * within).reshape(-1, 1, size, size, size), labels[index]


def _rotations(angles: Tensor) -> Tensor:
    """Rotations (N, 3, 3) about x, then y, then z, by angles (N, 3) in radians."""
    rotation = None
    for axis, angle in enumerate(angles.unbind(1)):
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        entries = {
            0: (one, zero, zero, zero, cos, -sin, zero, sin, cos),
            1: (cos, zero, sin, zero, one, zero, -sin, zero, cos),
            2: (cos, -sin, zero, sin, cos, zero, zero, zero, one)}[axis]
        turn = torch.stack(entries, dim=1).reshape(-1, 3, 3)
        rotation = turn if rotation is None else turn @ rotation
    assert rotation is not None
    return rotation
