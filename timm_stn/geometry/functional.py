"""Warping as functions: `warp`, its inverse `unwarp`, and `map_points` for points.

Convention: theta maps *output* to *source* coordinates, xy(z) order, both in [-1, 1] with half-pixel centres
(`align_corners=False`). theta of shape (N, 2, 3), (N, 3, 3) or (N, 3, 4) is an absolute matrix, as for `F.affine_grid`
(with a last row for homographies); `transform` is then not used. theta of shape (N, P) holds the parameters of the
family `transform`, increments on the identity: zeros change nothing. What other libraries give as six numbers is
usually a matrix, `theta.reshape(-1, 2, 3)`. Coordinates are float32 (float64 for float64 images), for any theta.
"""
import warnings
from collections.abc import Sequence

from torch import Tensor

from .grid import coordinate_dtype, has_values
from .pose import pose_of
from .reading import read_at
from .sampler import Fill, Sampling
from .sizes import as_sides
from .symbolic import recorded_call
from .transforms import Transform, get_transform
from .transforms.linear import LinearTransform
from .transforms.matrix import eye_like

__all__ = ['map_points', 'unwarp', 'warp']

NUMBERS_OF_MATRICES = (6, 8, 12)  # that are written flat: affine, projective without its last, affine of volumes


@recorded_call
def warp(
        image: Tensor,
        theta: Tensor,
        transform: str | Transform = 'affine',
        size: int | Sequence[int] | None = None,
        mode: str = 'bilinear',
        padding_mode: str = 'border',
        fill: Fill = None,
        antialias: bool = False,
) -> Tensor:
    """Images (N, C, *size) warped from images (N, C, H, W) or volumes (N, C, D, H, W); keeps dtype and memory format.

    If a sample's theta has a value that is NaN, infinite or above 1e6 in magnitude, the sample is not transformed and
    its theta gets a gradient of exactly 0.

    Args:
        image: See `timm_stn.sample`, also for the options not listed here.
        theta: Absolute matrices (N, 2, 3), (N, 3, 3), (N, 3, 4), or parameters (N, P) of `transform`, which are
            increments: zeros are the identity. One per image or one for all.
        transform: The name of a family, `'a+b'` (a, then b on the result), or a `Transform`.
        size: Output size, (H, W) or (D, H, W). Default: the image's size.

    Raises:
        ValueError: for shapes, names or options other than these.
        TypeError: for integer or bool images with an interpolating mode, or an integer theta.

    Warns:
        UserWarning: theta, on the CPU and outside of traced code, begins with parameters that are the identity if taken
            for a matrix: [1, 0, 0, 0, 1, 0], which zooms out by two. So for `unwarp` and `map_points`.
    """
    sampling = Sampling(mode, padding_mode, fill, antialias)
    sampling.check(image)
    theta = _check_theta(theta, image)
    _check_transform(theta, transform)
    size = _check_size(image.shape[2:] if size is None else size, image)
    return read_at(image, _expand(pose_of(theta, transform).at(size), image), size, sampling)


@recorded_call
def unwarp(
        image: Tensor,
        theta: Tensor,
        size: int | Sequence[int],
        transform: str | Transform = 'affine',
        mode: str = 'bilinear',
        padding_mode: str = 'zeros',
        fill: Fill = None,
) -> Tensor:
    """Features or masks of a warped image, mapped back to the coordinates of the input: (N, C, *size).

    Args:
        image: Features or masks of the output of `warp`, at any resolution; see `timm_stn.sample`.
        theta: The theta given to `warp`. A theta without inverse is replaced by the identity.
        size: Size of the result, usually that of the input of `warp`, or a fraction of it.
        transform: The transform given to `warp`.
        mode: Use `'nearest'` for label masks.
        padding_mode: Values for parts of the input outside the warped image.

    Raises:
        ValueError, TypeError: as `warp`.
    """
    sampling = Sampling(mode, padding_mode, fill)
    sampling.check(image)
    theta = _check_theta(theta, image)
    _check_transform(theta, transform)
    size = _check_size(size, image)
    return read_at(image, _expand(pose_of(theta, transform).inverse_at(size), image), size, sampling)


