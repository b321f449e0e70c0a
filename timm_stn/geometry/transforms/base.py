"""The base class of all families of transforms: from parameters to source coordinates."""
from collections.abc import Sequence

from torch import Tensor

from ..grid import lattice
from .matrix import as_points, guard

__all__ = ['Transform']


class Transform:
    """A family of maps from *output* to *source* coordinates. Each sample has its own row of parameters.

    Points are in xy(z) order, in [-1, 1] with half-pixel centres (`align_corners=False`). Zero parameters are the
    identity. Parameters that `guard` rejects (NaN, infinite, above 1e6) are the identity too, with zero gradient, so
    coordinates are always finite. Coordinates are float32 (float64 for float64 parameters), with or without autocast.

    A transform object holds no parameters. It is a constant; equality and hash follow its name.
    """
    name: str
    num_params: int
    ndim: int = 2
    linear: bool = False
    has_density: bool = False  # it can magnify where there is mass, see `params_of`

    def map_points(self, params: Tensor, points: Tensor) -> Tensor:
        """Source points (N, ..., ndim) of output points.

        Args:
            params: Parameters (N, num_params).
            points: Points (N, ..., ndim) or (1, ..., ndim), or (M, ndim) shared by all samples.
        """
        params = self.prepare(params)
        return self._map(params, as_points(points, params.shape[0], self.ndim))

    def grid(self, params: Tensor, size: Sequence[int]) -> Tensor:
        """Source coordinates (N, *size, ndim) of all pixels of an output of `size`, (H, W) or (D, H, W)."""
        params = self.prepare(params)
        return self._map(params, lattice(self.check_size(size), params.device, params.dtype)[None])

    def inverse(self, params: Tensor) -> Tensor:
        """Parameters of the inverse map in the same family; the identity if there is no inverse.

        Raises:
            NotImplementedError: The family does not contain its inverses; use `inverse_points`.
        """
        raise NotImplementedError(
            f'the inverse of {self.name!r} has no parameters of its own; map points back with inverse_points')

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Parameters of `first(second(x))`: an image is warped by `first`, then the result by `second`.

        Raises:
            NotImplementedError: The family is not closed under composition.
        """
        raise NotImplementedError(
            f'{self.name!r} after {self.name!r} has no parameters of its own; '
            f"compose the maps instead, as in get_transform('{self.name}+{self.name}')")

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 15) -> Tensor:
        """Output points whose source points are `points`; see `map_points` for the shapes."""
        raise NotImplementedError(f'{self.name!r} has no inverse')

    def params_of(self, mass: Tensor) -> Tensor:
        """Parameters (N, num_params) that magnify where there is mass (N, h, w), zero or more."""
        return mass.new_zeros(mass.shape[0], self.num_params)

    def prepare(self, params: Tensor) -> Tensor:
        """`params` in float32 or float64, with `guard` applied. Raises a ValueError for another shape."""
        if params.dim() != 2 or params.shape[1] != self.num_params:
            raise ValueError(
                f'{self.name!r} takes params of shape (N, {self.num_params}), got {tuple(params.shape)}')
        return guard(params)

    def check_size(self, size: Sequence[int]) -> Sequence[int]:
        """`size` itself. Raises a ValueError unless it has one entry per dimension."""
        if len(size) != self.ndim:
            raise ValueError(f'{self.name!r} takes a size of {self.ndim} entries, got {tuple(size)}')
        return size

    def _map(self, params: Tensor, points: Tensor) -> Tensor:
        """Source points of `points` (with a batch dimension) for prepared parameters."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transform) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f'get_transform({self.name!r})'
