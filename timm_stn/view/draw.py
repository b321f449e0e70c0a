"""Pictures of where spatial transformers looked, what they saw, and what networks answered. Needs only Pillow.

Coordinates are those of the package: xy order, [-1, 1] over the area of the image, half-pixel centres. Pixels are
(N, C, H, W) in [0, 1], of 1 or 3 channels.
"""
import math
import os
from collections.abc import Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from ..whole_file import write_whole
from .caption import FAINT, INK, RULE, SCALE, Caption, draw_caption, width_of, wrap, write
from .lattice import outline
from .tiles import COLORS, draw_outlines, framed, heat

__all__ = [
    'COLORS', 'Caption', 'draw_look', 'draw_outlines', 'draw_panels', 'heat', 'outline', 'picture_format', 'reach_of',
    'save_picture']

PAPER = '#FFFFFF'
LARGEST = {'WEBP': 16383, 'JPEG': 65500}  # sides
MARGIN, GAP, ARROW, BLOCK_GAP, ROW_GAP = 22, 10, 20, 34, 12
HEAD = 26  # height of the names of networks, where there are several
ASPECT = 1.6  # target width / height of the picture


class Frame(NamedTuple):
    """The layout of a picture, in units of 1 / SCALE pixels. In a block there are as many groups as networks."""
    tile: int
    tiles: tuple[int, ...]  # of each group, beside the input
    answers: tuple[int, ...]  # width of each group's answers
    blocks: int
    rows: int
    head: int = 0

    def group(self, g: int) -> int:
        return self.tile * (1 + self.tiles[g]) + ARROW + GAP * self.tiles[g] + self.answers[g]

    @property
    def block(self) -> int:
        return self.group_x(len(self.tiles)) - BLOCK_GAP

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.blocks * self.block + (self.blocks - 1) * BLOCK_GAP

    def corner(self, i: int) -> tuple[int, int]:
        """Top left corner of row i; rows fill the blocks from top to bottom."""
        block, row = divmod(i, self.rows)
        return MARGIN + block * (self.block + BLOCK_GAP), MARGIN + 18 + self.head + row * (self.tile + ROW_GAP)

    def group_x(self, g: int) -> int:
        """x offset of group g in its row."""
        return sum(self.group(k) + BLOCK_GAP for k in range(g))

    def tile_x(self, t: int) -> int:
        """x offset of tile t (what was seen) in its group; t = ``tiles`` gives that of the answer."""
        return self.tile + ARROW + t * (self.tile + GAP)


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
    reach, side = reach_of([outlines]) if reach is None else reach, tile * SCALE
    of = range(t) if glimpse_of is None else glimpse_of
    rows = (
        [[draw_outlines(images[i], outlines[i], side, reach, None if boxes is None else boxes[i]),
          *(framed(seen[i, k], side, g) for k, g in enumerate(of))]]
        for i in range(n))
    said = [[caption] for caption in captions]
    return draw_panels(rows, said, [titles], [t], footer=footer, tile=tile, blocks=blocks, answer=answer)


def reach_of(outlines: Iterable[Tensor]) -> float:
    """The largest coordinate that pictures show, so that looks beyond the edge of the input are in them."""
    return min(max(1.04 * max(float(points.abs().amax()) for points in outlines), 1.06), 1.5)


