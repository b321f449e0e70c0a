"""The full linear families: parameters are the entries of the matrix minus the identity."""
import torch
from torch import Tensor

from .linear import LinearTransform
from .matrix import MIN_DETERMINANT, eye_like, guard

__all__ = ['Affine', 'Affine3d', 'Projective']


class Affine(LinearTransform):
    """Parameters: the 2 x 3 matrix minus the identity, row-major."""
    name = 'affine'
    num_params = 6
    shape = (2, 3)

    def matrix(self, params: Tensor) -> Tensor:
        increments = self.prepare(params).reshape(-1, *self.shape)
        return increments + eye_like(increments)

    def from_matrix(self, theta: Tensor) -> Tensor:
        return (theta - eye_like(theta)).flatten(1)


class Affine3d(Affine):
    """Parameters: the 3 x 4 matrix minus the identity, row-major; for volumes."""
    name = 'affine3d'
    num_params = 12
    ndim = 3
    shape = (3, 4)


class Projective(Affine):
    """Parameters: the first eight entries of the 3 x 3 matrix minus the identity, row-major; its last entry is 1.

    Denominators keep their sign and a magnitude of at least 1e-6. An inverse or a composition may have a last entry of
    0 (it maps the centre to infinity). Such a homography is not in the family and is replaced by the identity.
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

