"""Resizing with an anti-aliasing filter, to a size that a network sees."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import full_precision
from .grid import cast, coordinate_dtype
from .programs import is_always, is_exporting
from .symbolic import recorded_call

__all__ = ['shrink']


@recorded_call
def shrink(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize feature maps with an anti-aliasing triangle filter; volumes are pooled over boxes.

    Exported programs do the same as one matrix product per axis: of an antialiased resize, OpenVINO, TensorRT, ONNX
    before opset 18 and Core ML know nothing or half, and Core ML leaves the filter out without a word.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W).
        size: Output (H, W) or (D, H, W).

    Returns:
        (N, C, *size) in the dtype of ``x``; ``x`` itself where the size agrees.
    """
    if is_exporting():
        return _shrink_by_matrices(x, size)
    if tuple(x.shape[2:]) == tuple(size):
        return x
    with full_precision(x):
        if x.ndim == 5:
            return F.adaptive_avg_pool3d(x, size)  # type: ignore[arg-type]
        pixels = x.to(coordinate_dtype(x.dtype))
        return F.interpolate(pixels, size, mode='bilinear', align_corners=False, antialias=True).to(x.dtype)


def _shrink_by_matrices(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The same for any side that a program may meet later: whether one agrees is not decided now."""
    weigh = _triangles if x.ndim == 4 else _boxes
    pixels = cast(x, coordinate_dtype(x.dtype))
    with full_precision(x):
        for axis, m in reversed(list(enumerate(size, 2))):
            if is_always(x.shape[axis], m):
                continue
            weights = weigh(x.shape[axis], m, pixels)
            if axis == x.ndim - 1:
                pixels = torch.matmul(pixels, weights.transpose(0, 1))
            else:
                rows = pixels.flatten(axis + 1)
                pixels = torch.matmul(weights, rows).reshape(*pixels.shape[:axis], m, *pixels.shape[axis + 1:])
    return pixels.type_as(x)


def _triangles(n: int, m: int, like: Tensor) -> Tensor:
    """Weights (m, n) of n pixels in each of m: triangles as wide as the scale, normalised.

    All in units of 1 / (2 m n) of the axis, where centres are integers: exact, for n = m the identity.
    """
    pixels, cells = _odd(n, like) * m, _odd(m, like).unsqueeze(1) * n
    weights = (1 - (pixels - cells).abs() / (2 * torch.maximum(pixels[0], cells[0]))).relu()
    return weights / weights.sum(1, keepdim=True)


def _boxes(n: int, m: int, like: Tensor) -> Tensor:
    """Weights (m, n) of n pixels in each of m: equal ones for all pixels that a cell touches."""
    pixels, cells = _odd(n, like) * m, _odd(m, like).unsqueeze(1) * n
    weights = ((pixels - cells).abs() < m + n).to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


def _odd(n: int, like: Tensor) -> Tensor:
    """1, 3, ... 2 n - 1: centres of n pixels, in half-pixels."""
    return 2 * torch.arange(n, dtype=like.dtype, device=like.device) + 1
