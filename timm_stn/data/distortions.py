"""The distorted MNIST sets of the paper (section 4.1, appendix A.4), generated on the fly.

| kind | what | canvas |
| --- | --- | --- |
| R | rotation within 90 degrees to either side | 28 |
| RTS | rotation within 45 degrees, scale 0.7 to 1.2, random position | 42 |
| P | scale 0.75 to 1, then each corner moved by N(0, 5 px): a homography | 28 |
| E | scale 0.75 to 1, then 16 thin-plate spline control points moved by N(0, 1.5 px) | 28 |
| T | random position | 60 |
| TC | random position, plus six 6 x 6 patches cut from digits at random positions | 60 |

Our choices where the paper gives no details: everything except N(...) is uniform. A random position keeps the digit's
box of 28 x 28 pixels (scaled, not rotated) inside the canvas, so no ink is cut off. Positions are continuous in RTS and
whole pixels in T and TC. R, P and E stay on 28 x 28. The corners of P are those of the scaled image. No homography can
turn a triangle of three corners over. If one turns over, or shrinks below a tenth of its area (together 3 % of the
digits), the offsets are halved until none does. E uses the control points of this package's `tps` transform, after the
scale. TC cuts patches anywhere in a digit, so they may be black; they are added, and the sum is clamped to 1.

Each digit uses the same number of uniform draws, in order. With a generator on the CPU, the result therefore does not
depend on how a batch is split.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import get_transform, matrix_grid

__all__ = ['DISTORTIONS', 'Distortion', 'as_float', 'between', 'distort', 'integer']

DIGIT = 28  # side of an MNIST image
PATCHES, PATCH = 6, 6  # count and side of the clutter
CORNERS = ((-1., -1.), (1., -1.), (1., 1.), (-1., 1.))  # of an image, xy order, clockwise
SPLINE = get_transform('tps')


class Distortion(NamedTuple):
    """One kind of distorted set."""
    size: int  # side of the canvas
    draws: int  # uniform numbers per digit
    apply: Callable[[Tensor, Tensor, int, Tensor], Tensor]  # (digits, draws (N, draws), size, clutter) -> canvases


def distort(
        images: Tensor,
        kind: str,
        generator: torch.Generator | None = None,
        clutter: Tensor | None = None,
) -> Tensor:
    """Distorted digits of shape (N, 1, S, S), with values in [0, 1], on the device of `images`.

    Args:
        images: Digits (N, 1, 28, 28), floating point in [0, 1] or uint8.
        kind: One of `DISTORTIONS`, which also holds the canvas size S of each kind.
        generator: Source of all randomness. Default: PyTorch's default generator.
        clutter: For TC, the digits (M, 1, 28, 28) to cut patches from. Default: `images`.
    """
    if kind not in DISTORTIONS:
        raise ValueError(f'kind must be one of {", ".join(DISTORTIONS)}; got {kind!r}.')
    clutter = images if clutter is None else clutter
    for name, digits in (('images', images), ('clutter', clutter)):
        if digits.ndim != 4 or digits.shape[1:] != (1, DIGIT, DIGIT):
            raise ValueError(f'{name} must have shape (N, 1, {DIGIT}, {DIGIT}), got {tuple(digits.shape)}.')
    size, draws, apply = DISTORTIONS[kind]
    device = torch.device('cpu') if generator is None else generator.device
    u = torch.rand(len(images), draws, generator=generator, device=device).to(images.device)
    return apply(as_float(images), u, size, clutter)


def as_float(digits: Tensor) -> Tensor:
    """Digits in [0, 1], of bytes or of such."""
    return digits if digits.is_floating_point() else digits.float() / 255


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers from `low` to `high`, of such from 0 to 1."""
    return low + (high - low) * u


def _normal(u: Tensor, std: float) -> Tensor:
    return std * torch.special.ndtri(u.clamp(min=2 ** -25))


def integer(u: Tensor, count: int) -> Tensor:
    """Integers below `count`, equally frequent, of uniform numbers from 0 to 1."""
    return (u * count).long().clamp(max=count - 1)


def _rotate(digits: Tensor, u: Tensor, size: int, clutter: Tensor) -> Tensor:
    angle = between(u[:, 0], -math.pi / 2, math.pi / 2)
    return _place(digits, angle, torch.ones_like(angle), torch.zeros_like(u).expand(-1, 2), size)


def _rotate_scale_translate(digits: Tensor, u: Tensor, size: int, clutter: Tensor) -> Tensor:
    angle = between(u[:, 0], -math.pi / 4, math.pi / 4)
    scale = between(u[:, 1], 0.7, 1.2)
    room = (size - DIGIT * scale) / 2
    return _place(digits, angle, scale, between(u[:, 2:], -1, 1) * room[:, None], size)


