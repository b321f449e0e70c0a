"""Warping as functions: `warp` looks, `unwarp` brings back, `map_points` follows points.

Convention: theta maps *output* to *source* coordinates, xy(z) order, both in [-1, 1] with half-pixel centres
(`align_corners=False`). Of shape (N, 2, 3), (N, 3, 3) or (N, 3, 4) it is absolute, what `F.affine_grid` takes (with a
last row for homographies), and `transform` is not used; of shape (N, P) it holds the parameters of the family
`transform`, increments on the identity. Coordinates are float32, float64 for float64 images, whatever theta's dtype.
"""
from collections.abc import Sequence

from torch import Tensor

from .grid import coordinate_dtype
from .pose import pose_of
from .sampler import Fill, Sampling
from .transforms import Transform

__all__ = ['map_points', 'unwarp', 'warp']


def warp(
        image: Tensor,
        theta: Tensor,
        transform: str | Transform = 'affine',
        size: Sequence[int] | None = None,
        mode: str = 'bilinear',
        padding_mode: str = 'border',
        fill: Fill = None,
        antialias: bool = False,
) -> Tensor:
    """Warp images (N, C, H, W) or volumes (N, C, D, H, W) by theta: (N, C, *size), dtype and memory format kept.

    A sample whose theta holds a value that is NaN, infinite or above 1e6 in magnitude is not transformed, and gives
    that theta a gradient of exactly 0.

    Args:
        image: See `timm_stn.sample`, as for the options not named here.
        theta: Absolute matrices or parameters of `transform`, one for each image or one for all.
        transform: The name of a family, `'a+b'` (a, then b on the result), or a `Transform`.
        size: Output size, (H, W) or (D, H, W); that of the image by default.

    Raises:
        ValueError: for shapes, names or options other than these.
        TypeError: for integer or bool images with an interpolating mode, or an integer theta.
    """
    sampling = Sampling(mode, padding_mode, fill, antialias)
    sampling.check(image)
    theta = _check_theta(theta, image)
    size = _check_size(image.shape[2:] if size is None else size, image)
    return sampling.read(image, _expand(pose_of(theta, transform).grid(size), image))


def unwarp(
        image: Tensor,
        theta: Tensor,
        size: Sequence[int],
        transform: str | Transform = 'affine',
        mode: str = 'bilinear',
        padding_mode: str = 'zeros',
        fill: Fill = None,
) -> Tensor:
    """Bring features or masks of a warped image back to the coordinates of the input: (N, C, *size).

    Args:
        image: What was computed from the output of `warp`, at any resolution; see `timm_stn.sample`.
        theta: As it was given to `warp`. Where it has no inverse, it is taken for the identity.
        size: Size of the result, usually that of the input of `warp`, or a fraction of it.
        transform: As it was given to `warp`.
        mode: `'nearest'` for masks of labels.
        padding_mode: What the parts of the input get that the warp did not show.

    Raises:
        ValueError, TypeError: as `warp`.
    """
    sampling = Sampling(mode, padding_mode, fill)
    sampling.check(image)
    theta = _check_theta(theta, image)
    size = _check_size(size, image)
    return sampling.read(image, _expand(pose_of(theta, transform).inverse_grid(size), image))


def map_points(theta: Tensor, points: Tensor, transform: str | Transform = 'affine') -> Tensor:
    """Where points of the warped image lie in its source: (N, ..., 2 or 3).

    Args:
        theta: Absolute matrices or parameters of `transform`.
        points: (N, ..., 2 or 3), or (M, 2 or 3) for all samples, in xy(z) order and [-1, 1].
        transform: The name of a family, `'a+b'`, or a `Transform`.
    """
    return pose_of(theta, transform).map_points(points)


def _check_theta(theta: Tensor, image: Tensor) -> Tensor:
    """theta in the dtype of coordinates, if it fits the image."""
    if theta.ndim not in (2, 3) or theta.shape[0] not in (1, image.shape[0]):
        raise ValueError(
            f'theta must be (N, 2, 3), (N, 3, 3), (N, 3, 4) or (N, P) with N = {image.shape[0]}, the number of images, '
            f'or 1; got shape {tuple(theta.shape)}')
    if not theta.is_floating_point():
        raise TypeError(f'theta must be of a floating-point dtype, got {theta.dtype}')
    return theta.to(coordinate_dtype(image.dtype))


def _check_size(size: Sequence[int], image: Tensor) -> Sequence[int]:
    if len(size) != image.ndim - 2 or min(size) < 1:
        raise ValueError(f'size must be {image.ndim - 2} positive integers for an image of shape '
                         f'{tuple(image.shape)}, got {size!r}')
    return size


def _expand(grid: Tensor, image: Tensor) -> Tensor:
    return grid if grid.shape[0] == image.shape[0] else grid.expand(image.shape[0], *grid.shape[1:])
