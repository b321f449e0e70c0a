"""A separable zoom that shows the whole image: more pixels for some columns and rows, fewer for the others."""
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..autocast import full_precision
from ..grid import centers
from .base import Transform
from .lattice import sides_of_lattice
from .matrix import as_points

__all__ = ['Zoom']

MOST = 4.0  # largest density; the least is its reciprocal
EVEN = 0.4  # share of the pixels that is spread evenly, whatever the mass


class Zoom(Transform):
    """Parameters: logarithms of densities along x (one for each column), then along y (one for each row).

    The source is divided into as many equal columns and rows, 7 by default. The density of one says how many pixels of
    the output it gets: it is bounded smoothly (by tanh, of slope 1 at zero) to 1/4 to 4, and only ratios matter. From
    the centre of one to that of the next it changes linearly. Its cumulative sum maps [-1, 1] to itself, strictly
    upwards, with a continuous slope: the map cannot fold, and the output shows all of the source. Outside of [-1, 1] it
    is the identity. The map and its inverse have closed forms.

    After Learning to Zoom (Recasens et al. 2018, arXiv:1809.03355), in the separable form of FOVEA (Thavamani et al.
    2021, arXiv:2108.12102).
    """
    name = 'zoom'
    has_density = True

    def __init__(self, lattice: Sequence[int] = (7, 7)) -> None:
        self.rows, self.columns = sides_of_lattice(self.name, lattice)
        self.num_params = self.rows + self.columns
        if (self.rows, self.columns) != (7, 7):
            self.name = f'{self.name}:{self.rows}x{self.columns}'

    def grid(self, params: Tensor, size: Sequence[int]) -> Tensor:
        (height, width), params = self.check_size(size), self.prepare(params)
        x, y = (axis.source(centers(n, params.device, params.dtype)[None])
                for axis, n in zip(self._axes(params), (width, height)))  # (N, W) and (N, H)
        shape = -1, height, width
        return torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], 1).permute(0, 2, 3, 1)

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 0) -> Tensor:
        """Output points whose source points are `points`, in closed form."""
        params = self.prepare(params)
        return self._along_axes(_Axis.output, params, as_points(points, params.shape[0], 2))

    def params_of(self, mass: Tensor) -> Tensor:
        """Parameters (N, num_params) that magnify where there is mass (N, h, w), zero or more.

        A part of the pixels is spread evenly, the rest as the marginals of the mass, smoothed over three columns or
        rows. A mass of zero everywhere, or one that is not finite, gives the identity.
        """
        found = []
        with full_precision(mass):
            for n, axis in ((self.columns, 1), (self.rows, 2)):
                share = mass.mean(axis) @ _parts(mass.shape[3 - axis], n, mass) @ _smoothing(n, mass)  # (N, n)
                mean = share.mean(1, keepdim=True)
                usable = (mean > 0) & (mean < math.inf)
                density = torch.where(usable, EVEN + (1 - EVEN) * share / torch.where(usable, mean, 1), 1)
                log = density.log()
                found.append(log - log.mean(1, keepdim=True))
            return _unbounded(torch.cat(found, 1))

    def _map(self, params: Tensor, points: Tensor) -> Tensor:
        return self._along_axes(_Axis.source, params, points)

    def _along_axes(self, along: Callable[['_Axis', Tensor], Tensor], params: Tensor, points: Tensor) -> Tensor:
        shape = params.shape[0], *points.shape[1:-1]
        mapped = [along(axis, p.flatten(1)) for axis, p in zip(self._axes(params), points.unbind(-1))]
        return torch.stack([m.reshape(shape) for m in mapped], -1)

    def _axes(self, params: Tensor) -> list['_Axis']:
        return [_axis(own) for own in torch.split(params, [self.columns, self.rows], 1)]


class _Axis(NamedTuple):
    """The pieces of an axis, (N, K) or (1, K), between which densities change linearly."""
    into: Tensor  # where each starts in the output
    of: Tensor  # and in the source
    wide_into: Tensor  # how wide it is in the output
    wide_of: Tensor  # and in the source
    ramp: Tensor  # (last - first) / (last + first) of its density

    def source(self, points: Tensor) -> Tensor:
        """Coordinates (N or 1, P) of the output to those of the source, (N, P)."""
        into, _, wide_into, wide_of, ramp = (part.unsqueeze(1) for part in self)  # (N, 1, K)
        t = ((points.unsqueeze(2) - into) / wide_into).clamp(0, 1)
        first = 1 - ramp
        s = 2 * t / (first + (first.square() + 4 * ramp * t).sqrt())  # of t = s - ramp s (1 - s)
        return points + ((wide_of - wide_into) * t + wide_of * ramp * s * (1 - s)).sum(2)

    def output(self, points: Tensor) -> Tensor:
        """The inverse of `source`."""
        _, of, wide_into, wide_of, ramp = (part.unsqueeze(1) for part in self)
        s = ((points.unsqueeze(2) - of) / wide_of).clamp(0, 1)
        return points + ((wide_into - wide_of) * s - wide_into * ramp * s * (1 - s)).sum(2)


def _axis(params: Tensor) -> _Axis:
    """Of one axis' parameters (N, n): n + 1 pieces, of which the first and last are half as wide, and even."""
    log = math.log(MOST) * (params / math.log(MOST)).tanh()
    log = torch.cat([log[:, :1], log, log[:, -1:]], 1)
    density = log.exp()
    edge = torch.ones_like(params[:1, :1])
    wide = torch.cat([edge, 2 * torch.ones_like(params[:1, 1:]), edge], 1)  # (1, n + 1), in units of 1 / n: exact
    pixels = wide * (density[:, :-1] + density[:, 1:]) / 2
    wide_into, wide_of = 2 * pixels / pixels.sum(1, keepdim=True), 2 * wide / wide.sum()
    into, of = (w.cumsum(1) - w - 1 for w in (wide_into, wide_of))
    return _Axis(into, of, wide_into, wide_of, ((log[:, 1:] - log[:, :-1]) / 2).tanh())


def _unbounded(log: Tensor) -> Tensor:
    """Parameters whose bounded logarithms of densities these are, or as near as the bound lets them be."""
    share = (log / math.log(MOST)).clamp(-0.99, 0.99)
    return math.log(MOST) / 2 * ((1 + share) / (1 - share)).log()  # atanh, which not every exporter has


def _parts(n: int, m: int, like: Tensor) -> Tensor:
    """(n, m): how much of each of n equal pieces of an axis is in each of m."""
    pieces, parts = (torch.arange(k, dtype=like.dtype, device=like.device) / k for k in (n, m))
    first = torch.maximum(pieces[:, None], parts)
    last = torch.minimum(pieces[:, None] + 1 / n, parts + 1 / m)
    return n * (last - first).relu()


def _smoothing(n: int, like: Tensor) -> Tensor:
    """(n, n): each piece of an axis spread over itself and its neighbours."""
    place = torch.arange(n, dtype=like.dtype, device=like.device)
    near = ((place[:, None] - place).abs() < 1.5).to(like.dtype)
    return near / near.sum(0)
