"""The footprint of each point of a grid: the part of an image that an output pixel stands for.

It is the parallelogram (a box in a volume) that the steps to the nearer neighbours along the axes of the grid span. Its
mean is taken by supersampling: of a few points that are spread evenly over it, along the grid's own axes, so that a
rotation is as good as none. They are read from a level of the pyramid (`pyramid.py`) whose pixels are about as far
apart as they are. Footprints are constants for the gradient: it moves their points with the grid, and does not spread
them.
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .programs import is_exporting

__all__ = ['Footprint', 'footprint', 'part']

# Measured against supersampling, 448 -> 64, on the worst of zone plate, checkerboard and pink noise.
MOST = 3  # points along each axis, at most: 2 are 30 to 32 dB from the reference, 3 are 36 dB, 4 are 36 to 37 dB
APART = 1.4  # pixels of their level between points, at most: up to there, the finer level is nearer to the reference
BLEND = 0.125  # octaves of scale in which a level takes over from the finer one, where both are read; 1 for one point


class Footprint(NamedTuple):
    """Of a grid (N, *out, d) for an image with d axes; coordinates come first here."""
    per_axis: int  # points
    places: Tensor  # (d, N, *out), the grid
    steps: list[Tensor]  # (d, N, *out) for each axis of the grid that has any
    squares: list[Tensor]  # (N, *out), the squared lengths of the steps in pixels

    @property
    def points(self) -> int:
        """How many there are for each output pixel."""
        return int(self.per_axis ** len(self.steps))

    @property
    def square(self) -> Tensor:
        """Mean of `squares` over the axes (N, *out)."""
        return sum(self.squares[1:], self.squares[0]) / len(self.squares)

    def level(self, square: Tensor) -> Tensor:
        """The level, from 0, to read points of such `square` from; a fraction where two are blended."""
        octaves = (torch.log2(square.clamp(min=1)) - 2 * math.log2(APART * self.per_axis)).clamp(min=0) / 2
        whole = octaves.floor()
        return whole + ((octaves - whole) / (BLEND if self.per_axis > 1 else 1)).clamp(max=1)

    def chosen(self, index: Tensor) -> 'Footprint':
        """Those of the output pixels `index` alone, counted row by row: their shape is (K, 1) or (K, 1, 1) for *out."""
        first, last = self.places.ndim - len(self.places), [1] * (len(self.places) - 1)

        def pick(x: Tensor) -> Tensor:
            start = first + x.ndim - self.places.ndim
            every = index.expand(*x.shape[:start], -1)  # gather is many times as fast as index_select here
            return x.flatten(start).gather(start, every).reshape(*x.shape[:start], -1, *last)

        return Footprint(self.per_axis, pick(self.places), [pick(x) for x in self.steps],
                         [pick(x) for x in self.squares])

    def reach(self) -> Tensor:
        """How far from the centre points may be (d,), in coordinates of the grid."""
        outermost = 0.5 - 0.5 / self.per_axis  # steps from the middle of a footprint
        far = [x.detach().flatten(1).abs().amax(1) for x in (self.places, *self.steps)]
        return sum((outermost * x for x in far[1:]), far[0])

    def spread(self, level: int, scale: Sequence[float] | None = None) -> Tensor:
        """All points, as one grid below the other: (N, points * out[0], *out[1:], d).

        A pixel of the level has an extent of its own, which is left out of the footprint's: one of a pixel is a point.
        `scale` is a factor of the coordinates along each axis of the image, in their order.
        """
        places, steps = self.places, self.steps
        if scale is not None:
            factor = places.new_tensor(scale).view(-1, *[1] * (places.ndim - 1))
            places, steps = places * factor, [step * factor for step in steps]
        points = places.flatten(2).unsqueeze(2)  # (d, N, points, pixels), for exporters that know 5 dimensions at most
        among = places.new_tensor([(i + 0.5) / self.per_axis - 0.5 for i in range(self.per_axis)]).unsqueeze(1)
        for step, square in zip(steps, self.squares) if self.per_axis > 1 else ():
            share = ((square - 4 ** level).clamp(min=0) / square.clamp(min=1)).sqrt()
            offsets = among * (step * share).flatten(2).unsqueeze(2)
            points = (points.unsqueeze(3) + offsets.unsqueeze(2)).flatten(2, 3)
        batch, rows = places.shape[1:3]
        points = points.reshape(len(points), batch, self.points * rows, *places.shape[3:])
        return points.permute(*range(1, points.ndim), 0)

    def mean(self, values: Tensor, scale: float) -> Tensor:
        """(N, C, *out) of `values` at the points of `spread`, times `scale`."""
        if self.points > 1:
            values = values.reshape(*values.shape[:2], self.points, *self.places.shape[2:]).sum(2)
        return values * (scale / self.points)


def footprint(grid: Tensor, size: Sequence[int]) -> Footprint:
    """Of the points of `grid` (N, *out, d) for an image of `size`.

    It has about as many points along each axis as pixels come on an output pixel by their numbers, from 1 to MOST. The
    values of the grid have no part in that, so that programs do the same.
    """
    axes = [axis for axis in range(1, grid.ndim - 1) if grid.shape[axis] > 1]
    per_axis = min(MOST, max([1, *(round(int(size[axis - 1]) / int(grid.shape[axis])) for axis in axes)]))
    half = grid.new_tensor([n / 2 for n in reversed(size)]).view(-1, *[1] * (grid.ndim - 1))
    places = grid.permute(-1, *range(grid.ndim - 1))
    if not is_exporting():
        places = places.contiguous()  # twice as fast to step through
    nearer = [_nearer(places.detach(), axis + 1, half) for axis in axes]
    return Footprint(per_axis, places, [step for step, _ in nearer], [square for _, square in nearer])


def _nearer(places: Tensor, axis: int, half: Tensor) -> tuple[Tensor, Tensor]:
    """The step between every point and the nearer of its two neighbours along `axis`, and its square in pixels.

    The nearer one, because a grid may hold several glimpses side by side, and points far outside.
    """
    step = places[part(axis, 1, None)] - places[part(axis, None, -1)]
    step = torch.cat([step[part(axis, None, 1)], step, step[part(axis, -1, None)]], axis)
    square = (step * half).square().sum(0)
    before, after = square[part(axis - 1, None, -1)], square[part(axis - 1, 1, None)]
    nearer = torch.where(before <= after, step[part(axis, None, -1)], step[part(axis, 1, None)])
    return nearer, torch.minimum(before, after)


def part(axis: int, *limits: int | None) -> tuple[slice, ...]:
    """The index of a part along `axis`."""
    return (*[slice(None)] * axis, slice(*limits))
