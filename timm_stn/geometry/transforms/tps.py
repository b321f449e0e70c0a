"""Thin-plate splines: the map of least bending energy that moves control points by the parameters."""
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..grid import has_values
from .lattice import LatticeTransform
from .matrix import as_points
from .numeric import exact_matmul, invert_map

__all__ = ['ThinPlateSpline']


class ThinPlateSpline(LatticeTransform):
    """Parameters: offsets (x, y) from the control points (16 by default) to their source points.

    The interpolating spline of Bookstein (1989): U(r) = r^2 log r^2 at all control points plus an affine part. Source
    points may coincide, and the map may fold. The linear system depends only on the lattice and is inverted once, in
    float64.
    """
    name = 'tps'

    def __init__(self, lattice: Sequence[int] = (4, 4)) -> None:
        super().__init__(lattice)
        axes = [torch.linspace(-1, 1, n, dtype=torch.float64, device='cpu') for n in (self.columns, self.rows)]
        self._centers = torch.stack(torch.meshgrid(*axes, indexing='xy')).flatten(1)
        basis = self._basis(self._centers[None])[0]
        k = basis.shape[1]
        system = basis.new_zeros(k + 3, k + 3)
        system[:, :k], system[:k] = basis, basis.T
        self._solution = torch.linalg.inv(system)[:, :k]

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 15) -> Tensor:
        """Output points whose source points are `points`, by Newton's method; see `invert_map` for accuracy."""
        params = self.prepare(params)
        target = as_points(points, params.shape[0], 2)
        target = target.expand(params.shape[0], *target.shape[1:])
        return invert_map(lambda x: self._map(params, x), target, iterations)

    def _displace(self, control: Tensor, points: Tensor) -> Tensor:
        basis = self._basis(points)
        solution = self._constant('_solution', control).T
        weights = exact_matmul(control.flatten(1, 2).transpose(-1, -2), solution)
        if basis.shape[0] != 1:
            return exact_matmul(weights, basis)
        return exact_matmul(weights.flatten(0, 1), basis[0]).reshape(weights.shape[0], 2, basis.shape[-1])

    def _basis(self, points: Tensor) -> Tensor:
        """Basis functions (B, K + 3, P) at points (B, 2, P): U of the distance to each control point, 1, x, y."""
        centers = self._constant('_centers', points)
        squared = (points[:, :, None] - centers[:, :, None]).square().sum(1)
        bent = squared * squared.clamp(min=torch.finfo(points.dtype).tiny).log()
        return torch.cat([bent, torch.ones_like(points[:, :1]), points], 1)

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """An attribute in the dtype and on the device of `like`; cached: CUDA graphs cannot capture the copy."""
        if like.device.type == 'cpu' or type(like) not in PLAIN or not has_values(like):
            return getattr(self, name).to(like.dtype).to(like.device)
        return _kept(self, name, like.dtype, like.device)


PLAIN = (Tensor, torch.nn.Parameter)  # not cached for other tensor subclasses


@lru_cache(maxsize=32)
def _kept(spline: ThinPlateSpline, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a later training pass may use it
        return getattr(spline, name).to(dtype).to(device)
