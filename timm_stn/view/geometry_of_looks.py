"""Where looks lie, in words that people use: how large, turned, sheared, where, and how much of it off the image."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry.grid import lattice
from ..geometry.pose import pose_of
from ..modules.spatial_transformer import SpatialTransformer

__all__ = ['Looks', 'looks', 'looks_of', 'wrapped']

CELLS = {2: 16, 3: 8}  # per side of the lattice of points of a view, by dimensions


class Looks(NamedTuple):
    """The geometry of views (...), each of an image; that of the affine map nearest to it, where it is none itself.

    A map takes coordinates of the view to those of the image. Both are xy(z) in [-1, 1] from edge to edge. Lengths and
    angles are those of pixels, so that the identity has scale 1, stretch 1, angle 0 and shear 0 whatever the size.

    Attributes:
        scale: (...) side of the view as a share of the image's: the root of its share of the area (the cube root of
            that of the volume in 3-D), without sign. Above 1 the view is larger than the image.
        center: (..., d) where the view's centre lies in the image: x, y (z), in half-widths.
        outside: (...) share of the view's area outside the image, 0 to 1.
        bend: (...) root mean square distance of the view's points from where the affine map would put them, in
            half-widths of the image; 0 for affine maps.
        stretch: (...) width of the view over its height, relative to the image's own; None in 3-D.
        angle: (...) degrees from -180 to 180 that the view is turned by: of its x axis, clockwise where positive, as
            one sees the image (y points down). None in 3-D.
        shear: (...) degrees from -180 to 180 that the view's y axis is turned further than its x axis: 0 for a
            rectangle, about 180 for a mirrored one. None in 3-D.
    """
    scale: Tensor
    center: Tensor
    outside: Tensor
    bend: Tensor
    stretch: Tensor | None = None
    angle: Tensor | None = None
    shear: Tensor | None = None


def looks(stn: SpatialTransformer, theta: Tensor, size: Sequence[int] | None = None) -> Looks:
    """The geometry of a transformer's looks at N images, G at each: (N, G), in float64 on the CPU.

    Args:
        stn: The transformer.
        theta: Its thetas, (N, ...) or (N, G, ...), as in ``last_theta`` and of :func:`timm_stn.view.observe.observe`.
        size: (H, W) or (D, H, W) of its input, of which only the proportions matter. Default: the usual size.
    """
    ndim = stn.transform.ndim
    single = theta.ndim == (3 if stn.transform.linear else 2)
    flat = (theta if single else theta.flatten(0, 1)).detach().cpu().double()
    with torch.no_grad():
        points = lattice([CELLS[ndim]] * ndim, 'cpu', torch.float64).reshape(-1, ndim)
        mapped = pose_of(flat, stn.theta_transform).map_points(points)  # (N * G, points, d)
        mapped = mapped.reshape(len(theta), 1 if single else theta.shape[1], *mapped.shape[1:])
        return looks_of(mapped, points, stn.input_size if size is None else size)


def looks_of(mapped: Tensor, points: Tensor, size: Sequence[int]) -> Looks:
    """The geometry of views from where their points lie in the image; affine maps are fitted by least squares.

    Args:
        mapped: (..., K, d) places of the points in the image.
        points: (K, d) the points, of a regular lattice centred on the view: each stands for an equal part of it.
        size: (H, W) or (D, H, W) of the image.
    """
    center = mapped.mean(-2)
    matrix = mapped.transpose(-1, -2) @ points / points.square().sum(0)  # (..., d, d): the axes of a lattice are apart
    apart = mapped - center.unsqueeze(-2) - points @ matrix.transpose(-1, -2)
    found = Looks(
        scale=torch.linalg.det(matrix).abs() ** (1 / points.shape[1]), center=center,
        outside=(mapped.abs() > 1).any(-1).to(mapped.dtype).mean(-1), bend=apart.square().sum(-1).mean(-1).sqrt())
    if points.shape[1] != 2:
        return found
    sides = torch.tensor([size[1], size[0]], dtype=mapped.dtype, device=mapped.device)
    across, down = (sides.unsqueeze(1) * matrix / sides).unbind(-1)  # (..., 2): the view's axes, in pixels
    angle, other = (torch.rad2deg(torch.atan2(axis[..., 1], axis[..., 0])) for axis in (across, down))
    stretch = torch.linalg.vector_norm(across, dim=-1) / torch.linalg.vector_norm(down, dim=-1)
    return found._replace(stretch=stretch, angle=angle, shear=wrapped(other - angle - 90))


def wrapped(degrees: Tensor) -> Tensor:
    """The same angles, from -180 to 180."""
    return torch.rad2deg(torch.remainder(torch.deg2rad(degrees) + math.pi, 2 * math.pi) - math.pi)
