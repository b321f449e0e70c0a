"""What an image shows at matrices or on a grid: by one operator on a GPU, else by a grid and the sampler."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import in_forward_mode
from .kernels.fused import INTERPRETED
from .operator import DTYPES, PADDINGS, warp_operator
from .programs import is_exporting
from .sampler import Fill, Sampling
from .transforms import matrix_grid

__all__ = ['is_fused', 'read_at']


def read_at(image: Tensor, at: Tensor, size: Sequence[int], sampling: Sampling, glimpses: int = 1) -> Tensor:
    """What is seen: (N, C, *size), or (N, G, C, *size) with G > 1 glimpses.

    Args:
        image: (N, C, H, W) or (N, C, D, H, W).
        at: Absolute matrices (N * G, 2, 3), (N * G, 3, 3) or (N * G, 3, 4), or a grid (N * G, *size, ndim) of finite
            coordinates. Those of one image come one after another.
        size: Of the output.
        sampling: Valid options for the image.
        glimpses: G.
    """
    if is_fused(image, sampling) and at.device == image.device:
        fill = sampling.fill if sampling.fill is None else _colors(sampling.fill, image)
        seen = warp_operator(image, at.float(), tuple(size), PADDINGS[sampling.padding_mode], fill)
        return seen if glimpses == 1 else seen.reshape(image.shape[0], glimpses, *seen.shape[1:])
    grid = matrix_grid(at, size) if at.ndim == 3 else at
    if glimpses == 1:
        return sampling.read(image, grid)
    # one pass over the image for all glimpses, whose grids lie side by side in the first spatial dimension
    grid = grid.reshape(image.shape[0], glimpses * size[0], *size[1:], grid.shape[-1])
    seen = sampling.read(image, grid)  # (N, C, G * h, w)
    return seen.reshape(*image.shape[:2], glimpses, *size).transpose(1, 2)


def is_fused(image: Tensor, sampling: Sampling) -> bool:
    """Whether `torch.ops.timm_stn.warp` reads the image: of a GPU, in two dimensions, with bilinear interpolation.

    Not in programs for elsewhere, and not in forward-mode differentiation, for which it has no rule.
    """
    if not (image.is_cuda or INTERPRETED) or image.ndim != 4 or image.dtype not in DTYPES:
        return False
    if sampling.mode != 'bilinear' or sampling.antialias or isinstance(sampling.fill, Tensor):
        return False
    return not (in_forward_mode() or is_exporting())


def _colors(fill: Fill, image: Tensor) -> Tensor:
    """(C,), made on the device: a copy from the host would be waited for."""
    values: list[Any] = [fill] if isinstance(fill, (int, float)) else list(fill or ())
    values = values * image.shape[1] if len(values) == 1 else values
    parts = [image.new_full((1,), float(value), dtype=torch.float32) for value in values]
    return torch.cat(parts) if parts else image.new_empty(0, dtype=torch.float32)
