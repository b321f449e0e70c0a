"""Where parallel glimpses start, and how they are kept inside the image."""
import math

import torch
from torch import Tensor

from ..geometry.grid import lattice
from ..geometry.transforms import map_points_matrix
from ..geometry.transforms.matrix import LIMIT, away_from_zero

__all__ = ['jittered', 'keep_inside', 'squares', 'tile_offsets', 'within_reach']

TILE_REACH = 0.8  # bounded glimpses start at most this far towards the edge, where a smooth bound has no slope
LEAST = 0.01  # denominator of a homography at a corner of a glimpse, as a share of that at its centre


def tile_offsets(glimpses: int, scale: float, bound: bool) -> Tensor:
    """Centres (G, 2), xy, on the CPU, at which parallel glimpses start: tiled over the image, not on top of each other.

    They are moved inwards, in proportion, as far as a glimpse of that scale must be to lie inside. Bounded glimpses of
    scale 1 or more have no choice but to share the centre.
    """
    rows = max(1, math.isqrt(glimpses))
    cols = math.ceil(glimpses / rows)
    reach = TILE_REACH * max(1 - scale, 0.0) if bound else max(1 - scale, 0.25)
    centers = []
    for g in range(glimpses):
        row, col = divmod(g, cols)
        in_row = min(cols, glimpses - row * cols)
        centers.append(((2 * col + 1) / in_row - 1, (2 * row + 1) / rows - 1))
    offsets = torch.tensor(centers, dtype=torch.float64, device='cpu')
    return (offsets * (reach / offsets.abs().amax(0).clamp_min(reach or 1))).float()


def within_reach(center: Tensor, half: Tensor, bound: bool) -> Tensor:
    """Centres (N, G, 2) inside the image, and where bounded far enough from its edge for half-widths (N, G, 1)."""
    reach = TILE_REACH * (1 - half).clamp_min(0.0) if bound else torch.ones_like(half)
    return torch.maximum(torch.minimum(center, reach), -reach)


def jittered(base: Tensor, share: float, bound: bool) -> Tensor:
    """Squares (or cubes) (N * G, d, d + 1), moved and scaled at random.

    Along each axis by at most a share of the half-width, uniformly; by a factor of at most 1 plus the share or its
    reciprocal, the logarithm uniformly. Bounded ones stay inside the image.
    """
    d = base.shape[1]
    draw = 2 * torch.rand_like(base[:, :, :2]) - 1  # (N * G, d, 2)
    half = base[:, :1, 0] * (1 + share) ** draw[:, :1, 1]  # (N * G, 1)
    if bound:
        half = half.clamp(max=1)
    center = within_reach(base[:, :, -1] + share * half * draw[:, :, 0], half, bound)
    linear = half.unsqueeze(-1) * torch.eye(d, device=base.device, dtype=base.dtype)
    return torch.cat([linear, center.unsqueeze(-1)], -1)


def squares(center: Tensor, half: Tensor) -> Tensor:
    """Matrices (N * G, 2, 3) of squares with centres (N, G, 2) and half-widths (N, G, 1)."""
    linear = half.unsqueeze(-1) * torch.eye(2, device=half.device, dtype=half.dtype)
    return torch.cat([linear, center.unsqueeze(-1)], -1).flatten(0, 1)


def keep_inside(theta: Tensor, base: Tensor, eps: float = 1e-3) -> Tensor:
    """Move each glimpse smoothly so that it stays inside the image, with its corners.

    One that is too large for the image is shrunk about its centre until it fits. To the gradient, by how much is a
    constant, so that a loss can make it smaller again.

    Then the centre c may reach L = 1 - (half of the glimpse's extent). With base centre o = t0 L0 and raw centre
    c = o + d it becomes L tanh(atanh(t0) + d / (L (1 - t0^2))): o at d = 0, slope 1 there, every position within L
    reached. A glimpse that has no room to move, to within ``eps``, is centred, with a gradient of zero to where it
    would be.

    Args:
        theta: Absolute matrices of N * G glimpses, (N * G, d, d + 1) or (N * G, 3, 3).
        base: Where they start, of the same shape or (N * G, d, d + 1).
        eps: Least room.
    """
    d = theta.shape[2] - 1
    theta = theta.clamp(-LIMIT, LIMIT)
    corners = 2 * lattice((2,) * d, theta.device, theta.dtype).reshape(-1, d)  # (2 ** d, d)
    theta = _fitting(theta, corners)
    center, half = _extent(theta, corners)  # (N * G, d)
    start, start_half = _extent(base, corners)
    room, start_room = (1 - half).clamp_min(eps), (1 - start_half).clamp_min(eps)
    t0 = (start / start_room).clamp(-0.95, 0.95)
    atanh = (torch.log1p(t0) - torch.log1p(-t0)) / 2  # torch.atanh, which not every exporter has
    moved = room * torch.tanh(atanh + (center - start) / (room * (1 - t0 * t0)))
    return _shifted(theta, center, torch.where(room > eps, moved, torch.zeros_like(moved)))


def _extent(theta: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (N, d) of glimpses, and how far their corners are from there along each axis, at most."""
    center = map_points_matrix(theta, torch.zeros_like(corners[:1])).reshape(-1, corners.shape[1])
    centred = _shifted(theta, center, torch.zeros_like(center))
    return center, map_points_matrix(centred, corners).abs().amax(1)


def _fitting(theta: Tensor, corners: Tensor) -> Tensor:
    """theta of glimpses that are small enough to be inside an image in its middle; the same where they are already.

    About its centre, a glimpse f times as large shows f n / (w + f g) at a corner, where a homography has w in its last
    entry and w + g at that corner; for other matrices g is 0 and w is 1. That is within 1 where f (|n| - g) <= w. No
    denominator becomes less than a hundredth of w, which rounding errors would spoil.
    """
    d = corners.shape[1]
    if theta.shape[1] > d:
        w = away_from_zero(theta[:, d:, d:])  # (N * G, 1, 1)
        theta = torch.cat([theta[:, :, :d], torch.cat([theta[:, :d, d:], w], 1)], 2)
    center = map_points_matrix(theta, corners.new_zeros(1, d)).reshape(-1, d)
    moved = _shifted(theta, center, torch.zeros_like(center)).detach()
    at_corners = (moved[:, None, :, :d] * corners[:, None]).sum(-1)  # (N * G, 2 ** d, rows)
    reach = at_corners[:, :, :d].abs().amax(2)  # |n|
    if theta.shape[1] > d:
        w = w.detach()[:, 0]
        g = at_corners[:, :, d] / w
        reach = torch.maximum(reach / w.abs() - g, -g / (1 - LEAST))
    times = reach.amax(1).clamp_min(1.0)[:, None, None]  # too large
    return torch.cat([theta[:, :, :d] / times, theta[:, :, d:]], 2)


def _shifted(theta: Tensor, center: Tensor, moved: Tensor) -> Tensor:
    """theta with its centre at ``moved``, exactly, however far away ``center`` was."""
    if theta.shape[1] < theta.shape[2]:
        return torch.cat([theta[:, :, :-1], moved.unsqueeze(-1)], 2)
    *columns, last = (theta[:, :2] + (moved - center).unsqueeze(-1) * theta[:, 2:]).unbind(2)
    last = moved * theta[:, 2, 2:]
    return torch.cat([torch.stack([*columns, last], 2), theta[:, 2:]], 1)
