"""The code that reads pixels, behind `timm_stn.geometry.sampler`: one function, the fastest way for each place.

Eagerly, and in exported programs, that is torch's own kernel. Compiled for the CPU it would be torch's decomposition
of that kernel, 3 to 4 times slower than the kernel itself, so there the kernel is kept whole as a custom operator.
"""
import torch
from torch import Tensor

from . import opaque

__all__ = ['interpolate']

KERNELS = {'bilinear': 0, 'bicubic': 2}
PADDINGS = {'zeros': 0, 'border': 1, 'reflection': 2}

# torch 2.6 cannot tell an export from a compilation: there, both take torch's own operator.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: True)


def interpolate(image: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """Values of `image` (N, C, *size) at the points of `grid` (N, *out, len(size)), half-pixel centres.

    Both are of one dtype, float32 or float64, and the coordinates are finite: torch's kernels read and write out of
    bounds with half precision on a CPU, and with NaN.
    """
    kernel, padding = KERNELS[mode], PADDINGS[padding_mode]
    if torch.compiler.is_compiling() and not _is_exporting() and image.device.type == 'cpu':
        return opaque.grid_sampler(image, grid, kernel, padding)
    return torch.grid_sampler(image, grid, kernel, padding, False)
