"""Samples images at given coordinates: kernels, padding, fill, anti-aliasing (section 3.3 of the paper).

Convention: `image` is (N, C, H, W) or (N, C, D, H, W); `grid` is (N, h, w, 2) or (N, d, h, w, 3) and holds, for every
output pixel, the point of the image to read: xy(z) in [-1, 1] with half-pixel centres.
"""
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import kernels, pyramid
from .grid import cast, coordinate_dtype, is_traced, to_pixels
from .layout import like
from .symbolic import recorded_call

__all__ = ['MODES', 'PADDING_MODES', 'Fill', 'Sampling', 'sample']

MODES = ('bilinear', 'bicubic', 'nearest')
PADDING_MODES = ('border', 'zeros', 'reflection', 'fill')
Fill = float | Sequence[float] | Tensor | None

# Coordinates are clamped to FAR, far outside every image but safe from overflow. NOWHERE reflects to the first pixel.
FAR = 1e4
NOWHERE = -5.


class Sampling(NamedTuple):
    """How an image is read between and beyond its pixels; see `sample`."""
    mode: str = 'bilinear'
    padding_mode: str = 'border'
    fill: Fill = None
    antialias: bool = False

    def check(self, image: Tensor) -> None:
        """Raise a ValueError or TypeError for an image and options that do not go together."""
        mode, padding_mode, fill, antialias = self
        if not isinstance(image, Tensor):
            raise TypeError(f'image must be a tensor, got {type(image).__name__}')
        if image.ndim not in (4, 5) or 0 in image.shape[2:]:
            raise ValueError(
                f'image must be (N, C, H, W) or (N, C, D, H, W) with pixels, got shape {tuple(image.shape)}')
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        if padding_mode not in PADDING_MODES:
            raise ValueError(f'padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}')
        if mode == 'bicubic' and image.ndim == 5:
            raise ValueError(
                "mode='bicubic' is for images (N, C, H, W); volumes take 'bilinear' (trilinear) or 'nearest'")
        if mode == 'nearest' and antialias:
            raise ValueError("antialias=True needs mode 'bilinear' or 'bicubic', got 'nearest'")
        if mode != 'nearest' and not image.is_floating_point():
            raise TypeError(
                f"image of dtype {image.dtype} needs mode='nearest', got {mode!r}; or convert it to floats")
        if fill is not None or padding_mode == 'fill':
            _check_fill(padding_mode, fill, image.shape[1])

    def read(self, image: Tensor, grid: Tensor) -> Tensor:
        """As `sample`, without checks: for valid options and finite coordinates only."""
        if self.mode == 'nearest':
            return like(image, _nearest(image, grid, self.padding_mode, self.fill))
        dtype, padding_mode = coordinate_dtype(image.dtype), self.padding_mode
        pixels, grid = cast(image, dtype), grid.to(dtype)
        color = _color(image, self.fill, dtype) if padding_mode == 'fill' else None
        if color is not None:  # subtract the fill colour, so that padding is zero
            pixels, padding_mode = pixels - color, 'zeros'
        interpolate = pyramid.interpolate if self.antialias else kernels.interpolate
        values = interpolate(pixels, grid, self.mode, padding_mode)
        return like(image, values if color is None else values + color)


