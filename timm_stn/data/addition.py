"""Addition of two digits (the paper's appendix A.1): two channels, a digit in each, and their sum as the class."""
import torch
from torch import Tensor

from timm_stn.data.distortions import DISTORTIONS, as_float, integer

__all__ = ['DRAWS', 'addition']

_, RTS_DRAWS, RTS = DISTORTIONS['RTS']
DRAWS = 1 + 2 * RTS_DRAWS  # uniform numbers per pair


def addition(digits: Tensor, labels: Tensor, index: Tensor, u: Tensor, size: int = 42) -> tuple[Tensor, Tensor]:
    """Pairs of digits, each rotated, scaled and moved by itself as in the set RTS, and their sums.

    Args:
        digits: All digits (M, 1, 28, 28), floating point in [0, 1] or uint8.
        labels: Their classes (M,).
        index: The first digit (N,) of each pair, for channel 0.
        u: Uniform random numbers (N, DRAWS), which also choose the second digits.
        size: Side S of the canvas.

    Returns:
        Images (N, 2, S, S) in [0, 1], and sums (N,), from 0 to 18.
    """
    second = integer(u[:, 0], len(digits))
    channels = [
        RTS(as_float(digits[chosen]), numbers, size, digits)
        for chosen, numbers in zip((index, second), torch.split(u[:, 1:], RTS_DRAWS, dim=1), strict=True)]
    return torch.cat(channels, dim=1), labels[index] + labels[second]
