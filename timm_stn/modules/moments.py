"""What feature maps hold, and where."""
import torch
from torch import Tensor, nn

from ..geometry.grid import centers, coordinate_dtype

__all__ = ['Moments']


class Moments(nn.Module):
    """What feature maps hold and where: (N, C, *size) to the means of all channels and their first moments.

    The output, (N, C (1 + ndim)), float32 or float64, is divided by the root mean square of the sample's map. A
    regression from it has one weight a channel and axis in place of one a position: it cannot learn places by heart,
    and what it learns of a thing at one place holds wherever the thing is.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(coordinate_dtype(x.dtype))
        moments = [x.flatten(2).mean(2)]
        for axis in range(2, x.ndim):
            along = x.mean([other for other in range(2, x.ndim) if other != axis])  # (N, C, side)
            moments.append((along * centers(x.shape[axis], x.device, x.dtype)).mean(2))
        rms = x.square().flatten(1).mean(1, keepdim=True).clamp_min(1e-12).sqrt()  # of 0, sqrt has no slope
        return torch.cat(moments, 1) / rms
