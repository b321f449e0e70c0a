"""A picture of a diagnosis: where the views of many images lie, what they show on average, and how theta varies."""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...modules.gradients import lattice_of_glimpse
from ..caption import FAINT, GOOD, INK, RULE, SCALE, WRONG, wrap, write
from ..draw import COLORS, heat
from .examined import Examined
from .verdict import Fault

__all__ = ['draw_diagnosis']

TILE, GAP, MARGIN, LINE = 190, 22, 22, 18
MOST = 60  # outlines
BINS = 24


class Panel(NamedTuple):
    """A picture of TILE x TILE units, with what it shows."""
    title: str
    picture: Image.Image


def draw_diagnosis(
        name: str,
        examined: Sequence[Examined],
        lines: Sequence[str],
        faults: Sequence[list[Fault]],
) -> Image.Image:
    """One row for each transformer: its verdict, outlines of its views on the mean of the images, the means of what
    came in and of what it saw, and histograms of scale, angle and centre.

    Args:
        name: Of the network.
        examined: What the transformers did.
        lines: The verdict on each.
        faults: Of each; none are good.
    """
    rows = [_panels(each) for each in examined]
    width = 2 * MARGIN + max(len(row) for row in rows) * (TILE + GAP) - GAP
    texts = [wrap(line, 15, width - 2 * MARGIN) for line in lines]
    heights = [LINE * len(text) + TILE + 58 for text in texts]
    picture = Image.new('RGB', (width * SCALE, (sum(heights) + 48) * SCALE), '#FFFFFF')
    draw = ImageDraw.Draw(picture)
    write(draw, (MARGIN, 12), name, 16, INK, width - 2 * MARGIN)
    y = 40
    for row, text, found, height in zip(rows, texts, faults, heights):
        for i, line in enumerate(text):
            write(draw, (MARGIN, y + LINE * i), line, 15, WRONG if found else GOOD, width - 2 * MARGIN)
        top = y + LINE * len(text) + 26
        for k, panel in enumerate(row):
            x = MARGIN + k * (TILE + GAP)
            write(draw, (x, top - 20), panel.title, 13, FAINT, TILE)
            picture.paste(panel.picture, (x * SCALE, top * SCALE))
        y += height
    return picture


def _panels(each: Examined) -> list[Panel]:
    count = max(len(each.all('finite')), 1)
    before, seen = each.sum_input / count, each.sum_seen / count  # (C, *size), (G, C, *seen_size)
    panels = [Panel('mean image', _image(before))]
    panels += [Panel(f'mean of glimpse {g + 1}' if len(seen) > 1 else 'mean of what it saw', _image(view))
               for g, view in enumerate(seen[:4])]
    points = each.all('points')
    if points.shape[-1] == 2:
        panels.insert(0, Panel(f'views of {min(len(points), MOST)} images', _outlines(points, before, each)))
    panels.append(Panel('scale', _histogram(each.all('scale'))))
    if len(each.all('angle')):
        panels.append(Panel('angle, degrees', _histogram(each.all('angle'))))
    center = each.all('center')
    return [*panels, *(Panel(f'centre, {axis}', _histogram(center[..., k])) for k, axis in enumerate('xy'))]


def _image(mean: Tensor) -> Image.Image:
    """A mean of images (C, H, W), from its lowest to its highest value; of volumes the middle slice."""
    mean = mean[:, len(mean[0]) // 2] if mean.ndim == 4 else mean
    if len(mean) in (1, 3):
        low, high = mean.min(), mean.max()
        mean = ((mean - low) / (high - low).clamp_min(1e-12)).expand(3, -1, -1)
    else:
        mean = heat(mean[None, None])[0, 0]
    levels = (mean * 255).round().clamp(0, 255).to(torch.uint8)
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    return _squared(picture)


def _squared(picture: Image.Image) -> Image.Image:
    side = TILE * SCALE
    longer = max(picture.size)
    size = [max(1, round(n * side / longer)) for n in picture.size]
    kind = Image.Resampling.NEAREST if longer <= 96 else Image.Resampling.LANCZOS
    canvas = Image.new('RGB', (side, side), RULE)
    canvas.paste(picture.resize((size[0], size[1]), kind), ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def _outlines(points: Tensor, mean: Tensor, each: Examined) -> Image.Image:
    """Borders of views, thin, over a pale mean image; a dot at the top left corner of each."""
    side = TILE * SCALE
    reach = float((1.05 * points[:MOST].abs().amax()).clamp(1.06, 2.0))
    inner = round(side / reach)
    canvas = Image.new('RGB', (side, side), RULE)
    pale = Image.blend(_image(mean).resize((inner, inner)), Image.new('RGB', (inner, inner), '#FFFFFF'), 0.6)
    canvas.paste(pale, ((side - inner) // 2, (side - inner) // 2))
    fine = canvas.resize((2 * side, 2 * side))
    draw = ImageDraw.Draw(fine, 'RGBA')
    height, width = each.size
    half = torch.tensor([width, height]) / max(width, height) * inner
    around = _border(points)
    glimpses = each.watch.stn.glimpses
    for view in range(points.shape[1]):
        color = COLORS[view % glimpses % len(COLORS)]
        for i in range(min(len(points), MOST)):
            path = [(x, y) for x, y in (points[i, view, around].clamp(-50, 50) * half + side).tolist()]
            draw.line([*path, path[0]], fill=color + 'B0', width=3)
            x, y = path[0]
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=color)
    return fine.reduce(2)


def _border(points: Tensor) -> list[int]:
    """Indices of the lattice points on the border of a view, clockwise from its top left corner."""
    lattice = lattice_of_glimpse(2, points)
    n = round(len(lattice) ** 0.5)
    index = {(round(float(x), 3), round(float(y), 3)): i for i, (x, y) in enumerate(lattice.tolist())}
    axis = [round(-1 + 2 * k / (n - 1), 3) for k in range(n)]
    path = [*((x, -1.0) for x in axis[:-1]), *((1.0, y) for y in axis[:-1]),
            *((x, 1.0) for x in axis[:0:-1]), *((-1.0, y) for y in axis[:0:-1])]
    return [index[place] for place in path]


def _histogram(values: Tensor) -> Image.Image:
    side, room = TILE * SCALE, 28 * SCALE
    canvas = Image.new('RGB', (side, side), '#FFFFFF')
    draw = ImageDraw.Draw(canvas)
    values = values.flatten().double().clamp(-1e4, 1e4)
    low, high = float(values.min()), float(values.max())
    if high - low < 0.02 * max(1.0, abs(low)):
        middle, reach = (low + high) / 2, 0.01 * max(1.0, abs(low))
        low, high = middle - reach, middle + reach
    counts = torch.histc(values, BINS, low, high)
    wide = side / BINS
    for k, count in enumerate((counts / counts.max()).tolist()):
        top = side - room - (side - room - 4) * count
        draw.rectangle((k * wide + 1, top, (k + 1) * wide - 1, side - room), fill='#22B8F0')
    draw.line((0, side - room, side, side - room), fill=INK, width=2)
    write(draw, (0, TILE - 20), f'{low:.3g}', 13, FAINT, TILE / 2)
    write(draw, (TILE, TILE - 20), f'{high:.3g}', 13, FAINT, TILE / 2, anchor='ra')
    return canvas
