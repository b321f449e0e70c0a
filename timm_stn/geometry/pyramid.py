"""Anti-aliased sampling from an image pyramid, at a level that follows the local scale of the grid.

A bilinear or bicubic kernel reads 2 or 4 pixels, however far apart the samples are. So it aliases where the grid
shrinks an image (the paper notes this in section 3.4). Level l of the pyramid is the image averaged over cells of 2^l
pixels. A point whose neighbours in the grid are s pixels away is interpolated between the two levels around log2(s).
"""
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from . import kernels
from .grid import has_values
from .programs import is_exporting, of_one_size

__all__ = ['halve', 'interpolate', 'levels']

# Levels are finer than log2(scale) by this: the best measured trade-off of detail and aliasing, on photos and noise.
SHARPEN = 0.4


def interpolate(image: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """As `kernels.interpolate`, averaged over the footprint of each point. The levels get no gradient."""
    if is_exporting():
        image = of_one_size(image, 'antialias=True')
    size = [int(n) for n in image.shape[2:]]
    level = levels(grid.detach(), size)
    first, last = _span(level, size)
    for _ in range(first):
        image = halve(image)
    values = kernels.interpolate(image, grid, mode, padding_mode)
    for i in range(first + 1, last + 1):
        image = halve(image)
        share = (level - i + 1).clamp(0, 1)  # weight of this level against the finer ones
        coarser = kernels.interpolate(image, grid, mode, padding_mode)
        values = _mix(values, coarser, share)
    return values


def _mix(fine: Tensor, coarse: Tensor, share: Tensor) -> Tensor:
    if is_exporting():  # to where torch.lerp is unknown
        return fine + share * (coarse - fine)
    return torch.lerp(fine, coarse, share)


def levels(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Fractional pyramid level (N, 1, *out), from 0, of each point of `grid` for an image of `size`.

    It follows the distance in pixels to the nearer neighbour, root mean square over the axes of the grid.
    """
    pixels = grid * grid.new_tensor([n / 2 for n in reversed(size)])
    axes = [axis for axis in range(1, grid.ndim - 1) if grid.shape[axis] > 1]
    steps = [_steps(pixels, axis) for axis in axes]
    if not steps:
        return torch.zeros_like(grid[..., 0]).unsqueeze(1)
    square = torch.stack(steps).mean(0).clamp(min=1)
    return (torch.log2(square) / 2 - SHARPEN).clamp(0, _top(size)).unsqueeze(1)


def _steps(pixels: Tensor, axis: int) -> Tensor:
    """Squared distance of every point to the nearer of its two neighbours along `axis`.

    The nearer one, because a grid may hold several glimpses side by side, and points far outside.
    """
    square = (pixels[_part(axis, 1, None)] - pixels[_part(axis, None, -1)]).square().sum(-1)
    before = torch.cat([square[_part(axis, None, 1)], square], axis)
    after = torch.cat([square, square[_part(axis, -1, None)]], axis)
    return torch.minimum(before, after)


def _part(axis: int, *limits: int | None) -> tuple[slice, ...]:
    """The index of a part along `axis`."""
    return (*[slice(None)] * axis, slice(*limits))


def _top(size: Sequence[int]) -> int:
    """The level with a single pixel."""
    return (int(max(size)) - 1).bit_length()


def _span(level: Tensor, size: Sequence[int]) -> tuple[int, int]:
    """First and last level in use; all levels if the values are unknown."""
    if not has_values(level):
        return 0, _top(size)
    if level.numel() == 0:
        return 0, 0
    low, high = torch.aminmax(level)
    return int(low), int(high.ceil())


def halve(image: Tensor) -> Tensor:
    """The next level: `image` (N, C, *size) averaged over pairs of pixels along each axis, rows first."""
    return reduce(_halve_axis, range(2, image.ndim), image)


def _halve_axis(image: Tensor, axis: int) -> Tensor:
    """Averages over n // 2 cells of equal extent. For odd n, neighbouring cells share pixels by area."""
    n = int(image.shape[axis])
    if n == 1:
        return image
    even, odd = (image[_part(axis, start, 2 * (n // 2), 2)] for start in (0, 1))
    if n % 2 == 0:
        return (even + odd) / 2
    m = n // 2
    share = torch.arange(m, device=image.device, dtype=image.dtype).view(-1, *[1] * (image.ndim - 1 - axis)) / m
    after = image[_part(axis, 2, None, 2)]
    return (even * (1 - share) + odd + after * (share + 1 / m)) * (m / n)
