"""Scenes: a small traffic sign anywhere on a canvas of 256 x 256 pixels, among texture and clutter, made on the fly.

The whole image of a sign, 20 to 56 pixels wide and high, lies anywhere inside the canvas; the outer quarter of its
half-width fades into what is below. Sides and positions are uniform and continuous. Below lie a colour with three
gratings of sines (of 16 to 128 pixels), and on them twelve pieces of 24 x 24 pixels, each cut from another sign's image
(of the same split), a twelfth to a third of its side, and turned by any angle: they have a sign's colours and edges,
but are none.
"""
import math

import torch
from torch import Tensor

from timm_stn.data.distortions import as_float, between, integer
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid

__all__ = ['CANVAS', 'DRAWS', 'scene_boxes', 'sign_scenes']

CANVAS = 256  # side, pixels
LEAST, MOST = 20, 56  # sides of a sign's image, pixels
WINDOW = 64  # side of the part of the canvas in which a sign is drawn
COARSE = 64  # side of the texture, before it is enlarged
GRATINGS, PIECES, PIECE = 3, 12, 24
PARTS = {'side': 1, 'place': 2, 'colour': 3, 'gratings': 6 * GRATINGS, 'pieces': 7 * PIECES}
DRAWS = sum(PARTS.values())


def sign_scenes(signs: Tensor, known: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Scenes (N, 3, 256, 256) in [0, 1], channels last in memory, and the classes (N,) of their signs.

    An image depends on its own row of `index` and `u` only. CUDA graphs can capture the call.

    Args:
        signs: Signs (M, 3, 32, 32), floating point in [0, 1] or uint8.
        known: What `load_signs` knows of them, (M, 5).
        index: Each scene's sign, (N,), int64.
        u: All that is random, (N, 108), uniform in [0, 1).

    Raises:
        ValueError: `u` has another shape.
    """
    if u.shape != (len(index), DRAWS):
        raise ValueError(f'u must have shape {(len(index), DRAWS)}, got {tuple(u.shape)}.')
    draw = dict(zip(PARTS, torch.split(u, list(PARTS.values()), dim=1)))
    canvas = _texture(draw['colour'], draw['gratings'])
    for piece in draw['pieces'].reshape(-1, PIECES, 7).unbind(dim=1):
        canvas[_window(integer(piece[:, 5:], CANVAS - PIECE + 1), PIECE)] = _piece(signs, piece)
    side, corner = _where(draw)
    start = (corner + side / 2 - WINDOW / 2).floor().clamp(0, CANVAS - WINDOW)
    scale = WINDOW / side
    shift = (2 * (start - corner) + WINDOW) / side - 1  # where the window's centre lies in the sign's image
    theta = torch.cat((torch.diag_embed(scale.expand(-1, 2)), shift[:, :, None]), dim=2)
    grid = matrix_grid(theta, (WINDOW, WINDOW))
    alpha = ((1 - grid.abs()) * 4).clamp(0, 1).prod(dim=3, keepdim=True)
    image = sample(as_float(signs[index]).to(u.dtype), grid).permute(0, 2, 3, 1)
    window = _window(start.long(), WINDOW)
    canvas[window] = torch.lerp(canvas[window], image, alpha)
    return canvas.permute(0, 3, 1, 2), known[index, 0]


def scene_boxes(known: Tensor, index: Tensor, u: Tensor) -> Tensor:
    """True boxes (N, 4) of what `sign_scenes` makes: left, top, right, bottom, in [-1, 1] from edge to edge."""
    side, corner = _where(dict(zip(PARTS, torch.split(u, list(PARTS.values()), dim=1))))
    box = known[index, 1:].to(u.dtype) / 1000
    return (torch.cat((corner, corner), dim=1) + box * side) * (2 / CANVAS) - 1


def _where(draw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Side (N, 1) and top left corner (N, 2), x and y, of a sign's image in pixels from the canvas's corner."""
    side = between(draw['side'], LEAST, MOST)
    return side, draw['place'] * (CANVAS - side)


def _window(start: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of one square of `side` pixels per canvas (N, H, W, 3), from whole numbers (N, 2), x and y."""
    span = start[:, :, None] + torch.arange(side, device=start.device)
    return torch.arange(len(start), device=start.device)[:, None, None], span[:, 1, :, None], span[:, 0, None, :]


def _texture(colour: Tensor, u: Tensor) -> Tensor:
    """A colour plus gratings, of another amplitude (0.15 at most) in each channel: (N, 256, 256, 3)."""
    axis = torch.arange(COARSE, dtype=u.dtype, device=u.device)
    coarse = between(colour, 0.15, 0.85)[:, :, None, None].expand(-1, -1, COARSE, COARSE)
    for grating in u.reshape(-1, GRATINGS, 6).unbind(dim=1):
        angle, phase = (2 * math.pi * grating[:, i, None, None] for i in (0, 1))
        wave = 2 * math.pi / (16 * 8 ** grating[:, 2, None, None]) * (CANVAS / COARSE)  # radians per coarse pixel
        sine = (wave * (angle.cos() * axis + angle.sin() * axis[:, None]) + phase).sin()
        coarse = coarse + between(grating[:, 3:], -0.15, 0.15)[:, :, None, None] * sine[:, None]
    coarse = coarse.clamp(0, 1).contiguous(memory_format=torch.channels_last)
    fine = torch.nn.functional.interpolate(coarse, size=(CANVAS, CANVAS), mode='bilinear')
    return fine.permute(0, 2, 3, 1).contiguous()


def _piece(signs: Tensor, u: Tensor) -> Tensor:
    """A square out of a sign's image, turned and enlarged to 24 x 24 pixels: (N, 24, 24, 3)."""
    angle, scale = 2 * math.pi * u[:, 0], between(u[:, 1], 1 / 12, 1 / 3)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack((cos, -sin, sin, cos), dim=1).reshape(-1, 2, 2)
    theta = torch.cat((linear, between(u[:, 2:4], -0.6, 0.6)[:, :, None]), dim=2)
    images = as_float(signs[integer(u[:, 4], len(signs))]).to(u.dtype)
    return sample(images, matrix_grid(theta, (PIECE, PIECE))).permute(0, 2, 3, 1)
