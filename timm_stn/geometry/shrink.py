"""Resizing with an anti-aliasing filter, to a size that a network sees."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import full_precision
from .grid import cast, centers, coordinate_dtype, is_traced, to_pixels
from .symbolic import recorded_call

__all__ = ['shrink']


@recorded_call
def shrink(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize feature maps with an anti-aliasing triangle filter; volumes are pooled over boxes.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W).
        size: Output (H, W) or (D, H, W).

    Returns:
        (N, C, *size) in the dtype of ``x``; ``x`` itself where the size agrees.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    volume = x.ndim == 5
    pixels = cast(x, coordinate_dtype(x.dtype))
    with full_precision(x):
        if torch.onnx.is_in_onnx_export() and (volume or is_traced()):
            return _shrink_by_matrices(pixels, size).type_as(x)
        if volume:
            return F.adaptive_avg_pool3d(x, size)  # type: ignore[arg-type]
        return F.interpolate(pixels, size, mode='bilinear', align_corners=False, antialias=True).type_as(x)


def _shrink_by_matrices(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The same as one matrix product per axis: ONNX has no adaptive pooling of volumes, and TorchScript's ONNX exporter
    no antialiased resize.
    """
    weigh = _triangles if x.ndim == 4 else _boxes
    for axis, m in enumerate(size, 2):
        weights = weigh(int(x.shape[axis]), m).to(x)
        x = torch.matmul(x.transpose(axis, x.ndim - 1), weights.T).transpose(axis, x.ndim - 1)
    return x


def _triangles(n: int, m: int) -> Tensor:
    """Weights (m, n) of n pixels in each of m: triangles as wide as the scale, normalised."""
    scale = n / m
    middle = to_pixels(centers(m, dtype=torch.float64), n).unsqueeze(1)  # of each of the m, in pixels of the n
    weights = (1 - (torch.arange(n, dtype=torch.float64) - middle).abs() / max(scale, 1)).relu()
    return weights / weights.sum(1, keepdim=True)


def _boxes(n: int, m: int) -> Tensor:
    """Weights (m, n) of n pixels in each of m: equal ones for all pixels that a cell touches."""
    pixel, cell = torch.arange(n), torch.arange(m).unsqueeze(1)
    weights = ((pixel + 1) * m > cell * n) & (pixel * m < (cell + 1) * n)
    return weights / weights.sum(1, keepdim=True, dtype=torch.float64)
