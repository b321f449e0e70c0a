"""Diffeomorphisms: the flow of a smooth velocity field, which never folds."""
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..grid import centers, has_values, lattice
from ..programs import is_exporting
from .lattice import LatticeTransform
from .numeric import exact_matmul

__all__ = ['Diffeomorphic']

STEPS = 4
MAX_VELOCITY = 0.9  # in lattice spacings per unit of time
DENSITY = 16  # samples a lattice spacing, from which the grids of larger images are interpolated
BEYOND = 2  # samples beyond each edge


class Diffeomorphic(LatticeTransform):
    """Parameters: velocities (x, y) at the control points, the coefficients of a bicubic B-spline field.

    A point moves with the field for one unit of time, in 4 Runge-Kutta steps of fourth order. The field has continuous
    second derivatives and vanishes two lattice spacings outside the lattice, so points stay near. Each component is
    bounded smoothly (by tanh, of slope 1 at zero) to 0.9 lattice spacings, 0.6 for 4 x 4. In units of spacings the
    rows of the field's Jacobian then sum to at most 2 * 1.5 * 0.9 = 2.7 in magnitude (1.5 bounds the sum of the
    derivatives of the cubic B-splines). So the Jacobian of a step h = 1/4 differs from the identity by at most
    exp(2.7 h) - 1 < 1, and the map cannot fold for any parameters.

    Negated parameters give the inverse, up to the integration error: below 1e-5 for velocities up to 0.1.

    The flow is smooth. So that of a float32 grid with at least twice as many pixels is computed at 16 points a lattice
    spacing, and interpolated by polynomials of degree 5: for velocities up to 0.1 exact to 5e-6 in [-1, 1], for any to
    2e-4. Exported programs compute the flow of all pixels.
    """
    name = 'diffeomorphic'

    def grid(self, params: Tensor, size: Sequence[int]) -> Tensor:
        sides = [DENSITY * (n - 1) + 1 + 2 * BEYOND for n in (self.rows, self.columns)]
        if is_exporting() or params.dtype == torch.float64 or math.prod(size) < 2 * math.prod(sides):
            return super().grid(params, size)
        params = self.prepare(params)
        pixels = lattice(self.check_size(size), params.device, params.dtype)
        axes = [_samples(m, params) for m in sides]
        points = torch.stack(torch.meshgrid(*axes, indexing='ij')[::-1], -1)[None]
        moved = (self._map(params, points) - points).permute(0, 3, 1, 2)  # (N, 2, *sides)
        rows, columns = (_interpolation(n, m, params) for n, m in zip(size, sides))
        moved = exact_matmul(rows, exact_matmul(moved, columns.transpose(0, 1)))  # (N, 2, *size)
        return pixels + moved.permute(0, 2, 3, 1)

    def inverse(self, params: Tensor) -> Tensor:
        return -self.prepare(params)

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 0) -> Tensor:
        """Output points whose source points are `points`: the flow of the negated velocities."""
        return self.map_points(-params, points)

    def _displace(self, control: Tensor, points: Tensor) -> Tensor:
        sides = [points.new_full((1,), n - 1) for n in (self.columns, self.rows)]  # avoids a copy from the host
        steps = torch.cat(sides) / 2  # control points per unit of coordinates
        field = MAX_VELOCITY / 36 * (control * steps / MAX_VELOCITY).tanh()  # _bspline is six times too large
        start = (points + 1) * steps[:, None]
        moved = points.new_zeros(field.shape[0], *points.shape[1:])
        for _ in range(STEPS):
            moved = moved + _step(field.permute(0, 3, 1, 2), start + moved)
        return moved / steps[:, None]


def _step(field: Tensor, points: Tensor) -> Tensor:
    """The displacement of one Runge-Kutta step of fourth order."""
    velocity = _Velocity.apply if has_values(field) and has_values(points) else _velocity
    time = 1 / STEPS
    k1 = velocity(field, points)
    k2 = velocity(field, points + time / 2 * k1)
    k3 = velocity(field, points + time / 2 * k2)
    k4 = velocity(field, points + time * k3)
    return time / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _velocity(field: Tensor, points: Tensor) -> Tensor:
    """The B-spline with coefficients (N, 2, rows, columns) at points (N, 2, P) in units of the lattice."""
    rows, columns = field.shape[2:]
    return _contract(field, _bspline(points[:, :1], columns), _bspline(points[:, 1:], rows))


class _Velocity(torch.autograd.Function):
    """`_velocity` that saves only its arguments for the backward pass, to use little memory."""

    generate_vmap_rule = True  # for `torch.func` over functions that contain this one

    @staticmethod
    def forward(field: Tensor, points: Tensor) -> Tensor:
        return _velocity(field, points)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        field, points = ctx.saved_tensors
        rows, columns = field.shape[2:]
        x, y = _bspline(points[:, :1], columns), _bspline(points[:, 1:], rows)
        slope_x, slope_y = _bspline_slope(points[:, :1], columns), _bspline_slope(points[:, 1:], rows)
        along_x = (gradient * _contract(field, slope_x, y)).sum(1)
        along_y = (gradient * _contract(field, x, slope_y)).sum(1)
        weighted = (gradient[:, :, None] * y[:, None]).flatten(1, 2)
        return exact_matmul(weighted, x.transpose(-1, -2)).reshape(field.shape), torch.stack([along_x, along_y], 1)


def _contract(field: Tensor, x: Tensor, y: Tensor) -> Tensor:
    along_x = exact_matmul(field.flatten(1, 2), x).reshape(-1, *field.shape[1:3], x.shape[-1])
    return (along_x * y[:, None]).sum(2)


def _bspline(points: Tensor, n: int) -> Tensor:
    """Six times the cubic B-splines around 0 ... n - 1, at points (N, 1, P): (N, n, P)."""
    distance = (points - _nodes(points, n)).abs()
    return (2 - distance).relu().pow(3) - 4 * (1 - distance).relu().pow(3)


def _bspline_slope(points: Tensor, n: int) -> Tensor:
    """The derivatives of `_bspline`."""
    signed = points - _nodes(points, n)
    distance = signed.abs()
    return signed.sign() * (12 * (1 - distance).relu().square() - 3 * (2 - distance).relu().square())


def _nodes(points: Tensor, n: int) -> Tensor:
    return torch.arange(n, dtype=points.dtype, device=points.device)[:, None]


def _samples(m: int, like: Tensor) -> Tensor:
    """m places along an axis in [-1, 1], BEYOND of which lie beyond each edge."""
    return (torch.arange(m, dtype=like.dtype, device=like.device) - BEYOND) * (2 / (m - 1 - 2 * BEYOND)) - 1


def _interpolation(n: int, m: int, like: Tensor) -> Tensor:
    """Weights (n, m) of the m samples of an axis in each of n pixels: Lagrange's, of the nearest three on each side."""
    place = (centers(n, like.device, like.dtype) + 1) / 2 * (m - 1 - 2 * BEYOND) + BEYOND
    first = place.floor() - 2
    share, sample = place - first, torch.arange(m, dtype=like.dtype, device=like.device)
    weights = torch.zeros(n, m, dtype=like.dtype, device=like.device)
    for k in range(6):
        weight = reduce(torch.mul, [(share - j) / (k - j) for j in range(6) if j != k])
        weights = weights + weight[:, None] * (sample == first[:, None] + k)
    return weights
