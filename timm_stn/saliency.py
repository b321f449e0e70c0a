"""Where features respond: the start of glimpses that look at what is there, before anything is learned."""
from typing import Any

import torch
from torch import Tensor

from .grid import centers, coordinate_dtype
from .localization import Localization
from .precision import full_precision

__all__ = ['Saliency']


class Saliency(Localization):
    """Feature maps to the place near each glimpse's tile where they respond most, and to parameters.

    The activations above zero, summed over the channels, less their mean over the map, and what remains above zero
    (Wei et al. 2017, Selective Convolutional Descriptor Aggregation) are weighed by a Gaussian around each tile, whose
    standard deviation is the glimpse's half-width; the centre of mass is where the glimpse starts. Of a pretrained
    backbone that is the object, in parts. The localization network moves glimpses from there. No gradient takes this
    way: the backbone would get one many times larger than that of what glimpses show, and glimpses move to the edge.

    Args:
        tiles: (G, 2), xy in [-1, 1]: where the tiles are, the centres of the Gaussians.
        scale: Half-width of a glimpse, in [-1, 1].
        reach: Centres stay within plus or minus this.
        *args, **kwargs: Of the localization network from the same maps to parameters.

    Shape:
        (N, C, H, W) to parameters (N, G * P) and centres (N, G, 2), xy in [-1, 1]; the tiles themselves where a map
        responds nowhere.
    """

    def __init__(self, tiles: Tensor, scale: float, reach: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tiles, self.scale, self.reach = tiles.tolist(), scale, reach

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), self.find(x)

    def find(self, x: Tensor) -> Tensor:
        """Centres (N, G, 2) for feature maps (N, C, H, W)."""
        x = x.detach().to(coordinate_dtype(x.dtype))
        with full_precision(x):
            energy = x.relu().mean(1)
            energy = (energy - energy.mean((1, 2), keepdim=True)).relu()
            tiles = torch.tensor(self.tiles, device=x.device, dtype=x.dtype)
            axes = [centers(x.shape[3], x.device, x.dtype), centers(x.shape[2], x.device, x.dtype)]
            near_x, near_y = (
                torch.exp(-((axis - tiles[:, i, None]) / self.scale).square() / 2) for i, axis in enumerate(axes))
            mass = energy.unsqueeze(1) * near_y.unsqueeze(-1) * near_x.unsqueeze(1)  # (N, G, H, W)
            by_axis = mass.sum(2), mass.sum(3)
            shift = [(m * (axis - tiles[:, i, None])).sum(2) for i, (m, axis) in enumerate(zip(by_axis, axes))]
            total = mass.sum((2, 3)).clamp_min(torch.finfo(x.dtype).tiny)
            return (tiles + torch.stack(shift, 2) / total.unsqueeze(2)).clamp(-self.reach, self.reach)
