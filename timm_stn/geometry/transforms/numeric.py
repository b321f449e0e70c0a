"""Numerics that several families share: an exact matrix product, and the inverse of a smooth map of the plane."""
from collections.abc import Callable

import torch
from torch import Tensor

from ..._torch import in_forward_mode

__all__ = ['exact_matmul', 'invert_map']

LEAST_JACOBIAN = 1e-6


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, computed in float64 so that autocast and TF32 cannot round it; in the dtype of `a`."""
    if a.device.type == 'mps':  # MPS has no float64
        return (a[..., None] * b[..., None, :, :]).sum(-2)
    return (a.double() @ b.double()).to(a.dtype)


def invert_map(function: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """Points (N, ..., 2) that `function` maps to `target` (N, ..., 2), by Newton's method with step halving.

    The search starts at the target; a step that does not bring a point nearer to its target is undone. For a smooth map
    that does not fold, about ten iterations reach the precision of the dtype; otherwise the result is the best point
    found. Gradients to the target and to the inputs of `function` follow the implicit function theorem.
    """
    with torch.no_grad():
        points = target.clone()
        residual = function(points) - target
        step = torch.ones_like(points[..., :1])
        for _ in range(iterations):
            trial = points - step * _newton(function, points, residual)
            missed = function(trial) - target
            nearer = missed.norm(dim=-1, keepdim=True) < residual.norm(dim=-1, keepdim=True)
            points, residual = torch.where(nearer, trial, points), torch.where(nearer, missed, residual)
            step = torch.where(nearer, (2 * step).clamp(max=1), step / 2)
    correction = _newton(function, points, function(points) - target)
    return points - (correction - correction.detach())


def _newton(function: Callable[[Tensor], Tensor], points: Tensor, residual: Tensor) -> Tensor:
    """The residual times the inverse Jacobian of `function` at points (N, ..., 2); no gradient to the Jacobian."""
    with torch.no_grad():
        (a, b), (c, d) = _jacobian(function, points)
        determinant = a * d - b * c
        usable = determinant.abs() >= LEAST_JACOBIAN
        determinant = torch.where(usable, determinant, LEAST_JACOBIAN)
    x, y = residual.unbind(-1)
    return torch.stack([(d * x - b * y) / determinant, (a * y - c * x) / determinant], -1)


def _jacobian(function: Callable[[Tensor], Tensor], points: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Rows of the Jacobian of `function` at points (N, ..., 2)."""
    axes = [axis.expand_as(points) for axis in torch.eye(2, dtype=points.dtype, device=points.device)]
    if in_forward_mode():  # which cannot be nested
        pull = torch.func.vjp(function, points)[1]
        return tuple(pull(axis)[0].unbind(-1) for axis in axes)
    (a, c), (b, d) = [torch.func.jvp(function, (points,), (axis,))[1].unbind(-1) for axis in axes]
    return (a, b), (c, d)
