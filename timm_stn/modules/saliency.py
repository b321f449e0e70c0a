"""Where features respond: the start of glimpses that look at what is there, before anything is learned."""
import math
from typing import Any

import torch
from torch import Tensor

from ..geometry.autocast import full_precision
from ..geometry.grid import centers, coordinate_dtype
from ..geometry.pose import pose_at
from ..geometry.transforms import Transform
from .glimpses import TILE_REACH
from .localization import Localization, Regressed

__all__ = ['Saliency']


class Saliency(Localization):
    """Feature maps to the place near each glimpse's tile where they respond most, and to parameters.

    The activations above zero, summed over the channels, less their mean over the map, and what remains above zero
    (Wei et al. 2017, Selective Convolutional Descriptor Aggregation) are weighed by a Gaussian around each tile, whose
    standard deviation is the glimpse's (largest) half-width; the centre of mass is where the glimpse starts. With a
    pretrained backbone this tends to be the object, or parts of it. The localization network moves glimpses from there.
    No gradient passes from the start to the backbone: it would be many times larger than that of what glimpses show,
    and glimpses would move to the edge.

    Where the scale may vary, it is the standard deviation of the mass along the wider axis times the square root of
    three: a glimpse covers a square that responds evenly. So in evaluation; in training it is the largest, since there
    random crops have shown things larger than they will be seen already (Touvron et al. 2019, FixRes).

    Args:
        transform: Family of the transformer.
        tiles: (G, 2), xy in [-1, 1]: where the tiles are, the centres of the Gaussians.
        scales: Least and largest half-width of a glimpse, in [-1, 1].
        bound: Glimpses start inside the image, where they fit: centres within plus or minus 0.8 (1 - half-width);
            else within plus or minus 1.
        *args, **kwargs: Of the localization network from the same maps to parameters.

    Shape:
        (N, C, H, W) to parameters (N, G * P), and where they start from: scales and centres of N * G glimpses; those of
        the tiles, of the largest scale, where a map responds nowhere, of the least where it is not finite.
    """

    def __init__(
            self,
            transform: Transform,
            tiles: Tensor,
            scales: tuple[float, float],
            bound: bool,
            *args: Any,
            **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.transform, self.tiles, self.scales, self.bound = transform, tiles.tolist(), scales, bound

    def forward(self, x: Tensor) -> Regressed:
        center, scale = (found.flatten(0, 1) for found in self.find(x))  # (N * G, 2) and (N * G, 1)
        linear = scale.unsqueeze(-1) * torch.eye(2, device=scale.device, dtype=scale.dtype)
        base = torch.cat([linear, center.unsqueeze(-1)], -1)  # (N * G, 2, 3)
        return Regressed(super().forward(x).params, pose_at(base, self.transform))

    def find(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (N, G, 2) and scales (N, G, 1) for feature maps (N, C, H, W)."""
        x = x.detach().to(coordinate_dtype(x.dtype))
        least, most = self.scales
        with full_precision(x):
            energy = x.relu().mean(1)  # (N, H, W)
            energy = (energy - energy.mean((1, 2), keepdim=True)).relu()
            tiles = torch.tensor(self.tiles, device=x.device, dtype=x.dtype)
            axes = [centers(x.shape[3], x.device, x.dtype), centers(x.shape[2], x.device, x.dtype)]
            off = [axis - tiles[:, i, None] for i, axis in enumerate(axes)]  # from the tiles, (G, W) and (G, H)
            near_x, near_y = (torch.exp(-(d / most).square() / 2) for d in off)
            mass = energy.unsqueeze(1) * near_y.unsqueeze(-1) * near_x.unsqueeze(1)  # (N, G, H, W)
            total = mass.sum((2, 3)).unsqueeze(2)  # (N, G, 1)
            share = [m / total.clamp_min(torch.finfo(x.dtype).tiny) for m in (mass.sum(2), mass.sum(3))]
            shift = torch.stack([(m * d).sum(2) for m, d in zip(share, off)], 2)  # (N, G, 2)
            scale = torch.full_like(total, most)
            if least < most and not self.training:
                square = torch.stack([(m * d.square()).sum(2) for m, d in zip(share, off)], 2)
                wide = (3 * (square - shift.square()).amax(2, keepdim=True)).clamp_min(0.0).sqrt()
                scale = torch.where(total > 0, wide.clamp(least, most), scale)
            known = total.abs() < math.inf  # not of an image with a NaN in it
            shift = torch.where(known, shift, torch.zeros_like(shift))
            scale = torch.where(known, scale, torch.full_like(scale, least))
            reach = TILE_REACH * (1 - scale).clamp_min(0.0) if self.bound else torch.ones_like(scale)
            return torch.maximum(torch.minimum(tiles + shift, reach), -reach), scale
