"""The interpolation kernel of `timm_stn.geometry.sampler`: the fastest implementation for each mode of execution.

Eager mode and exported programs use torch's own kernel. `torch.compile` on a CPU would decompose that kernel, which is
3 to 4 times slower. So there the kernel is wrapped in a custom operator. Forward-mode differentiation has no rule for
it, and uses a sum over pixels.
"""
import torch
from torch import Tensor

from ..._torch import in_forward_mode
from ..programs import is_exporting
from . import composed, opaque

__all__ = ['interpolate']

KERNELS = {'bilinear': 0, 'bicubic': 2}
PADDINGS = {'zeros': 0, 'border': 1, 'reflection': 2}


def interpolate(image: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """Values of `image` (N, C, *size) at the points of `grid` (N, *out, len(size)), half-pixel centres.

    Both must have one dtype, float32 or float64, and finite coordinates: torch's kernels access memory out of
    bounds for NaN, and for half precision on a CPU.
    """
    kernel, padding = KERNELS[mode], PADDINGS[padding_mode]
    if in_forward_mode():
        return composed.grid_sampler(image, grid, kernel, padding)
    if torch.compiler.is_compiling() and not is_exporting() and image.device.type == 'cpu':
        return opaque.grid_sampler(image, grid, kernel, padding)
    return torch.grid_sampler(image, grid, kernel, padding, False)
