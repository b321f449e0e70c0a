"""Anti-aliased sampling: the mean over the footprint of each point, read from an image pyramid.

A bilinear or bicubic kernel reads 2 or 4 pixels, however far apart the samples are. So it aliases where the grid
shrinks an image (the paper notes this in section 3.4). Level l of the pyramid is the image averaged over cells of 2^l
pixels (Williams, "Pyramidal parametrics", 1983), where a few points see all of a footprint: `footprint.py`. One level
alone, with one point, is blurred or aliased, as its cells are none of the footprint's.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import kernels
from .footprint import Footprint, footprint, part
from .grid import has_values
from .programs import is_exporting, of_one_size

__all__ = ['halve', 'interpolate']


def interpolate(image: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """As `kernels.interpolate`, averaged over the footprint of each point. Footprints and levels get no gradient."""
    if is_exporting():
        image = of_one_size(image, 'antialias=True')
    size = [int(n) for n in image.shape[2:]]
    seen = footprint(grid, size)
    if not seen.steps:
        return kernels.interpolate(image, grid, mode, padding_mode)
    first, last, shrinks, framed = _extent(seen, size, padding_mode)
    if not shrinks:
        return kernels.interpolate(image, grid, mode, padding_mode)
    level = seen.level(seen.square).unsqueeze(1) if first < last else None
    values = None
    for i in range(last + 1):
        if i > 0:
            image = halve(image, framed and i > 1, framed)
        if i < first:
            continue
        scale = [1 - 2 / int(n) for n in reversed(image.shape[2:])] if framed and i > 0 else None
        found = kernels.interpolate(image, seen.spread(i, scale), mode, padding_mode)
        found = seen.mean(found, 2. ** -(i * len(size)))
        values = found if level is None or values is None else _mix(values, found, (level - i + 1).clamp(0, 1))
    assert values is not None
    return values


def _mix(fine: Tensor, coarse: Tensor, share: Tensor) -> Tensor:
    if is_exporting():  # to where torch.lerp is unknown
        return fine + share * (coarse - fine)
    return torch.lerp(fine, coarse, share)


def _top(size: Sequence[int]) -> int:
    """The level with a single pixel."""
    return (int(max(size)) - 1).bit_length()


def _extent(seen: Footprint, size: Sequence[int], padding_mode: str) -> tuple[int, int, bool, bool]:
    """First and last level in use, whether the grid shrinks anything, and whether levels need a frame: see `halve`.

    All levels, and yes, if the values are unknown.
    """
    top, border = _top(size), padding_mode == 'border'
    if not has_values(seen.places):
        return 0, top, True, border
    if seen.places.numel() == 0:
        return 0, 0, False, False
    facts = [seen.level(torch.stack(seen.square.aminmax())), torch.stack([square.amax() for square in seen.squares])]
    if border:
        facts.append(seen.reach().flip(0))
    values = torch.cat(facts).tolist()  # the one time that a device is waited for
    first, last = min(int(values[0]), top), min(math.ceil(values[1]), top)
    squares, far = values[2:2 + len(seen.squares)], values[2 + len(seen.squares):]
    return first, last, max(squares) > 1, any(x > 1 - 2 ** last / n for x, n in zip(far, size))


def halve(image: Tensor, framed: bool = False, border: bool = False) -> Tensor:
    """The next level, times 2 for each axis: `image` (N, C, *size) summed over pairs of pixels along each axis.

    Args:
        framed: The outermost pixels of `image` are the border, which goes on outside.
        border: Frame the level so: it knows the colours of the very edge, which its own outermost pixels do not.
    """
    return _halve(image, 2, framed, border)


def _halve(image: Tensor, axis: int, framed: bool, border: bool) -> Tensor:
    """From `axis` on."""
    if axis == image.ndim:
        return image
    inner = image[part(axis, 1, -1)] if framed else image
    inner = _halve(_halve_axis(inner, axis), axis + 1, framed, border)
    if not border:
        return inner
    ends = [_halve(2 * image[part(axis, *limits)], axis + 1, framed, border) for limits in ((None, 1), (-1, None))]
    return torch.cat([ends[0], inner, ends[1]], axis)


def _halve_axis(image: Tensor, axis: int) -> Tensor:
    """Twice the averages over n // 2 cells of equal extent. For odd n, neighbouring cells share pixels by area."""
    n = int(image.shape[axis])
    if n == 1:
        return 2 * image
    even, odd = (image[part(axis, start, 2 * (n // 2), 2)] for start in (0, 1))
    if n % 2 == 0:
        return even + odd
    m = n // 2
    share = torch.arange(m, device=image.device, dtype=image.dtype).view(-1, *[1] * (image.ndim - 1 - axis)) / m
    after = image[part(axis, 2, None, 2)]
    return (even * (1 - share) + odd + after * (share + 1 / m)) * (2 * m / n)
