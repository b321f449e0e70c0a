"""The footprint of each point of a grid: the part of an image that an output pixel stands for.

It is the parallelogram (a box in a volume) that the steps to the nearer neighbours along the axes of the grid span. Its
mean is taken by supersampling: of a few points that are spread evenly over it, along the grid's own axes, so that a
rotation is as good as none. They are read from a level of the pyramid whose pixels are about as far apart as they are
(Williams, "Pyramidal parametrics", 1983; `pyramid.py`). Footprints are constants for the gradient: it has the points
move with the grid, and not spread.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Footprint', 'footprint', 'part']

MOST = 3  # points along each axis: with 2, a zone plate is 30 dB from its reference, with 3, 36 dB, with 4, 37 dB
APART = 1.4  # pixels of their level between points, at most: up to there the finer level is nearer the reference
BLEND = 0.25  # octaves of the scale in which a level takes over from the finer one


class Footprint(NamedTuple):
    """Of a grid (N, *out, d) for an image with d axes."""
    count: int  # points along each axis
    steps: list[Tensor]  # (N, *out, d) for each axis of the grid that has any, in coordinates of the grid
    squares: list[Tensor]  # (N, *out), their squared lengths in pixels

    @property
    def points(self) -> int:
        """How many there are for each output pixel."""
        return int(self.count ** len(self.steps))

    def level(self, top: int) -> Tensor:
        """Level (N, 1, *out) from 0 to `top` to read each point from; a fraction where two are blended.

        It follows the root mean square of the steps.
        """
        square = torch.stack(self.squares).mean(0)
        octaves = (torch.log2(square.clamp(min=1)) / 2 - torch.log2(square.new_tensor(APART * self.count))).clamp(min=0)
        whole = octaves.floor()
        return (whole + ((octaves - whole) / BLEND).clamp(max=1)).clamp(max=top).unsqueeze(1)

    def spread(self, grid: Tensor, level: int) -> Tensor:
        """`grid` with `points` points for each of its own, one grid below the other: (N, points * out[0], ..., d).

        A pixel of the level has an extent of its own. So it is left out of the footprint's: one of a pixel is a point.
        """
        grids = grid.unsqueeze(1)
        for step, square in zip(self.steps, self.squares):
            apart = (step * (1 - 4 ** level / square).relu().sqrt().unsqueeze(-1) / self.count).unsqueeze(1)
            grids = torch.cat([grids + (i - (self.count - 1) / 2) * apart for i in range(self.count)], 1)
        return grids.flatten(1, 2)

    def mean(self, values: Tensor, scale: float = 1.0) -> Tensor:
        """(N, C, *out) of `values` at the points of `spread`, times `scale`."""
        if self.points > 1:
            values = values.reshape(*values.shape[:2], self.points, -1, *values.shape[3:]).sum(2)
        return values * (scale / self.points)


def footprint(grid: Tensor, size: Sequence[int]) -> Footprint:
    """Of the points of `grid` for an image of `size`.

    It has as many points along each axis as pixels come on an output pixel, from 1 to MOST.
    """
    axes = [axis for axis in range(1, grid.ndim - 1) if grid.shape[axis] > 1]
    count = min(MOST, max([1, *(int(size[axis - 1]) // int(grid.shape[axis]) for axis in axes)]))
    half = grid.new_tensor([n / 2 for n in reversed(size)])
    nearer = [_nearer(grid.detach(), axis, half) for axis in axes]
    return Footprint(count, [step for step, _ in nearer], [square for _, square in nearer])


def _nearer(grid: Tensor, axis: int, half: Tensor) -> tuple[Tensor, Tensor]:
    """The step between every point and the nearer of its two neighbours along `axis`, and its square in pixels.

    The nearer one, because a grid may hold several glimpses side by side, and points far outside.
    """
    step = grid[part(axis, 1, None)] - grid[part(axis, None, -1)]
    square = (step * half).square().sum(-1)
    steps, squares = ((torch.cat([x[part(axis, None, 1)], x], axis), torch.cat([x, x[part(axis, -1, None)]], axis))
                      for x in (step, square))
    nearer = torch.minimum(*squares)
    return torch.where((squares[0] == nearer).unsqueeze(-1), *steps), nearer


def part(axis: int, *limits: int | None) -> tuple[slice, ...]:
    """The index of a part along `axis`."""
    return (*[slice(None)] * axis, slice(*limits))
