"""One transform after another: 'a+b' warps an image by a, then the result by b, and samples once."""
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .base import Transform
from .linear import LinearTransform
from .matrix import LIMIT, compose_matrices

__all__ = ['Chain', 'LinearChain', 'chain', 'grid_through', 'map_back_through', 'map_through']


def chain(parts: Sequence[Transform]) -> Transform:
    """The transform a(b(x)) of parts [a, b]: linear if all parts are; a single part is returned unchanged."""
    if len({part.ndim for part in parts}) > 1:
        raise ValueError(f'transforms of different dimensions cannot be joined: {"+".join(p.name for p in parts)}')
    if len(parts) == 1:
        return parts[0]
    return LinearChain(parts) if all(isinstance(part, LinearTransform) for part in parts) else Chain(parts)


class Chain(Transform):
    """Transforms in sequence. Parameters: those of the parts, concatenated."""
    parts: tuple[Transform, ...]

    def __init__(self, parts: Sequence[Transform]) -> None:
        self.parts = tuple(parts)
        self.name = '+'.join(part.name for part in parts)
        self.num_params = sum(part.num_params for part in parts)
        self.ndim = parts[0].ndim
        self.has_density = any(part.has_density for part in parts)

    def grid(self, params: Tensor, size: Sequence[int]) -> Tensor:
        return grid_through(self.parts, self.prepare(params), size)

    def map_points(self, params: Tensor, points: Tensor) -> Tensor:
        return map_through(self.parts, self.prepare(params), points)

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 15) -> Tensor:
        return map_back_through(self.parts, self.prepare(params), points, iterations)

    def params_of(self, mass: Tensor) -> Tensor:
        return torch.cat([part.params_of(mass) for part in self.parts], 1)


class LinearChain(LinearTransform, Chain):
    """A chain of linear parts: its matrix is the product of theirs."""
    parts: tuple[LinearTransform, ...]
    inverse = Transform.inverse
    compose = Transform.compose

    def matrix(self, params: Tensor) -> Tensor:
        thetas = [part.matrix(own) for part, own in zip(self.parts, split(self.parts, self.prepare(params)))]
        return reduce(compose_matrices, thetas)


def split(parts: Sequence[Transform], params: Tensor) -> tuple[Tensor, ...]:
    """Split the concatenated parameters (N, P) into those of each part, (N, num_params)."""
    return torch.split(params, [part.num_params for part in parts], dim=1)


def grid_through(parts: Sequence[Transform], params: Tensor, size: Sequence[int]) -> Tensor:
    """Source coordinates (N, *size, ndim), mapped by the last part first and by the first part last."""
    if len(parts) == 1:  # which checks the parameters by itself
        return parts[0].grid(params, size)
    *before, (last, own) = zip(parts, split(parts, params))
    grid = last.grid(own, size)
    for part, own in reversed(before):
        grid = part.map_points(own, grid.clamp(-LIMIT, LIMIT))
    return grid


def map_through(parts: Sequence[Transform], params: Tensor, points: Tensor) -> Tensor:
    """Source points of output points; the last part maps first."""
    if len(parts) == 1:
        return parts[0].map_points(params, points)
    for part, own in zip(reversed(parts), reversed(split(parts, params))):
        points = part.map_points(own, points.clamp(-LIMIT, LIMIT))
    return points


def map_back_through(parts: Sequence[Transform], params: Tensor, points: Tensor, iterations: int = 15) -> Tensor:
    """Output points of source points; the first part is inverted first."""
    if len(parts) == 1:
        return parts[0].inverse_points(params, points, iterations)
    for part, own in zip(parts, split(parts, params)):
        points = part.inverse_points(own, points.clamp(-LIMIT, LIMIT), iterations)
    return points
