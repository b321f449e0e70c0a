"""Lists of poses: rotations, or matrices."""
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry.grid import coordinate_dtype
from ..geometry.sizes import are_numbers, is_count, plain

__all__ = ['Poses', 'check_poses', 'matrices_of']

MOST = 64

Poses = int | Sequence[Sequence[Sequence[float]]]  # a number of rotations, or matrices (M, 2, 3)


def check_poses(poses: Any, name: str) -> Poses:
    """``poses`` as plain numbers.

    Raises:
        ValueError: They are neither a number of rotations nor matrices.
    """
    poses = plain(poses)
    if is_count(poses) and poses <= MOST:
        return poses
    if isinstance(poses, (list, tuple)) and 0 < len(poses) <= MOST and all(map(_is_matrix, poses)):
        return tuple(tuple(tuple(map(float, row)) for row in theta) for theta in poses)
    raise ValueError(f'{name} must be a number of rotations, or a list of matrices (2, 3), 1 to {MOST} of them; '
                     f'got {poses!r}.')


def _is_matrix(theta: Any) -> bool:
    rows = isinstance(theta, (list, tuple)) and len(theta) == 2
    return rows and all(isinstance(row, (list, tuple)) and len(row) == 3 and are_numbers(row) for row in theta)


def matrices_of(poses: Poses, x: Tensor) -> Tensor:
    """(M, 2, 3) of poses, the first of them the identity if they are rotations; these turn pixels, not coordinates.

    Nothing is copied from the host.
    """
    dd: dict[str, Any] = dict(device=x.device, dtype=coordinate_dtype(x.dtype))
    if not isinstance(poses, int):
        numbers = [torch.full((), number, **dd) for theta in poses for row in theta for number in row]
        return torch.stack(numbers).reshape(-1, 2, 3)
    height, width = x.shape[2:]
    angles = torch.arange(poses, **dd) * (2 * math.pi / poses)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    return torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], 1).reshape(-1, 2, 3)
