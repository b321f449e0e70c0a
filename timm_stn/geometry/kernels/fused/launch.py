"""Calls of the fused kernels: what they are given, and into how many programs the work is cut."""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ...layout import empty_like
from .forward import warp_forward
from .image import cells, gather
from .theta import warp_theta

__all__ = ['forward', 'image_gradient', 'theta_gradient']

PROGRAMS = 2048  # of 128 threads: enough for the largest GPUs
STEPS = 4  # tiles a program, where there are enough
AT_ONCE = 8  # entries of a list


class Cut(NamedTuple):
    """An output in tiles of height x width x channels; `parts` programs share the channels of a tile."""
    height: int
    width: int
    channels: int
    tiles: int
    parts: int
    share: int

    @property
    def constants(self) -> dict[str, int]:
        return dict(T_H=self.height, T_W=self.width, C=self.channels)


def cut(image: Tensor, outputs: int, size: Sequence[int]) -> Cut:
    """Tiles of 128 values, one a thread; of 512 where 16 channels lie side by side, which a thread reads by four."""
    channels, side_by_side = image.shape[1], image.stride(1) == 1
    together = 1 if not side_by_side else 16 if channels % 16 == 0 else min(next_power_of_2(channels), 4)
    pixels = 32 if together == 16 else 128 // together
    width = 32 if size[1] > 64 and pixels > 32 else 16
    height = pixels // width
    tiles = cdiv(size[0], height) * cdiv(size[1], width)
    blocks = cdiv(channels, together)
    parts = min(blocks, cdiv(PROGRAMS, outputs * tiles))
    share = cdiv(blocks, parts) * together
    return Cut(height, width, together, tiles, cdiv(channels, share), share)


def forward(image: Tensor, at: Tensor, size: Sequence[int], padding: int, fill: Tensor | None = None) -> Tensor:
    """The warped image (M, C, *size) of `image` (N, C, H, W), in its memory format; see `warp_operator`."""
    out = empty_like(image, (at.shape[0], image.shape[1], *size))
    if out.numel():
        part = cut(image, len(at), size)
        with torch.cuda.device_of(image):  # where Triton launches
            warp_forward[len(at) * part.tiles, part.parts](
                image, at, colors(image, fill), out, *image.shape[1:], *size, len(at) // len(image),
                part.tiles, part.share, *scales(image, size), *image.stride(), *strides(at), *out.stride(),
                ROWS=rows(at), PADDING=padding, FILL=fill is not None, **part.constants)
    return out


def theta_gradient(
        grad: Tensor, image: Tensor, at: Tensor, size: Sequence[int], padding: int, fill: Tensor | None = None,
) -> Tensor:
    """The gradient of `forward` to `at`, of its shape."""
    if not grad.numel():
        return at.new_zeros(at.shape)
    part = cut(image, len(at), size)
    steps = STEPS if len(at) * part.tiles >= STEPS * PROGRAMS and rows(at) else 1
    groups = cdiv(part.tiles, steps)
    shape = (len(at), groups * part.parts, 3 * rows(at)) if rows(at) else (part.parts, *at.shape)
    out = at.new_empty(shape)
    with torch.cuda.device_of(image):  # where Triton launches
        warp_theta[len(at) * groups, part.parts](
            grad, image, at, colors(image, fill), out, *image.shape[1:], *size, len(at) // len(image),
            part.tiles, groups, part.share, *scales(image, size), *grad.stride(), *image.stride(), *strides(at),
            ROWS=rows(at), PADDING=padding, FILL=fill is not None, STEPS=steps, **part.constants)
    return out.sum(1 if rows(at) else 0).view_as(at)


def image_gradient(grad: Tensor, image: Tensor, at: Tensor, size: Sequence[int], padding: int) -> Tensor:
    """The gradient of `forward` to the image, of its shape and memory format."""
    out = empty_like(image, image.shape)
    if not out.numel() or not grad.numel():
        return out.zero_()
    n, channels, height, width = image.shape
    outputs, nowhere = grad.numel() // channels, n * (height + 1) * (width + 1)
    cell = grad.new_empty(outputs, dtype=torch.int32 if nowhere < 2 ** 31 else torch.int64)
    places = dict(ROWS=rows(at), PADDING=padding)
    pixels, together = 128, min(next_power_of_2(channels), 4)
    with torch.cuda.device_of(image):  # where Triton launches
        cells[(cdiv(outputs, pixels),)](
            at, cell, height, width, *size, len(at) // n, outputs, nowhere, *scales(image, size), *strides(at),
            P=pixels, **places)
        cell, order = cell.sort(stable=True)
        starts = torch.searchsorted(cell, torch.arange(nowhere + 1, dtype=cell.dtype, device=cell.device))
        pixels = 128 // AT_ONCE
        gather[cdiv(n * height * width, pixels), cdiv(channels, together)](
            grad, at, order, starts, out, n * height * width, channels, height, width, *size, *scales(image, size),
            *grad.stride(), *strides(at), *out.stride(), P=pixels, K=AT_ONCE, C=together, **places)
    return out


def colors(image: Tensor, fill: Tensor | None) -> Tensor:
    """`fill` side by side in memory; where there is none, anything, for no program reads it."""
    return image if fill is None else fill.contiguous()


def rows(at: Tensor) -> int:
    """The number of rows of matrices (M, 2, 3) or (M, 3, 3); 0 for a grid (M, *size, 2)."""
    return at.shape[1] if at.ndim == 3 else 0


def strides(at: Tensor) -> tuple[int, ...]:
    return (*at.stride(), 0)[:4]


def scales(image: Tensor, size: Sequence[int]) -> tuple[float, float, float, float]:
    (height, width), (out_height, out_width) = image.shape[2:], size
    return 1 / out_width, 1 / out_height, width / out_width, height / out_height
