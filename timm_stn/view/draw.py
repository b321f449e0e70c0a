"""Pictures of where spatial transformers looked, what they saw, and what the network answered. Needs only Pillow.

Coordinates are those of the package: xy order, [-1, 1] over the area of the image, half-pixel centres. Pixels are
(N, C, H, W) in [0, 1], of 1 or 3 channels.
"""
import math
import os
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..modules.spatial_transformer import SpatialTransformer
from ..whole_file import write_whole
from .caption import FAINT, RULE, SCALE, Caption, draw_caption, width_of, wrap, write

__all__ = [
    'COLORS', 'Caption', 'draw_look', 'draw_outlines', 'draw_seen', 'heat', 'outline', 'picture_format', 'save_picture']

COLORS = ('#FFB000', '#22B8F0', '#F0529C', '#7BD651', '#A78BFA', '#FF7A45')  # colours of the glimpses, in turn
TRUTH, PAPER = '#FFFFFF', '#FFFFFF'
HEAT = ((0.09, 0.10, 0.22), (0.72, 0.29, 0.36), (1.0, 0.89, 0.60))  # low, middle, high
MARGIN, GAP, ARROW, BLOCK_GAP, ROW_GAP = 22, 10, 20, 34, 12
ASPECT = 1.6  # target width / height of the picture


class Frame(NamedTuple):
    """The layout of a picture, in units of 1 / SCALE pixels."""
    tile: int
    tiles: int
    answer: int
    blocks: int
    rows: int

    @property
    def block(self) -> int:
        return self.tile * (1 + self.tiles) + ARROW + GAP * self.tiles + self.answer

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.blocks * self.block + (self.blocks - 1) * BLOCK_GAP

    def corner(self, i: int) -> tuple[int, int]:
        """Top left corner of row i; rows fill the blocks from top to bottom."""
        block, row = divmod(i, self.rows)
        return MARGIN + block * (self.block + BLOCK_GAP), MARGIN + 18 + row * (self.tile + ROW_GAP)

    def tile_x(self, t: int) -> int:
        """x offset of tile t (what was seen) in its row; t = ``tiles`` gives that of the answer."""
        return self.tile + ARROW + t * (self.tile + GAP)


def outline(transformer: SpatialTransformer, theta: Tensor, points_per_side: int = 32) -> Tensor:
    """The border of a transformer's output in coordinates of its input: (N, G, K, 2), K = 4 ``points_per_side``.

    Args:
        transformer: The transformer of theta; for images, not volumes.
        theta: As from ``look`` and in ``last_theta``, with or without a dimension G of glimpses.
        points_per_side: Points on each side; curved borders (tps, diffeomorphic) need many.

    Returns:
        Points clockwise from the top left corner of the output. The last point does not repeat the first.

    Raises:
        ValueError: ``transformer`` is for volumes.
    """
    if transformer.transform.ndim != 2:
        raise ValueError(f'transformer must be for images, got transform={transformer.transform.name!r} for volumes.')
    side = torch.arange(points_per_side, device=theta.device, dtype=theta.dtype) * (2 / points_per_side) - 1
    edge = torch.ones_like(side)
    border = torch.cat([torch.stack(s, -1) for s in ((side, -edge), (edge, side), (-side, edge), (-edge, -side))])
    single = theta.ndim == (3 if transformer.transform.linear else 2)
    glimpses = 1 if single else theta.shape[1]
    points = transformer.map_points(theta if single else theta.flatten(0, 1), border[None])
    return points.reshape(-1, glimpses, len(border), 2)


def heat(maps: Tensor) -> Tensor:
    """Colours (N, T, 3, h, w) of feature maps (N, T, C, h, w): the mean over channels, from lowest to highest."""
    mean = maps.float().mean(2, keepdim=True)
    low, high = mean.amin((1, 2, 3, 4), keepdim=True), mean.amax((1, 2, 3, 4), keepdim=True)
    x = (mean - low) / (high - low).clamp_min(1e-12)
    dark, middle, bright = maps.new_tensor(HEAT, dtype=torch.float32)[:, :, None, None]
    return torch.where(x < 0.5, dark + (middle - dark) * 2 * x, middle + (bright - middle) * (2 * x - 1))


