"""theta together with the transform that it belongs to: where the pixels of an output lie in its source.

Convention: see `timm_stn.geometry.grid`. A pose maps *output* to *source* coordinates, xy(z) order, in [-1, 1].
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from .grid import lattice
from .transforms import (
    Transform,
    compose_matrices,
    get_transform,
    guard,
    invert_matrix,
    map_points_matrix,
    matrix_grid,
)
from .transforms.compose import chain, grid_through, map_back_through, map_through
from .transforms.linear import LinearTransform

__all__ = ['Pose', 'family_of_theta', 'pose_at', 'pose_of']


class Pose:
    """One map a sample, for N samples.

    ``theta`` is (N, rows, columns), absolute matrices, or (N, P), parameters of families without one.
    """
    theta: Tensor

    def then(self, family: Transform, params: Tensor) -> 'Pose':
        """This after ``family`` with ``params`` (N, num_params): what is seen through this is looked at once more."""
        raise NotImplementedError

    def replace(self, theta: Tensor) -> 'Pose':
        """The same families with another theta of the same shape."""
        raise NotImplementedError

    def grid(self, size: Sequence[int]) -> Tensor:
        """Source coordinates (N, *size, ndim) of all pixels of an output of ``size``, (H, W) or (D, H, W)."""
        raise NotImplementedError

    def inverse_grid(self, size: Sequence[int]) -> Tensor:
        """Output coordinates (N, *size, ndim) of all pixels of a source of ``size``."""
        raise NotImplementedError

    def at(self, size: Sequence[int]) -> Tensor:
        """What `read_at` takes for an output of ``size``: matrices, or the grid."""
        return self.grid(size)

    def inverse_at(self, size: Sequence[int]) -> Tensor:
        """The same for the inverse."""
        return self.inverse_grid(size)

    def map_points(self, points: Tensor) -> Tensor:
        """Source points (N, ..., ndim) of output points (N, ..., ndim) or (M, ndim)."""
        raise NotImplementedError


class MatrixPose(Pose):
    """Absolute matrices (N, 2, 3), (N, 3, 3) or (N, 3, 4), whatever families they were made of."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta

    def then(self, family: Transform, params: Tensor) -> 'MatrixPose':
        return MatrixPose(compose_matrices(self.theta, family.matrix(params)))  # type: ignore[attr-defined]

    def replace(self, theta: Tensor) -> 'MatrixPose':
        return MatrixPose(theta)

    def grid(self, size: Sequence[int]) -> Tensor:
        return matrix_grid(self.theta, size)

    def inverse_grid(self, size: Sequence[int]) -> Tensor:
        return matrix_grid(self.inverse_at(size), size)

    def at(self, size: Sequence[int]) -> Tensor:
        return self.theta

    def inverse_at(self, size: Sequence[int]) -> Tensor:
        return invert_matrix(self.theta)

    def map_points(self, points: Tensor) -> Tensor:
        return map_points_matrix(self.theta, points)


class ParameterPose(Pose):
    """Parameters of one family after another, side by side in theta (N, P)."""

    def __init__(self, theta: Tensor, families: tuple[Transform, ...]) -> None:
        self.theta, self.families = theta, families

    def then(self, family: Transform, params: Tensor) -> 'ParameterPose':
        params = guard(params)
        theta = torch.cat([self.theta, params], 1) if self.families else params
        return ParameterPose(theta, (*self.families, family))

    def replace(self, theta: Tensor) -> 'ParameterPose':
        return ParameterPose(theta, self.families)

    def grid(self, size: Sequence[int]) -> Tensor:
        return grid_through(self.families, self.theta, size)

    def inverse_grid(self, size: Sequence[int]) -> Tensor:
        points = lattice(size, self.theta.device, self.theta.dtype)[None]
        return map_back_through(self.families, self.theta, points)

    def map_points(self, points: Tensor) -> Tensor:
        return map_through(self.families, self.theta, points)


def pose_of(theta: Tensor, transform: str | Transform = 'affine') -> Pose:
    """The pose of a theta: a matrix speaks for itself, other parameters are those of ``transform``."""
    return MatrixPose(theta) if theta.ndim == 3 else ParameterPose(theta, (get_transform(transform),))


def pose_at(base: Tensor, transform: Transform, is_identity: bool = False) -> Pose:
    """Where a transform starts: at matrices (N, d, d + 1) that scale and shift.

    A family with a matrix composes with them. Others come after a ``scale_translation`` that does the same, or after
    nothing where all bases are the identity.
    """
    if isinstance(transform, LinearTransform):
        return MatrixPose(base)
    if is_identity:
        return ParameterPose(base[:, 0, :0], ())
    family, params = as_scale_translation(base)
    return ParameterPose(params, (family,))


def as_scale_translation(base: Tensor) -> tuple[Transform, Tensor]:
    """The family of matrices (N, 2, 3) that scale and shift, and their parameters."""
    scale = base[:, :, :2].diagonal(dim1=1, dim2=2) - 1
    return get_transform('scale_translation'), torch.cat([scale, base[:, :, -1]], 1)


def family_of_theta(transform: Transform, times: int, is_identity: bool, anew: bool = False) -> Transform:
    """The transform whose parameters theta (N, P) holds once a pose of :func:`pose_at` was moved so many times.

    Args:
        transform: One with a matrix is returned itself: its theta is a matrix, and needs none.
        times: How often it was moved.
        is_identity: Where it started.
        anew: It was scaled and shifted again before each time.
    """
    if isinstance(transform, LinearTransform):
        return transform
    start = [] if is_identity else [get_transform('scale_translation')]
    return chain([*start, transform] * times if anew else [*start, *[transform] * times])
