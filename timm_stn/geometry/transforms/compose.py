"""One transform after another: 'a+b' warps an image by a, then the result by b, and samples once."""
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .base import Transform
from .linear import LinearTransform
from .matrix import LIMIT, compose_matrices

__all__ = ['Chain', 'LinearChain', 'chain']


def chain(parts: Sequence[Transform]) -> Transform:
    """The transform a(b(x)) of parts [a, b]; a linear one where all parts are linear, the part itself if alone."""
    if len({part.ndim for part in parts}) > 1:
        raise ValueError(f'transforms of different dimensions cannot be joined: {"+".join(p.name for p in parts)}')
    if len(parts) == 1:
        return parts[0]
    return LinearChain(parts) if all(isinstance(part, LinearTransform) for part in parts) else Chain(parts)


class Chain(Transform):
    """Parameters: those of the parts, concatenated."""
    parts: tuple[Transform, ...]

    def __init__(self, parts: Sequence[Transform]) -> None:
        self.parts = tuple(parts)
        self.name = '+'.join(part.name for part in parts)
        self.num_params = sum(part.num_params for part in parts)
        self.ndim = parts[0].ndim

    def split(self, params: Tensor) -> tuple[Tensor, ...]:
        """The parameters of each part."""
        return torch.split(self.prepare(params), [part.num_params for part in self.parts], dim=1)

    def grid(self, params: Tensor, size: Sequence[int]) -> Tensor:
        *before, last = zip(self.parts, self.split(params))
        grid = last[0].grid(last[1], size)
        for part, own in reversed(before):
            grid = part.map_points(own, grid.clamp(-LIMIT, LIMIT))
        return grid

    def map_points(self, params: Tensor, points: Tensor) -> Tensor:
        for part, own in zip(reversed(self.parts), reversed(self.split(params))):
            points = part.map_points(own, points.clamp(-LIMIT, LIMIT))
        return points

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 15) -> Tensor:
        for part, own in zip(self.parts, self.split(params)):
            points = part.inverse_points(own, points.clamp(-LIMIT, LIMIT), iterations)
        return points


class LinearChain(LinearTransform, Chain):
    """A chain of linear parts: its matrix is the product of theirs."""
    parts: tuple[LinearTransform, ...]
    inverse = Transform.inverse
    compose = Transform.compose

    def matrix(self, params: Tensor) -> Tensor:
        thetas = [part.matrix(own) for part, own in zip(self.parts, self.split(params))]
        return reduce(compose_matrices, thetas)
