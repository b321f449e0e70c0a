"""Scattered birds: a photograph somewhere on a canvas of twice to sixteen times its area, made on the fly.

| what | how large, of the 448 pixels of a side | where from |
| --- | --- | --- |
| the bird's photograph | a side of 0.25 to 0.75 (112 to 336 pixels), uniform; anywhere inside | its own |
| the canvas | a square of 64 pixels, mirrored over and over | a corner of another photograph |
| eight patches beneath the bird | 32 to 88 pixels | the corners of other photographs, which seldom show the bird |

The photograph fades out towards its edge, over a fifth of its half-width. There is no mask: the bird's own surroundings
come with it. Its box is that of the photograph.
"""
import torch
from torch import Tensor

from timm_stn.data.birds import CROP_DRAWS, random_crops
from timm_stn.data.distortions import as_float, between, integer
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid

__all__ = ['DRAWS', 'SIDE', 'boxes', 'scattered']

SIDE = 448
LEAST, MOST = 0.25, 0.75  # of the canvas's side
FEATHER = 0.2  # of the photograph's half-width
TEXTURE = 64
PATCHES = (32, 40, 48, 56, 64, 72, 80, 88)
OFF_CORNER = 16  # pixels that a window may be away from the photograph's corner
PARTS = {  # uniform numbers per image
    'scale': 1, 'place': 2, 'texture': 3, 'shift': 2, 'patches': 5 * len(PATCHES), 'crop': CROP_DRAWS}
DRAWS = sum(PARTS.values())


def scattered(
        photos: Tensor,
        labels: Tensor,
        index: Tensor,
        u: Tensor,
        crops: bool = False,
) -> tuple[Tensor, Tensor]:
    """Canvases (N, 3, 448, 448) in [0, 1], and their classes (N,).

    An image depends on its own row of `index` and `u` only. CUDA graphs can capture the call.

    Args:
        photos: Photographs (M, 3, S, S), floating point in [0, 1] or uint8. Other ones than the bird's own are drawn
            from all of them.
        labels: Their classes (M,), int64.
        index: Each canvas's bird, (N,), int64.
        u: All that is random, (N, DRAWS), uniform in [0, 1).
        crops: Show a random crop of the photograph, as in training, in its place.

    Raises:
        ValueError: A shape that is not as above.
    """
    fits = photos.ndim == 4 and min(photos.shape[2:]) >= max(PATCHES) and photos.shape[2] == photos.shape[3]
    if u.shape != (len(index), DRAWS) or not fits or len(photos) != len(labels):
        raise ValueError(f'scattered takes photos (M, 3, S, S) with S from {max(PATCHES)}, labels (M,) and '
                         f'u ({len(index)}, {DRAWS}); got '
                         f'{tuple(photos.shape)}, {tuple(labels.shape)} and {tuple(u.shape)}.')
    draw = _drawn(u)
    canvas = _texture(photos, draw['texture'], draw['shift'])
    for side, numbers in zip(PATCHES, draw['patches'].reshape(len(u), -1, 5).unbind(1)):
        _paste(canvas, photos, side, numbers)
    bird = as_float(photos[index])
    bird = random_crops(bird, draw['crop']) if crops else bird
    center, half = _place(draw)
    zero = torch.zeros_like(half)
    theta = torch.stack((1 / half, zero, -center[:, 0] / half, zero, 1 / half, -center[:, 1] / half), dim=1)
    grid = matrix_grid(theta.reshape(-1, 2, 3), (SIDE, SIDE))
    alpha = ((1 - grid.abs()) / FEATHER).clamp(0, 1).prod(dim=3)[:, None]
    # of the smallest, a pixel is the mean of four of the photograph: nothing is skipped
    return torch.lerp(as_float(canvas), sample(bird, grid, padding_mode='border'), alpha), labels[index]


def boxes(labels: Tensor, index: Tensor, u: Tensor) -> Tensor:
    """Of the same canvases, where the photograph is: (N, 4), left, top, right, bottom, in [-1, 1] from edge to edge."""
    center, half = _place(_drawn(u))
    return torch.cat((center - half[:, None], center + half[:, None]), dim=1)


def _drawn(u: Tensor) -> dict[str, Tensor]:
    return dict(zip(PARTS, torch.split(u, list(PARTS.values()), dim=1)))


def _place(draw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Centres (N, 2), xy in [-1, 1], and half-widths (N,)."""
    half = between(draw['scale'][:, 0], LEAST, MOST)
    return between(draw['place'], -1, 1) * (1 - half[:, None]), half


def _texture(photos: Tensor, u: Tensor, shift: Tensor) -> Tensor:
    """Canvases (N, 3, 448, 448) of the photographs' type, of a corner mirrored again and again."""
    period = 2 * TEXTURE
    start = _near_a_corner(u[:, 1:], photos.shape[2] - TEXTURE)  # (N, xy)
    along = (torch.arange(period, device=u.device) + integer(shift, period)[:, :, None]) % period  # (N, xy, period)
    along = torch.minimum(along, period - 1 - along) + start[:, :, None]
    tile = _window(photos, integer(u[:, 0], len(photos)), along)
    times = -(-SIDE // period)
    return tile.repeat(1, 1, times, times)[:, :, :SIDE, :SIDE].contiguous()


def _paste(canvas: Tensor, photos: Tensor, side: int, u: Tensor) -> None:
    """Write a square near a corner of one photograph each onto canvases, anywhere."""
    axis = torch.arange(side, device=u.device)
    source = _near_a_corner(u[:, 1:3], photos.shape[2] - side)[:, :, None] + axis
    target = integer(u[:, 3:], SIDE - side + 1)[:, :, None] + axis
    batch = torch.arange(len(u), device=u.device)[:, None, None]
    patch = _window(photos, integer(u[:, 0], len(photos)), source)
    canvas.permute(0, 2, 3, 1)[batch, target[:, 1, :, None], target[:, 0, None, :]] = patch.permute(0, 2, 3, 1)


def _window(photos: Tensor, chosen: Tensor, along: Tensor) -> Tensor:
    """The pixels (N, C, h, h) at columns along[:, 0] and rows along[:, 1] of the chosen photographs."""
    found = photos.permute(0, 2, 3, 1)[chosen[:, None, None], along[:, 1, :, None], along[:, 0, None, :]]
    return found.permute(0, 3, 1, 2).contiguous()


def _near_a_corner(u: Tensor, room: int) -> Tensor:
    """Where windows begin (N, 2): at most 16 pixels from one end or the other of their room."""
    near = integer((2 * u) % 1, min(OFF_CORNER, room) + 1)
    return torch.where(u < 0.5, near, room - near)
