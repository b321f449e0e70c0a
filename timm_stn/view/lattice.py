"""What was seen as lines and places of the input: all from one lattice of points, mapped through the transformer.

Coordinates are the package's: xy order, [-1, 1] from edge to edge of the image.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from ..modules.spatial_transformer import SpatialTransformer

__all__ = ['SIDE', 'border', 'corners', 'lattice_through', 'lines', 'map_seen', 'outline', 'sources']

SIDE = 33  # points of the lattice along each side, edges included
STEP = 4  # every fourth of its lines is drawn: nine, with the edges


def map_seen(transformer: SpatialTransformer, theta: Tensor, points: Tensor) -> Tensor:
    """Points (K, 2) of a transformer's output in coordinates of its input: (N, G, K, 2).

    Args:
        transformer: The transformer of theta; for images, not volumes.
        theta: As from ``look`` and in ``last_theta``, with or without a dimension G of glimpses.
        points: In [-1, 1], the same for all.

    Raises:
        ValueError: ``transformer`` is for volumes.
    """
    if transformer.transform.ndim != 2:
        raise ValueError(f'transformer must be for images, got transform={transformer.transform.name!r} for volumes.')
    single = theta.ndim == (3 if transformer.transform.linear else 2)
    glimpses = 1 if single else theta.shape[1]
    mapped = transformer.map_points(theta if single else theta.flatten(0, 1), points[None])
    return mapped.reshape(-1, glimpses, len(points), 2)


def outline(transformer: SpatialTransformer, theta: Tensor, points_per_side: int = 32) -> Tensor:
    """The border of a transformer's output in coordinates of its input: (N, G, K, 2), K = 4 ``points_per_side``.

    Args:
        transformer: The transformer of theta; for images, not volumes.
        theta: As from ``look`` and in ``last_theta``, with or without a dimension G of glimpses.
        points_per_side: Points on each side; curved borders (tps, diffeomorphic) need many.

    Returns:
        Points clockwise from the top left corner of the output. The last point does not repeat the first.

    Raises:
        ValueError: ``transformer`` is for volumes.
    """
    side = torch.arange(points_per_side, device=theta.device, dtype=theta.dtype) * (2 / points_per_side) - 1
    edge = torch.ones_like(side)
    sides = ((side, -edge), (edge, side), (-side, edge), (-edge, -side))
    return map_seen(transformer, theta, torch.cat([torch.stack(s, -1) for s in sides]))


def lattice_through(transformer: SpatialTransformer, theta: Tensor) -> Tensor:
    """A lattice over a transformer's output, row by row, in coordinates of its input: (N, G, SIDE * SIDE, 2).

    Raises:
        ValueError: ``transformer`` is for volumes.
    """
    side = torch.arange(SIDE, device=theta.device, dtype=theta.dtype) * (2 / (SIDE - 1)) - 1
    return map_seen(transformer, theta, torch.cartesian_prod(side, side).flip(-1))


def border(lattice: Tensor) -> Tensor:
    """Of lattices (..., SIDE * SIDE, 2) the points on the edge, as in :func:`outline`: (..., 4 * (SIDE - 1), 2)."""
    rows = lattice.reshape(*lattice.shape[:-2], SIDE, SIDE, 2)
    top, bottom = rows[..., 0, :-1, :], rows[..., -1, 1:, :].flip(-2)
    left, right = rows[..., 1:, 0, :].flip(-2), rows[..., :-1, -1, :]
    return torch.cat([top, right, bottom, left], -2)


def corners(lattice: Tensor) -> Tensor:
    """Of lattices (..., SIDE * SIDE, 2) the corners (..., 4, 2), clockwise from the top left one of what was seen."""
    return border(lattice)[..., ::SIDE - 1, :]


def lines(lattice: Tensor) -> Tensor:
    """Of lattices (G, SIDE * SIDE, 2) the inner lines of a 9 x 9 grid: (G, 14, SIDE, 2)."""
    rows = lattice.reshape(*lattice.shape[:-2], SIDE, SIDE, 2)
    inner = range(STEP, SIDE - STEP, STEP)
    return torch.stack([*(rows[:, i] for i in inner), *(rows[:, :, i] for i in inner)], 1)


def sources(lattice: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each pixel of a picture of what was seen, ``size`` (h, w), came from: (h, w, 2).

    Args:
        lattice: Of one look, (SIDE * SIDE, 2). Between its points, positions are linear.
        size: Of the picture.
    """
    y, x = (
        (torch.arange(length, device=lattice.device, dtype=lattice.dtype) + 0.5) * (2 / length) - 1 for length in size)
    at = torch.stack(torch.meshgrid(x, y, indexing='xy'), -1)
    field = lattice.reshape(1, SIDE, SIDE, 2).permute(0, 3, 1, 2)
    return F.grid_sample(field, at[None], align_corners=True)[0].permute(1, 2, 0)
