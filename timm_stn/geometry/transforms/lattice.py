"""Families with a parameter pair (x, y) at every point of a coarse lattice."""
import math
from collections.abc import Sequence

from torch import Tensor

from ..sizes import are_sides, as_sides
from .base import Transform

__all__ = ['LatticeTransform', 'sides_of_lattice']

MOST = 32  # points per side


def sides_of_lattice(name: str, lattice: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a family's lattice.

    Raises:
        ValueError: They are no integers from 2 to 32.
    """
    lattice = as_sides(lattice)
    if not are_sides(lattice, 2) or min(lattice) < 2:
        raise ValueError(f'{name!r} takes a lattice of at least 2 x 2 control points, got {lattice!r}')
    if max(lattice) > MOST:
        raise ValueError(f'{name!r} takes a lattice of at most {MOST} x {MOST} points, got {tuple(lattice)}')
    rows, columns = lattice
    return rows, columns


class LatticeTransform(Transform):
    """Parameters: (x, y) of every control point, row-major.

    The control points are a regular lattice of rows x columns that spans [-1, 1], corners included: 4 x 4 by default.

    Raises:
        ValueError: Fewer than 2 rows or columns (all control points would be on a line), or more than 32 (the spline's
            linear system would be too large).
    """

    def __init__(self, lattice: Sequence[int] = (4, 4)) -> None:
        self.rows, self.columns = sides_of_lattice(self.name, lattice)
        self.num_params = 2 * self.rows * self.columns
        if (self.rows, self.columns) != (4, 4):
            self.name = f'{self.name}:{self.rows}x{self.columns}'

    def _map(self, params: Tensor, points: Tensor) -> Tensor:
        middle = points.shape[1:-1]
        flat = points.reshape(points.shape[0], math.prod(middle), 2).transpose(1, 2)
        mapped = self._displace(params.reshape(params.shape[0], self.rows, self.columns, 2), flat) + flat
        mapped = mapped.reshape(mapped.shape[0], 2, *middle)
        return mapped.permute(0, *range(2, mapped.dim()), 1)

    def _displace(self, control: Tensor, points: Tensor) -> Tensor:
        """Displacements (N, 2, P) of points (N or 1, 2, P), for (x, y) control values (N, rows, columns, 2)."""
        raise NotImplementedError
