"""The base class of families with a matrix, and the 2-D families with fewer than six parameters."""
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Transform
from .matrix import (
    MIN_DETERMINANT,
    compose_matrices,
    guard,
    invert_matrix,
    map_points_matrix,
    matrix_grid,
)

__all__ = ['Attention', 'LinearTransform', 'Rotation', 'ScaleTranslation', 'Similarity', 'Translation']


class LinearTransform(Transform):
    """A family of matrices. All methods use `matrix` and, if the family is a group, `from_matrix`."""
    linear = True

    def matrix(self, params: Tensor) -> Tensor:
        """Absolute matrices of parameters (N, num_params): (N, 2, 3), (N, 3, 3) or (N, 3, 4)."""
        raise NotImplementedError

    def from_matrix(self, theta: Tensor) -> Tensor:
        """Parameters of absolute matrices that belong to the family."""
        raise NotImplementedError(f'{self.name!r} is not read from a matrix')

    def grid(self, params: Tensor, size: Sequence[int]) -> Tensor:
        return matrix_grid(self.matrix(params), self.check_size(size))

    @property
    def is_closed(self) -> bool:
        """Whether inverses and compositions belong to the family, so that their parameters can be read off a matrix."""
        return type(self).from_matrix is not LinearTransform.from_matrix

    def inverse(self, params: Tensor) -> Tensor:
        if not self.is_closed:
            return super().inverse(params)
        return self.from_matrix(invert_matrix(self.matrix(params)))

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.is_closed:
            return super().compose(first, second)
        return self.from_matrix(compose_matrices(self.matrix(first), self.matrix(second)))

    def map_points(self, params: Tensor, points: Tensor) -> Tensor:
        return map_points_matrix(self.matrix(params), points)

    def inverse_points(self, params: Tensor, points: Tensor, iterations: int = 0) -> Tensor:
        """Output points whose source points are `points`, in closed form. A map without inverse is the identity."""
        return map_points_matrix(invert_matrix(self.matrix(params)), points)


class Translation(LinearTransform):
    """Parameters (tx, ty)."""
    name = 'translation'
    num_params = 2

    def matrix(self, params: Tensor) -> Tensor:
        tx, ty = self.prepare(params).unbind(1)
        one, zero = torch.ones_like(tx), torch.zeros_like(tx)
        return _matrix(one, zero, tx, zero, one, ty)

    def from_matrix(self, theta: Tensor) -> Tensor:
        return theta[:, :, 2]


class Attention(LinearTransform):
    """Parameters (s, tx, ty): scale 1 + s, the attention of the paper (a crop of half-size 1 + s around tx, ty)."""
    name = 'attention'
    num_params = 3

    def matrix(self, params: Tensor) -> Tensor:
        s, tx, ty = self.prepare(params).unbind(1)
        zero = torch.zeros_like(s)
        return _matrix(1 + s, zero, tx, zero, 1 + s, ty)

    def from_matrix(self, theta: Tensor) -> Tensor:
        return torch.stack([theta[:, 0, 0] - 1, theta[:, 0, 2], theta[:, 1, 2]], 1)


class ScaleTranslation(LinearTransform):
    """Parameters (sx, sy, tx, ty): scales 1 + sx and 1 + sy."""
    name = 'scale_translation'
    num_params = 4

    def matrix(self, params: Tensor) -> Tensor:
        sx, sy, tx, ty = self.prepare(params).unbind(1)
        zero = torch.zeros_like(sx)
        return _matrix(1 + sx, zero, tx, zero, 1 + sy, ty)

    def from_matrix(self, theta: Tensor) -> Tensor:
        return torch.stack([theta[:, 0, 0] - 1, theta[:, 1, 1] - 1, theta[:, 0, 2], theta[:, 1, 2]], 1)


class Rotation(LinearTransform):
    """Parameters (angle,): rotation about the image centre, in radians, x towards y, in normalised coordinates."""
    name = 'rotation'
    num_params = 1

    def matrix(self, params: Tensor) -> Tensor:
        cos, sin = self.prepare(params)[:, 0].cos(), self.prepare(params)[:, 0].sin()
        zero = torch.zeros_like(cos)
        return _matrix(cos, -sin, zero, sin, cos, zero)

    def inverse(self, params: Tensor) -> Tensor:
        return -self.prepare(params)

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        return self.prepare(first) + self.prepare(second)


class Similarity(LinearTransform):
    """Parameters (s, angle, tx, ty): scale 1 + s; rotation in radians, x towards y, in normalised coordinates."""
    name = 'similarity'
    num_params = 4

    def matrix(self, params: Tensor) -> Tensor:
        s, angle, tx, ty = self.prepare(params).unbind(1)
        cos, sin = (1 + s) * angle.cos(), (1 + s) * angle.sin()
        return _matrix(cos, -sin, tx, sin, cos, ty)

    def inverse(self, params: Tensor) -> Tensor:
        params = self.prepare(params)
        theta = invert_matrix(self.matrix(params))
        scale = 1 + params[:, :1]
        usable = scale.square() >= MIN_DETERMINANT
        turned = torch.cat([1 / torch.where(usable, scale, 1) - 1, -params[:, 1:2], theta[:, :, 2]], 1)
        return guard(torch.where(usable, turned, 0))

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = self.prepare(first), self.prepare(second)
        shift = compose_matrices(self.matrix(first), self.matrix(second))[:, :, 2]
        scale = first[:, :1] + second[:, :1] + first[:, :1] * second[:, :1]
        return torch.cat([scale, first[:, 1:2] + second[:, 1:2], shift], 1)


def _matrix(*entries: Tensor) -> Tensor:
    """Matrices (N, 2, 3) of row-major entries (N,)."""
    return torch.stack(entries, 1).reshape(-1, 2, 3)
