"""Absolute matrices: the linear maps of all 2-D and 3-D families, as in the paper.

A matrix maps *output* coordinates to *source* coordinates, xy(z) order, both in [-1, 1] with half-pixel centres
(`align_corners=False`). Its shape tells the kind: (N, 2, 3) affine, (N, 3, 3) homography, (N, 3, 4) affine in 3-D.

All operations are elementwise, because autocast would compute a matmul in bfloat16. Parameters and points are
converted to float32, unless they are float64.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from ..grid import centers, coordinate_dtype, has_values

__all__ = ['away_from_zero', 'compose_matrices', 'guard', 'invert_matrix', 'map_points_matrix', 'matrix_grid']

LIMIT = 1e6  # parameters of larger magnitude are treated as invalid
MIN_DENOMINATOR = 1e-6
MIN_DETERMINANT = 1e-12
SHAPES = {(2, 3): 2, (3, 3): 2, (3, 4): 3}  # (rows, columns) -> dimensions of the space


def guard(params: Tensor) -> Tensor:
    """Parameters in which samples with a NaN, an infinity or a magnitude above 1e6 are replaced by the identity.

    The gradient of a replaced sample is exactly zero. Increments (N, P) become zeros, absolute matrices (N, 2, 3),
    (N, 3, 3) or (N, 3, 4) the identity matrix; the result is float32 or float64.
    """
    params = params.to(coordinate_dtype(params.dtype))
    usable = params.detach().abs() <= LIMIT  # a comparison with NaN is False
    if params.device.type == 'cpu' and has_values(params) and usable.all():
        return params
    usable = usable.flatten(1).all(1)
    identity = eye_like(params) if params.dim() == 3 else torch.zeros_like(params)
    return _where(usable, params, identity)


def matrix_grid(theta: Tensor, size: Sequence[int]) -> Tensor:
    """Source coordinates of all output pixels, for absolute matrices.

    Args:
        theta: Matrices (N, 2, 3), (N, 3, 3) or (N, 3, 4); samples that `guard` rejects are the identity.
        size: Output size, (H, W) or (D, H, W).

    Returns:
        Grid (N, *size, ndim), finite for any theta; a view of contiguous (N, ndim, *size) memory.
    """
    ndim = _check_matrix(theta)
    if len(size) != ndim:
        raise ValueError(f'size must have {ndim} entries for theta of shape {tuple(theta.shape)}, got {tuple(size)}')
    planes = _planes(guard(theta), size)
    if theta.shape[1:] == (3, 3):
        numerators, denominator = torch.split(planes, [2, 1], 1)
        planes = numerators / away_from_zero(denominator)
    return planes.permute(0, *range(2, planes.dim()), 1)


def map_points_matrix(theta: Tensor, points: Tensor) -> Tensor:
    """Source points of output points, for absolute matrices.

    Args:
        theta: Matrices (N, 2, 3), (N, 3, 3) or (N, 3, 4); samples that `guard` rejects are the identity.
        points: Points (N, ..., ndim), or (M, ndim) shared by all samples.

    Returns:
        Source points (N, ..., ndim).
    """
    ndim = _check_matrix(theta)
    theta, points = guard(theta), as_points(points, theta.shape[0], ndim)
    columns = theta.reshape(theta.shape[0], *[1] * (points.dim() - 2), *theta.shape[1:]).unbind(-1)
    mapped = columns[-1]
    for column, coordinate in zip(columns, points.unbind(-1)):
        mapped = mapped + column * coordinate[..., None]
    if theta.shape[1:] == (3, 3):
        mapped = mapped[..., :2] / away_from_zero(mapped[..., 2:])
    return mapped


def compose_matrices(first: Tensor, second: Tensor) -> Tensor:
    """The matrix of `first(second(x))`: an image is warped by `first`, then the result by `second`.

    The result is (N, 3, 3) if either is a homography, else it has the shape of both.
    """
    if _check_matrix(first) != _check_matrix(second):
        raise ValueError(f'cannot compose matrices of shapes {tuple(first.shape)} and {tuple(second.shape)}')
    rows = max(first.shape[1], second.shape[1])
    first, second = _square(guard(first)), _square(guard(second))
    product = (first[:, :, :, None] * second[:, None]).sum(2)
    return product if rows == product.shape[1] else product[:, :rows]


def invert_matrix(theta: Tensor) -> Tensor:
    """The inverse matrices, of the shape of `theta`.

    A matrix without usable inverse (determinant below 1e-12, or an inverse that `guard` rejects) gives the identity,
    with a gradient of exactly zero.
    """
    _check_matrix(theta)
    theta = guard(theta)
    if theta.shape[1:] == (3, 4):
        linear = _invert3(theta[:, :, :3])
        shift = -(linear * theta[:, None, :, 3]).sum(-1, keepdim=True)
        return guard(torch.cat([linear, shift], -1))
    return guard(_invert3(_square(theta))[:, :theta.shape[1]])


def as_points(points: Tensor, batch: int, ndim: int) -> Tensor:
    """Points in float32 or float64 with a batch dimension: (M, ndim) becomes (1, M, ndim)."""
    if points.dim() < 2 or points.shape[-1] != ndim:
        raise ValueError(f'points must have shape (N, ..., {ndim}) or (M, {ndim}), got {tuple(points.shape)}')
    if points.dim() == 2:
        points = points[None]
    elif points.shape[0] not in (1, batch):
        raise ValueError(
            f'points of shape {tuple(points.shape)} must have first dimension {batch} (one set per sample) or 1')
    return points.to(coordinate_dtype(points.dtype))


def eye_like(theta: Tensor) -> Tensor:
    """The identity matrix (rows, columns) of `theta`'s shape."""
    return torch.eye(theta.shape[1], theta.shape[2], dtype=theta.dtype, device=theta.device)