@recorded_call
def sample(
        image: Tensor,
        grid: Tensor,
        mode: str = 'bilinear',
        padding_mode: str = 'border',
        fill: Fill = None,
        antialias: bool = False,
) -> Tensor:
    """Read `image` at the points of `grid`: (N, C, *out), in the image's dtype and memory format.

    Coordinates and half-precision pixels are computed in float32 (float64 for float64 images). Coordinates may be
    infinite (far outside on that side) or NaN (far outside to the left, top, front). There, `'zeros'` and `'fill'` give
    their value, `'border'` the nearest edge, `'reflection'` some pixel of the image. The gradient to such a coordinate
    is exactly 0.

    Args:
        image: (N, C, H, W) or (N, C, D, H, W); integers and bool only with `mode='nearest'`.
        grid: (N, *out, 2 or 3), points in xy(z) order.
        mode: `'bilinear'` (trilinear for volumes), `'bicubic'` (a = -0.75, images only), or `'nearest'`, the integer
            kernel of the paper: pixel floor(x + 0.5), without gradient to the grid.
        padding_mode: values outside the image: `'border'` the nearest edge pixel, `'zeros'`, `'reflection'` at the
            outer edges of the edge pixels, `'fill'` the colour `fill`.
        fill: one number, or one per channel; only for `padding_mode='fill'`.
        antialias: where the grid shrinks the image, average over each output pixel's footprint: up to 3 points along
            each axis of the grid, read from a level of an image pyramid that follows the grid's local scale. Elsewhere,
            plain sampling. The footprint is a constant for the gradient.

    Raises:
        ValueError: for shapes or options other than these.
        TypeError: for integer or bool images with an interpolating mode, or integer coordinates.
    """
    sampling = Sampling(mode, padding_mode, fill, antialias)
    sampling.check(image)
    _check_grid(image, grid)
    return sampling.read(image, grid.to(coordinate_dtype(image.dtype)).clamp(-FAR, FAR).nan_to_num(NOWHERE))


def _nearest(image: Tensor, grid: Tensor, padding_mode: str, fill: Fill) -> Tensor:
    """The integer kernel (eq. 4 of the paper), for any dtype. Its gradient to the grid is zero."""
    index: Any = 0
    within: list[Tensor] = []
    for n, coords in zip(image.shape[2:], grid.unbind(-1)[::-1]):
        pixel = torch.floor(to_pixels(coords, n) + 0.5).long()
        within += [pixel >= 0, pixel < n]
        if padding_mode == 'reflection':
            pixel = torch.remainder(pixel, 2 * n)
            pixel = torch.minimum(pixel, 2 * n - 1 - pixel)
        index = index * n + pixel.clamp(0, n - 1)
    values = image.flatten(2).gather(2, index.flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1))
    values = values.view(*image.shape[:2], *grid.shape[1:-1])
    if padding_mode in ('zeros', 'fill'):
        inside = reduce(torch.logical_and, within)
        values = torch.where(inside.unsqueeze(1), values, _color(image, 0 if fill is None else fill, image.dtype))
    if (grid.requires_grad or is_traced()) and image.is_floating_point():  # a trace is compared with one without grad
        values = values + torch.zeros_like(grid).mul(grid).sum(-1).unsqueeze(1).to(image.dtype)
    return values


def _color(image: Tensor, fill: Fill, dtype: torch.dtype) -> Tensor:
    color = torch.as_tensor(fill, dtype=dtype, device=image.device)
    return color.reshape(-1, *[1] * (image.ndim - 2))


def _check_fill(padding_mode: str, fill: Fill, channels: int) -> None:
    if padding_mode != 'fill' or fill is None:
        raise ValueError(f"fill and padding_mode='fill' go together, got fill={fill!r}, padding_mode={padding_mode!r}")
    try:
        values = torch.as_tensor(fill)
        count = 0 if values.is_complex() else values.numel()
    except (RuntimeError, TypeError, ValueError):  # no numbers
        count = 0
    if count not in (1, channels):
        raise ValueError(f'fill must be one number or {channels}, one for each channel, got {fill!r}')


def _check_grid(image: Tensor, grid: Tensor) -> None:
    ndim = image.ndim - 2
    if grid.ndim != image.ndim or grid.shape[-1] != ndim or grid.shape[0] != image.shape[0]:
        expected = f'({image.shape[0]}, {"h, w" if ndim == 2 else "d, h, w"}, {ndim})'
        raise ValueError(
            f'grid must be {expected} for an image of shape {tuple(image.shape)}, got shape {tuple(grid.shape)}')
    if not grid.is_floating_point():
        raise TypeError(f'grid must hold floating-point coordinates, got {grid.dtype}')