def draw_panels(
        rows: Iterable[Sequence[Sequence[Image.Image]]],
        captions: Sequence[Sequence[Caption]],
        titles: Sequence[Sequence[str]],
        tiles: Sequence[int],
        names: Sequence[str] = (),
        footer: str = '',
        tile: int = 128,
        blocks: int | None = None,
        answer: int | None = None,
) -> Image.Image:
    """A picture with one row per image, and in it one group of tiles for each network.

    Args:
        rows: For each image and network the tiles: the input, and what was seen. They are asked for one by one.
        captions: For each image the networks' answers.
        titles: Titles of each group's columns, as in :func:`draw_look`.
        tiles: How many pictures of what was seen there are in each group.
        names: Of the networks, above their groups. Default: none.
        footer: Text below the rows.
        tile: Side of one tile, in units of 2 pixels.
        blocks: Number of blocks of rows side by side. Default: the picture is about 1.6 times as wide as high.
        answer: Width of each column of answers, in units of 2 pixels. Default: as they need.
    """
    answers = tuple(width_of(column) if answer is None else answer for column in zip(*captions))
    frame = _frame(len(captions), tuple(tiles), tile, answers, blocks, HEAD if names else 0)
    below = wrap(footer, 13, frame.width - 2 * MARGIN)
    bottom = frame.corner(frame.rows - 1)[1] + tile + 14
    height = bottom + 18 * len(below) + 12
    picture = Image.new('RGB', (frame.width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    for g, group in enumerate(titles):
        _titles(draw, frame, g, group, names[g] if names else '')
    for k, line in enumerate(below):
        write(draw, (MARGIN, bottom + 18 * k), line, 13, FAINT, frame.width)
    for i, (row, said) in enumerate(zip(rows, captions, strict=True)):
        for g, (pictures, caption) in enumerate(zip(row, said, strict=True)):
            x, y = frame.corner(i)
            x += frame.group_x(g)
            _arrow(draw, x + tile, y + tile // 2)
            for k, shown in enumerate(pictures):
                picture.paste(shown, ((x + (frame.tile_x(k - 1) if k else 0)) * SCALE, y * SCALE))
            draw_caption(draw, x + frame.tile_x(tiles[g]) + 6, y, answers[g], tile, caption)
    return picture


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format that the name ends in: beside its place, then moved there once it is whole.

    Raises:
        ValueError: Pillow writes no such format, or none that large.
    """
    path = Path(path)
    kind = picture_format(path)
    if max(picture.size) > LARGEST.get(kind, math.inf):
        raise ValueError(f'{kind} takes at most {LARGEST[kind]} pixels a side, and the picture has '
                         f'{picture.width} x {picture.height}: use .png, or fewer images')
    write_whole(path, partial(picture.save, format=kind, optimize=True))


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


def _frame(
        n: int,
        tiles: tuple[int, ...],
        tile: int,
        answers: tuple[int, ...],
        blocks: int | None,
        head: int,
) -> Frame:
    def arranged(count: int) -> Frame:
        return Frame(tile, tiles, answers, count, -(-n // count), head)

    def away(frame: Frame) -> float:
        return abs(math.log(frame.width / (frame.rows * (tile + ROW_GAP)) / ASPECT))

    return arranged(blocks) if blocks else min((arranged(b) for b in range(1, n + 1)), key=away)


def _titles(draw: ImageDraw.ImageDraw, frame: Frame, g: int, titles: Sequence[str], name: str) -> None:
    names, tiles = list(titles[1:-1]), frame.tiles[g]
    if len(names) == 1 and tiles > 1:
        names += [''] * (tiles - 1)
    for block in range(frame.blocks):
        x, y = frame.corner(block * frame.rows)
        x += frame.group_x(g)
        if name:
            write(draw, (x, y - 22 - frame.head), name, 17, INK, frame.group(g))
            line = (x, y - 22 - 4, x + frame.group(g), y - 22 - 3)
            draw.rectangle([SCALE * v for v in line], fill=RULE)
        write(draw, (x, y - 22), titles[0], 14, FAINT, frame.tile + ARROW)
        for k, title in enumerate(names):
            write(draw, (x + frame.tile_x(k), y - 22), title, 14, FAINT, frame.tile)
        write(draw, (x + frame.tile_x(tiles) + 6, y - 22), titles[-1], 14, FAINT, frame.answers[g])


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    points = [(x + 7, y - 6), (x + 14, y), (x + 7, y + 6)]
    draw.polygon([(SCALE * a, SCALE * b) for a, b in points], fill='#B4BAC6')
