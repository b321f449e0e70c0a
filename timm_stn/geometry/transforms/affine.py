"""The full linear families: parameters are the entries of the matrix, less those of the identity."""
import torch
from torch import Tensor

from .linear import LinearTransform
from .matrix import MIN_DETERMINANT, eye_like, guard

__all__ = ['Affine', 'Affine3d', 'Projective']


class Affine(LinearTransform):
    """Parameters: row-major 2 x 3 less the identity."""
    name = 'affine'
    num_params = 6
    shape = (2, 3)

    def matrix(self, params: Tensor) -> Tensor:
        increments = self.prepare(params).reshape(-1, *self.shape)
        return increments + eye_like(increments)

    def from_matrix(self, theta: Tensor) -> Tensor:
        return (theta - eye_like(theta)).flatten(1)


class Affine3d(Affine):
    """Parameters: row-major 3 x 4 less the identity, for volumes."""
    name = 'affine3d'
    num_params = 12
    ndim = 3
    shape = (3, 4)


class Projective(Affine):
    """Parameters: the first eight of row-major 3 x 3 less the identity; the last entry of the matrix is 1.

    Denominators are kept at a magnitude of at least 1e-6, with their sign. A homography whose last entry is 0 (it maps
    the centre to infinity), which an inverse or a composition may give, is not in the family: the identity takes its
    place.
    """
    name = 'projective'
    num_params = 8
    shape = (3, 3)

    def matrix(self, params: Tensor) -> Tensor:
        params = self.prepare(params)
        increments = torch.cat([params, torch.zeros_like(params[:, :1])], 1).reshape(-1, *self.shape)
        return increments + eye_like(increments)

    def from_matrix(self, theta: Tensor) -> Tensor:
        last = theta[:, 2:, 2:]
        usable = last.abs() >= MIN_DETERMINANT
        increments = torch.where(usable, theta / torch.where(usable, last, 1) - eye_like(theta), 0)
        return guard(increments.flatten(1)[:, :8])

