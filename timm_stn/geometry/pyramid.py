"""Anti-aliased sampling: the mean over the footprint of each point, read from an image pyramid.

A bilinear or bicubic kernel reads 2 or 4 pixels, however far apart the samples are. So it aliases where the grid
shrinks an image (the paper notes this in section 3.4). The mean over a footprint (`footprint.py`) of many pixels would
take as many points. Level l of a pyramid is the image averaged over cells of 2^l pixels (Williams, "Pyramidal
parametrics", 1983): there, a few points see all of it. One point alone would see the cells of a level, which are not
turned as the grid is, nor of its scale.
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
    """As `kernels.interpolate`, averaged over the footprint of each point, which is a constant for the gradient.

    Of several levels, each is read only at the output pixels that have a share in it, in any image of the batch.
    """
    if is_exporting():
        image = of_one_size(image, 'antialias=True')
    size = [int(n) for n in image.shape[2:]]
    seen = footprint(grid, size)
    first, last, framed = _extent(seen, size, padding_mode)
    if last < 0:
        return kernels.interpolate(image, grid, mode, padding_mode)
    level = seen.level(seen.square).clamp(max=last) if first < last else None
    values = None
    for i in range(last + 1):
        if i > 0:
            image = halve(image, framed and i > 1, framed)
        if i < first:
            continue
        scale = [1 - 2 / int(n) for n in reversed(image.shape[2:])] if framed and i > 0 else None
        share = None if level is None else (1 - (level - i).abs()).clamp(min=0)
        index = None if share is None or not has_values(share) else share.flatten(1).amax(0).nonzero().squeeze(1)
        chosen = seen if index is None else seen.chosen(index)
        found = kernels.interpolate(image, chosen.spread(i, scale), mode, padding_mode)
        found = chosen.mean(found, 2.0 ** (-i * len(size)))
        values = found if share is None else _add(values, found, share.unsqueeze(1), index)
    assert values is not None
    return values


def _add(values: Tensor | None, found: Tensor, share: Tensor, index: Tensor | None) -> Tensor:
    """`values` (N, C, *out) and, with its `share` (N, 1, *out), what a level has at the output pixels of `index`."""
    if index is None:
        return found * share if values is None else values + found * share
    if values is None:
        values = found.new_zeros(*found.shape[:2], *share.shape[2:])
    found = found.flatten(2) * share.flatten(2).gather(2, index.expand(len(share), 1, -1))
    return values.flatten(2).index_add(2, index, found).reshape(values.shape)


def _extent(seen: Footprint, size: Sequence[int], padding_mode: str) -> tuple[int, int, bool]:
    """First and last level in use, and whether they need a frame (see `halve`); last = -1 if nothing shrinks.

    All levels, framed for `'border'`, if the values are unknown.
    """
    top, border = (max(size) - 1).bit_length(), padding_mode == 'border'  # at the top, there is a single pixel
    if not seen.steps:
        return 0, -1, False
    if not has_values(seen.places):
        return 0, top, border
    if seen.places.numel() == 0:
        return 0, -1, False
    facts = [seen.level(torch.stack(seen.square.aminmax())), torch.stack([square.amax() for square in seen.squares])]
    if border:
        facts.append(seen.reach().flip(0))
    low, high, *found = torch.cat(facts).tolist()  # a device is waited for, once
    squares, reach = found[:len(seen.squares)], found[len(seen.squares):]
    first, last = min(int(low), top), min(math.ceil(high), top)
    return first, last if max(squares) > 1 else -1, any(x > 1 - 2 ** last / n for x, n in zip(reach, size))


def halve(image: Tensor, framed: bool = False, frame: bool = False) -> Tensor:
    """The next level, times 2 for each axis: `image` (N, C, *size) added up over pairs of pixels along each axis.

    Args:
        framed: The outermost pixels of `image` are a frame.
        frame: Put a frame around the level: the border, which the level's own pixels have only in a mean with others.
            With `padding_mode='border'` it goes on outside.
    """
    return _halve(image, 2, framed, frame)


def _halve(image: Tensor, axis: int, framed: bool, frame: bool) -> Tensor:
    """From `axis` on, rows first."""
    if axis == image.ndim:
        return image
    inner = _halve_axis(image[part(axis, 1, -1)] if framed else image, axis)
    inner = _halve(inner, axis + 1, framed, frame)
    if not frame:
        return inner
    start, end = (_halve(2 * image[part(axis, *limits)], axis + 1, framed, frame) for limits in ((None, 1), (-1, None)))
    return torch.cat([start, inner, end], axis)


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