def _place(digits: Tensor, angle: Tensor, scale: Tensor, center: Tensor, size: int) -> Tensor:
    """Digits rotated by `angle` (x towards y) and scaled; `center` (N, 2), pixels (x, y) from the canvas centre."""
    cos, sin = angle.cos() / scale, angle.sin() / scale
    linear = torch.stack((cos, sin, -sin, cos), dim=1).reshape(-1, 2, 2)
    shift = -linear @ center[:, :, None]
    theta = torch.cat((linear * (size / DIGIT), shift * (2 / DIGIT)), dim=2)
    return sample(digits, matrix_grid(theta, (size, size)), padding_mode='zeros')


def _project(digits: Tensor, u: Tensor, size: int, clutter: Tensor) -> Tensor:
    corners = _corners(u)
    scale = between(u[:, :1, None], 0.75, 1.)
    offsets = _normal(u[:, 1:], 5 * 2 / size).reshape(-1, 4, 2) / scale
    for _ in range(4):
        offsets = torch.where(_is_convex(corners + offsets), offsets, offsets / 2)
    theta = _homography(scale * (corners + offsets), corners)
    return sample(digits, matrix_grid(theta, (size, size)), padding_mode='zeros')


def _corners(like: Tensor) -> Tensor:
    """`CORNERS`, created on the device of `like`, because CUDA graphs cannot capture a copy from the host."""
    side = torch.linspace(-1, 1, 2, dtype=like.dtype, device=like.device)
    return torch.stack((torch.cat((side, side.flip(0))), side[:, None].expand(2, 2).flatten()), dim=1)


def _is_convex(quad: Tensor) -> Tensor:
    """Whether quadrilaterals (N, 4, 2) turn clearly clockwise (0.4 of 4) at each corner: (N, 1, 1)."""
    edge = quad.roll(-1, dims=1) - quad
    following = edge.roll(-1, dims=1)
    turn = edge[..., 0] * following[..., 1] - edge[..., 1] * following[..., 0]
    return (turn > 0.4).all(dim=1)[:, None, None]


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """Homographies (N, 3, 3) from convex quadrilaterals (N, 4, 2) to `target` (4, 2); denominators positive inside."""
    theta = _basis(target.expand_as(source)) @ _inverse(_basis(source))
    middle = source.mean(dim=1)
    denominator = (theta[:, 2, :2] * middle).sum(dim=1) + theta[:, 2, 2]
    return theta / denominator[:, None, None]


def _basis(quad: Tensor) -> Tensor:
    """Matrices that map the unit vectors to the first three corners, and (1, 1, 1) to the fourth, up to scale."""
    corners = torch.cat((quad, torch.ones_like(quad[..., :1])), dim=2).mT
    weights = _solution(corners[..., :3], corners[..., 3:])
    return corners[..., :3] * weights.mT


def _solution(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(a, b) if a.device.type == 'cpu' else _inverse(a) @ b


def _inverse(m: Tensor) -> Tensor:
    """Inverses of (N, 3, 3). On a GPU by adjugates: torch.linalg synchronises, which CUDA graphs cannot capture."""
    if m.device.type == 'cpu':
        return torch.linalg.inv(m)
    a, b, c = m.unbind(1)
    adjugate = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2)
    return adjugate / (a * adjugate[..., 0]).sum(dim=1)[:, None, None]


def _warp_elastically(digits: Tensor, u: Tensor, size: int, clutter: Tensor) -> Tensor:
    scale = between(u[:, 0], 0.75, 1.)
    offsets = _normal(u[:, 1:], 1.5 * 2 / size)
    grid = SPLINE.grid(offsets, (size, size)) / scale[:, None, None, None]
    return sample(digits, grid, padding_mode='zeros')


def _translate(digits: Tensor, u: Tensor, size: int, clutter: Tensor) -> Tensor:
    canvas = digits.new_zeros(len(digits), 1, size, size)
    canvas[_window(u, size, DIGIT)] = digits[:, 0]
    return canvas


def _translate_and_clutter(digits: Tensor, u: Tensor, size: int, clutter: Tensor) -> Tensor:
    canvas = _translate(digits, u[:, :2], size, clutter)
    for draw in u[:, 2:].reshape(-1, PATCHES, 5).unbind(dim=1):
        chosen = clutter[integer(draw[:, 0], len(clutter))]
        canvas[_window(draw[:, 3:], size, PATCH)] += as_float(chosen[_window(draw[:, 1:3], DIGIT, PATCH)])
    return canvas.clamp_(max=1)


def _window(u: Tensor, size: int, side: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Indices of one square of `side` pixels per image, at uniform whole positions inside images of `size`."""
    start = integer(u, size - side + 1)[:, :, None] + torch.arange(side, device=u.device)
    batch = torch.arange(len(u), device=u.device)[:, None, None]
    return batch, 0, start[:, 1, :, None], start[:, 0, None, :]


DISTORTIONS = {
    'R': Distortion(28, 1, _rotate),
    'RTS': Distortion(42, 4, _rotate_scale_translate),
    'P': Distortion(28, 9, _project),
    'E': Distortion(28, 33, _warp_elastically),
    'T': Distortion(60, 2, _translate),
    'TC': Distortion(60, 2 + 5 * PATCHES, _translate_and_clutter),
}