def away_from_zero(w: Tensor) -> Tensor:
    """Denominators with the same sign and a magnitude of at least 1e-6."""
    least = w.new_full((), MIN_DENOMINATOR)
    return torch.where(w.abs() < least, torch.where(w < 0, -least, least), w)


def _planes(theta: Tensor, size: Sequence[int]) -> Tensor:
    """theta @ (x, y, 1) at all pixels, (N, rows, *size), as a broadcast sum of one term per axis."""
    *columns, planes = theta.unsqueeze(-1).unbind(2)
    for column, n in zip(reversed(columns), size):
        column = column * centers(n, theta.device, theta.dtype)
        planes = planes.unsqueeze(-1)
        while column.dim() < planes.dim():
            column = column.unsqueeze(2)
        planes = planes + column
    return planes.squeeze(2)


def _check_matrix(theta: Tensor) -> int:
    if theta.dim() != 3 or tuple(int(s) for s in theta.shape[1:]) not in SHAPES:
        raise ValueError(f'theta must have shape (N, 2, 3), (N, 3, 3) or (N, 3, 4), got {tuple(theta.shape)}')
    return SHAPES[int(theta.shape[1]), int(theta.shape[2])]


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)


def _square(theta: Tensor) -> Tensor:
    rows, columns = theta.shape[1:]
    if rows == columns:
        return theta
    last = torch.eye(columns, dtype=theta.dtype, device=theta.device)[-1:]
    return torch.cat([theta, last.expand(theta.shape[0], 1, columns)], 1)


def _invert3(m: Tensor) -> Tensor:
    """Inverses of (N, 3, 3) by their adjugates. A singular matrix gives entries that `guard` rejects."""
    a, b, c = m.unbind(1)
    adjugate = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    determinant = (a * adjugate[..., 0]).sum(-1)
    usable = determinant.abs() >= MIN_DETERMINANT
    inverse = adjugate / torch.where(usable, determinant, 1)[:, None, None]
    return _where(usable, inverse, torch.full_like(inverse, 2 * LIMIT))