@recorded_call
def map_points(theta: Tensor, points: Tensor, transform: str | Transform = 'affine') -> Tensor:
    """Source coordinates (N, ..., 2 or 3) of points in the warped image.

    Args:
        theta: Absolute matrices or parameters of `transform`.
        points: (N, ..., 2 or 3), or (M, 2 or 3) for all samples, in xy(z) order and [-1, 1].
        transform: The name of a family, `'a+b'`, or a `Transform`.

    Raises:
        ValueError, TypeError: for shapes, names or types other than these.
    """
    if not isinstance(theta, Tensor) or not isinstance(points, Tensor):
        raise TypeError(f'theta and points must be tensors, got {type(theta).__name__}, {type(points).__name__}')
    _check_transform(theta, transform)
    return pose_of(theta, transform).map_points(points)


def _check_theta(theta: Tensor, image: Tensor) -> Tensor:
    """theta in the coordinate dtype; raises if it does not fit the image."""
    if not isinstance(theta, Tensor):
        raise TypeError(f'theta must be a tensor, got {type(theta).__name__}')
    if theta.ndim not in (2, 3) or theta.shape[0] not in (1, image.shape[0]):
        raise ValueError(
            f'theta must be (N, 2, 3), (N, 3, 3), (N, 3, 4) or (N, P) with N = {image.shape[0]}, the number of images, '
            f'or 1; got shape {tuple(theta.shape)}')
    if not theta.is_floating_point():
        raise TypeError(f'theta must be of a floating-point dtype, got {theta.dtype}')
    return theta.to(coordinate_dtype(image.dtype))


def _check_transform(theta: Tensor, transform: str | Transform) -> None:
    """Raise where this names no transform, also if theta needs none; warn where theta looks like a matrix."""
    if not isinstance(transform, (str, Transform)):
        raise ValueError(f'transform must be a name, as in affine+tps, got {transform!r}; sizes go into size=')
    if theta.ndim == 2:
        _doubt(theta, transform)
    elif isinstance(transform, str) and transform != 'affine':
        get_transform(transform)


def _doubt(theta: Tensor, transform: str | Transform) -> None:
    """Warn of increments that zoom out by exactly two, and do nothing else: 1 where a matrix has 1."""
    if theta.device.type != 'cpu' or not len(theta) or not has_values(theta):
        return
    if theta.shape[1] not in NUMBERS_OF_MATRICES:
        return
    row, family = theta[0].tolist(), get_transform(transform)
    if 1 not in row or not set(row) <= {0, 1}:
        return
    if len(row) != family.num_params or not isinstance(family, LinearTransform):
        return
    matrix = family.matrix(theta[:1].detach())
    expected = eye_like(matrix)
    expected[:family.ndim] *= 2
    if bool((matrix == expected).all()):
        numbers = ', '.join(f'{number:g}' for number in row)
        warnings.warn(
            f'theta begins with [{numbers}], as if it were absolute: parameters (N, P) are increments on the identity, '
            f'which is zeros, and so these of {family.name!r} zoom out by two. Matrices have the shape (N, 2, 3), '
            '(N, 3, 3) or (N, 3, 4): theta.reshape(-1, 2, 3), say.', stacklevel=5)  # of whom calls what is recorded


def _check_size(size: int | Sequence[int], image: Tensor) -> Sequence[int]:
    sides: Sequence[int] = as_sides(size, image.ndim - 2)
    is_wrong = not isinstance(sides, tuple) or any(isinstance(side, (float, str, bool)) for side in sides)
    if is_wrong or len(sides) != image.ndim - 2 or min(sides) < 1:  # sides of a traced program may be no integers
        raise ValueError(f'size must be {image.ndim - 2} positive integers for an image of shape '
                         f'{tuple(image.shape)}, got {size!r}')
    return sides


def _expand(at: Tensor, image: Tensor) -> Tensor:
    return at if at.shape[0] == image.shape[0] else at.expand(image.shape[0], *at.shape[1:])
