"""The grid sampler as a sum over pixels, which forward-mode differentiation takes: torch's own kernel has no such rule.

It gathers 4 pixels for each point (8 of a volume, 16 for bicubic), so that it is slower and takes more memory.
"""
from itertools import product

import torch
from torch import Tensor

from ..grid import to_pixels

__all__ = ['grid_sampler']

ZEROS, BORDER, REFLECTION = 0, 1, 2  # torch's codes
BICUBIC = 2
A = -0.75  # of Keys' cubic kernel


def grid_sampler(image: Tensor, grid: Tensor, kernel: int, padding: int) -> Tensor:
    """`torch.grid_sampler` with half-pixel centres; `kernel` and `padding` are its integer codes."""
    size = image.shape[2:]
    weigh = _cubic if kernel == BICUBIC else _linear
    axes = [weigh(to_pixels(coords, n), n, padding) for n, coords in zip(size, grid.unbind(-1)[::-1])]
    pixels, values = image.flatten(2), None
    for taps in product(*axes):
        index, weight = taps[0]
        for n, (next_index, next_weight) in zip(size[1:], taps[1:]):
            index, weight = index * n + next_index, weight * next_weight
        found = pixels.gather(2, index.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1))
        term = found.reshape(*image.shape[:2], *grid.shape[1:-1]) * weight.unsqueeze(1)
        values = term if values is None else values + term
    assert values is not None
    return values


Taps = list[tuple[Tensor, Tensor]]  # index and weight of each pixel that is read along an axis


def _linear(x: Tensor, n: int, padding: int) -> Taps:
    """At positions x, in pixels."""
    if padding == REFLECTION:
        turns = (x.detach() + 0.5).div(n).floor()  # an even number of reflections at the outer edges, or an odd one
        x = torch.where(turns % 2 == 0, x - turns * n, (turns + 1) * n - 1 - x)
    if padding != ZEROS:
        x = x.clamp(0, n - 1)
    low = x.detach().floor()
    return [_tap(low, 1 - (x - low), n, padding), _tap(low + 1, x - low, n, padding)]


def _cubic(x: Tensor, n: int, padding: int) -> Taps:
    """At positions x, in pixels; the pixels are padded, not x."""
    low = x.detach().floor()
    t = x - low
    return [
        _tap(low - 1, _far(t + 1), n, padding), _tap(low, _near(t), n, padding),
        _tap(low + 1, _near(1 - t), n, padding), _tap(low + 2, _far(2 - t), n, padding)]


def _near(t: Tensor) -> Tensor:
    """The cubic kernel at distances up to 1."""
    return ((A + 2) * t - (A + 3)) * t * t + 1


def _far(t: Tensor) -> Tensor:
    """The cubic kernel at distances from 1 to 2."""
    return A * (((t - 5) * t + 8) * t - 4)


def _tap(position: Tensor, weight: Tensor, n: int, padding: int) -> tuple[Tensor, Tensor]:
    if padding == ZEROS:
        weight = torch.where((position >= 0) & (position < n), weight, 0.0)
    elif padding == REFLECTION:
        position = position.remainder(2 * n)
        position = torch.minimum(position, 2 * n - 1 - position)
    return position.clamp(0, n - 1).long(), weight