def draw_look(
        images: Tensor,
        seen: Tensor,
        outlines: Tensor,
        captions: Sequence[Caption],
        titles: Sequence[str] = ('where it looked', 'what it saw', 'answer'),
        glimpse_of: Sequence[int | None] | None = None,
        footer: str = '',
        tile: int = 128,
        blocks: int | None = None,
        boxes: Tensor | None = None,
        answer: int | None = None,
        reach: float | None = None,
) -> Image.Image:
    """A picture with one row per image: the input with outlines of where it looked, what was seen, the answer.

    A dot on each outline marks the top left corner of what was seen.

    Args:
        images: Inputs (N, C, H, W) in [0, 1].
        seen: What was seen, (N, T, C, h, w) in [0, 1]: T pictures in a row.
        outlines: (N, G, K, 2) in coordinates of the input, from ``outline``.
        captions: The N answers.
        titles: Titles of the columns: input, what was seen (one for each T, or one for all), answer.
        glimpse_of: For each T, the glimpse whose colour frames it, or None for no frame. Default: in turn.
        footer: Text below the rows.
        tile: Side of one tile, in units of 2 pixels.
        blocks: Number of blocks of rows side by side. Default: the picture is about 1.6 times as wide as high.
        boxes: True boxes (N, B, 4) of the inputs, drawn in white: left, top, right, bottom, in [-1, 1] from edge to
            edge.
        answer: Width of the column of answers, in units of 2 pixels. Default: as they need.
        reach: How far beyond the image's edge is shown, see :func:`draw_outlines`. Default: as the outlines need. With
            both given, pictures of the same images have the same layout.

    Raises:
        ValueError: The lengths do not agree, or there are no images.
    """
    n, t = seen.shape[:2]
    if not n or not len(images) == len(outlines) == len(captions) == n:
        raise ValueError('images, seen, outlines and captions must be of one length, at least 1; got '
                         f'{len(images)}, {n}, {len(outlines)}, {len(captions)}.')
    frame = _frame(n, t, tile, width_of(captions) if answer is None else answer, blocks)
    below = wrap(footer, 13, frame.width - 2 * MARGIN)
    bottom = frame.corner(frame.rows - 1)[1] + tile + 14
    height = bottom + 18 * len(below) + 12
    picture = Image.new('RGB', (frame.width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    _titles(draw, frame, titles)
    for k, line in enumerate(below):
        write(draw, (MARGIN, bottom + 18 * k), line, 13, FAINT, frame.width)
    if reach is None:
        reach = float((1.04 * outlines.abs().amax()).clamp(1.06, 1.5))
    framed = range(t) if glimpse_of is None else glimpse_of
    for i in range(n):
        x, y = frame.corner(i)
        shown = draw_outlines(images[i], outlines[i], tile * SCALE, reach, None if boxes is None else boxes[i])
        picture.paste(shown, (x * SCALE, y * SCALE))
        _arrow(draw, x + tile, y + tile // 2)
        for k, g in enumerate(framed):
            picture.paste(draw_seen(seen[i, k], tile * SCALE, g), ((x + frame.tile_x(k)) * SCALE, y * SCALE))
        draw_caption(draw, x + frame.tile_x(t) + 6, y, frame.answer, frame.tile, captions[i])
    return picture


def draw_outlines(
        image: Tensor,
        outlines: Tensor,
        side: int = 256,
        reach: float = 1.06,
        boxes: Tensor | None = None,
) -> Image.Image:
    """An input (C, H, W) with outlines (G, K, 2), and below them true boxes (B, 4), on it, ``side`` pixels square.

    The picture shows coordinates from ``-reach`` to ``reach`` along the longer side of the image, so that looks
    beyond its edge can be seen: a point x lies at (x / reach + 1) * side / 2 there.
    """
    fine = 2 * side  # drawn at twice the size, then shrunk: smooth lines
    canvas = Image.new('RGB', (fine, fine), RULE)
    shown = _fit(_pixels(image), round(fine / reach))
    canvas.paste(shown, ((fine - shown.width) // 2, (fine - shown.height) // 2))
    draw = ImageDraw.Draw(canvas)
    half = torch.tensor(shown.size) / 2
    width = max(fine // 80, 8)
    for left, top, right, bottom in [] if boxes is None else boxes.detach().float().cpu().tolist():
        corners = torch.tensor([(left, top), (right, top), (right, bottom), (left, bottom), (left, top), (right, top)])
        _ring(draw, corners * half + fine / 2, TRUTH, width // 2)
    for g, points in enumerate(outlines.detach().float().cpu().clamp(-50, 50)):
        placed = points * half + fine / 2
        _ring(draw, torch.cat([placed, placed[:2]]), COLORS[g % len(COLORS)], width)
        (x, y), radius = placed[0].tolist(), 1.7 * width
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=COLORS[g % len(COLORS)], outline='#000000', width=width // 4)
    return canvas.reduce(2)


def _ring(draw: ImageDraw.ImageDraw, points: Tensor, color: str, width: int) -> None:
    """A line through points (K, 2) in pixels, edged with black."""
    path = [(x, y) for x, y in points.tolist()]
    draw.line(path, fill='#000000', width=width + width // 2, joint='curve')
    draw.line(path, fill=color, width=width, joint='curve')


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format that the name ends in: beside its place, then moved there once it is whole.

    Raises:
        ValueError: Pillow writes no such format.
    """
    path = Path(path)
    write_whole(path, partial(picture.save, format=picture_format(path), optimize=True))


def picture_format(path: Path) -> str:
    """The format that a file's name ends in.

    Raises:
        ValueError: Pillow, as it is installed, writes no such pictures.
    """
    kind = Image.registered_extensions().get(path.suffix.lower(), '')
    try:
        Image.new('RGB', (1, 1)).save(BytesIO(), kind)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f'path must end in a format of pictures, as .png, got {str(path)!r}.') from error
    return kind


def _frame(n: int, tiles: int, tile: int, answer: int, blocks: int | None) -> Frame:
    def arranged(count: int) -> Frame:
        return Frame(tile, tiles, answer, count, -(-n // count))

    def away(frame: Frame) -> float:
        return abs(math.log(frame.width / (frame.rows * (tile + ROW_GAP)) / ASPECT))

    return arranged(blocks) if blocks else min((arranged(b) for b in range(1, n + 1)), key=away)


def _titles(draw: ImageDraw.ImageDraw, frame: Frame, titles: Sequence[str]) -> None:
    names = list(titles[1:-1])
    if len(names) == 1 and frame.tiles > 1:
        names += [''] * (frame.tiles - 1)
    for block in range(frame.blocks):
        x, y = frame.corner(block * frame.rows)
        write(draw, (x, y - 22), titles[0], 14, FAINT, frame.tile + ARROW)
        for k, name in enumerate(names):
            write(draw, (x + frame.tile_x(k), y - 22), name, 14, FAINT, frame.tile)
        write(draw, (x + frame.tile_x(frame.tiles) + 6, y - 22), titles[-1], 14, FAINT, frame.answer)


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    points = [(x + 7, y - 6), (x + 14, y), (x + 7, y + 6)]
    draw.polygon([(SCALE * a, SCALE * b) for a, b in points], fill='#B4BAC6')


def draw_seen(image: Tensor, side: int, glimpse: int | None) -> Image.Image:
    """What was seen, (C, H, W), framed in the colour of its outline, with a dot at the top left corner."""
    fine = 2 * side
    width = max(fine // 80, 8)
    canvas = Image.new('RGB', (fine, fine), PAPER)
    shown = _fit(_pixels(image), fine - 2 * width)
    left, top = (fine - shown.width) // 2, (fine - shown.height) // 2
    canvas.paste(shown, (left, top))
    if glimpse is not None:
        draw, color = ImageDraw.Draw(canvas), COLORS[glimpse % len(COLORS)]
        box = (left - width, top - width, left + shown.width + width - 1, top + shown.height + width - 1)
        draw.rectangle(box, outline=color, width=width)
        radius = 4 * width
        draw.pieslice((box[0] - radius, box[1] - radius, box[0] + radius, box[1] + radius), 0, 90, fill=color)
    return canvas.reduce(2)


def _pixels(image: Tensor) -> Image.Image:
    levels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The image with ``side`` pixels on its longer side; small images keep square pixels."""
    longer = max(image.size)
    size = (max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer)))
    if longer <= 96:
        whole = -(-side // longer)
        image = image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
        return image.resize(size, Image.Resampling.BOX)
    return image.resize(size, Image.Resampling.LANCZOS)
