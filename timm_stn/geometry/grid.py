"""The output lattice and the coordinate conventions. Half-pixel centres are defined only here.

Coordinates are in [-1, 1] over the *area* of an image, as in `torch.nn.functional.grid_sample(align_corners=False)`:
-1 and 1 are the outer edges of the first and the last pixel, and pixel `i` of `n` has its centre at (2 i + 1) / n - 1.
Points are in xy order (xyz for volumes), sizes in torch's order: (H, W) or (D, H, W).
"""
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .._torch import in_forward_mode, in_make_fx

__all__ = ['cast', 'centers', 'coordinate_dtype', 'from_pixels', 'has_values', 'is_traced', 'lattice', 'to_pixels']


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates for pixels or parameters of `dtype`: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_traced() -> bool:
    """Whether `torch.jit.trace` records operators."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call, no-any-return]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, which a trace does not take for `x` where it is: `type_as(x)` is right once the trace is cast."""
    return (x.view(x.shape) if is_traced() else x).to(dtype)


def has_values(x: Tensor) -> bool:
    """Whether Python can read the values of `x` and keep it.

    False in traced programs, inside `torch.func`, and in forward-mode differentiation.
    """
    if torch.compiler.is_compiling() or is_traced():
        return False
    if in_forward_mode() or in_make_fx() or isinstance(x, fx.Proxy):
        return False
    try:
        x.data_ptr()
    except RuntimeError:  # wrapper tensors of `torch.func` and `torch.vmap` have no memory
        return False
    return True


def centers(n: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Centres (n,) of `n` pixels in [-1, 1]; float32 by default."""
    return torch.arange(1 - n, n, 2, device=device, dtype=dtype or torch.float32) / n


def lattice(
        size: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
) -> Tensor:
    """Centres (*size, len(size)) of all pixels of an image or volume, coordinates in xy(z) order."""
    axes = [centers(n, device, dtype) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing='ij')[::-1], dim=-1)


def to_pixels(coords: Tensor, n: int) -> Tensor:
    """Fractional pixel indices (0 is the centre of the first pixel) of coordinates along an axis of `n` pixels."""
    return ((coords + 1) * n - 1) / 2


def from_pixels(pixels: Tensor, n: int) -> Tensor:
    """Coordinates in [-1, 1] of (fractional) pixel indices along an axis of `n` pixels; inverse of `to_pixels`."""
    return (2 * pixels + 1) / n - 1
