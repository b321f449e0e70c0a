"""The square tiles of pictures: an input with what is drawn on it, and what was seen in the colour of its outline."""
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from .lattice import sources

__all__ = ['COLORS', 'draw_outlines', 'framed', 'heat', 'picture_of', 'tinted']

COLORS = ('#FFB000', '#22B8F0', '#F0529C', '#7BD651', '#A78BFA', '#FF7A45')  # colours of the glimpses, in turn
TRUTH, PAPER, OUTSIDE = '#FFFFFF', '#FFFFFF', '#E4E7EC'
TINT = '#00E0C6'  # of true masks
HEAT = ((0.09, 0.10, 0.22), (0.72, 0.29, 0.36), (1.0, 0.89, 0.60))  # low, middle, high


def heat(maps: Tensor) -> Tensor:
    """Colours (N, T, 3, h, w) of feature maps (N, T, C, h, w): the mean over channels, from lowest to highest."""
    mean = maps.float().mean(2, keepdim=True)
    low, high = mean.amin((1, 2, 3, 4), keepdim=True), mean.amax((1, 2, 3, 4), keepdim=True)
    x = (mean - low) / (high - low).clamp_min(1e-12)
    dark, middle, bright = maps.new_tensor(HEAT, dtype=torch.float32)[:, :, None, None]
    return torch.where(x < 0.5, dark + (middle - dark) * 2 * x, middle + (bright - middle) * (2 * x - 1))


def picture_of(image: Tensor) -> Image.Image:
    """An image (C, H, W) in [0, 1], of 1 or 3 channels, in Pillow's mode RGB."""
    levels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def tinted(picture: Image.Image, mask: Tensor) -> Image.Image:
    """The picture with a colour laid over it as much as two fifths, where a mask (H, W) of its size is 1."""
    share = Image.fromarray((mask.detach().float().cpu().clamp(0, 1) * 102).round().to(torch.uint8).numpy())
    return Image.composite(Image.new('RGB', picture.size, TINT), picture, share)


def draw_outlines(
        image: Tensor | Image.Image,
        outlines: Tensor,
        side: int = 256,
        reach: float = 1.06,
        boxes: Tensor | None = None,
        lines: Tensor | None = None,
) -> Image.Image:
    """An input with outlines (G, K, 2), and below them true boxes (B, 4), on it, ``side`` pixels square.

    The picture shows coordinates from ``-reach`` to ``reach`` along the longer side of the image, so that looks
    beyond its edge can be seen: a point x lies at (x / reach + 1) * side / 2 there.

    Args:
        image: (C, H, W) in [0, 1], or a picture.
        outlines: Where it looked, from ``outline``.
        side: Pixels of the tile.
        reach: The largest coordinate that is shown.
        boxes: True boxes in white: left, top, right, bottom.
        lines: Of the sampling grids, (G, L, K, 2), drawn thin in the colours of their outlines.
    """
    fine = 2 * side  # drawn at twice the size, then shrunk: smooth lines
    canvas = Image.new('RGB', (fine, fine), OUTSIDE)
    shown = _fit(image if isinstance(image, Image.Image) else picture_of(image), round(fine / reach))
    canvas.paste(shown, ((fine - shown.width) // 2, (fine - shown.height) // 2))
    draw = ImageDraw.Draw(canvas)
    half = torch.tensor(shown.size) / 2
    width = max(fine // 80, 8)
    for left, top, right, bottom in [] if boxes is None else boxes.detach().float().cpu().clamp(-50, 50).tolist():
        ring = torch.tensor([(left, top), (right, top), (right, bottom), (left, bottom), (left, top), (right, top)])
        _ring(draw, ring * half + fine / 2, TRUTH, width // 2)
    for g, grid in enumerate(() if lines is None else lines.detach().float().cpu().clamp(-50, 50)):
        for line in grid:
            _ring(draw, line * half + fine / 2, COLORS[g % len(COLORS)], width // 3, width // 3 + 2)
    for g, points in enumerate(outlines.detach().float().cpu().clamp(-50, 50)):
        placed = points * half + fine / 2
        _ring(draw, torch.cat([placed, placed[:2]]), COLORS[g % len(COLORS)], width)
        (x, y), radius = placed[0].tolist(), 1.7 * width
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=COLORS[g % len(COLORS)], outline='#000000', width=width // 4)
    return canvas.reduce(2)


def _ring(draw: ImageDraw.ImageDraw, points: Tensor, color: str, width: int, edged: int | None = None) -> None:
    """A line through points (K, 2) in pixels, edged with black: with the edge half as wide again, or ``edged``."""
    path = [(x, y) for x, y in points.tolist()]
    draw.line(path, fill='#000000', width=edged or width + width // 2, joint='curve')
    draw.line(path, fill=color, width=width, joint='curve')


def framed(
        image: Tensor | Image.Image,
        side: int,
        glimpse: int | None,
        boxes: Tensor | None = None,
        lattice: Tensor | None = None,
) -> Image.Image:
    """What was seen, framed in the colour of its outline, with a dot at the top left corner, ``side`` pixels square.

    Args:
        image: (C, h, w) in [0, 1], or a picture.
        side: Pixels of the tile.
        glimpse: Whose colour frames it; None for no frame.
        boxes: True boxes (B, 4) of the input, drawn in white where they come to lie.
        lattice: Of the look, (SIDE * SIDE, 2); for boxes.
    """
    fine = 2 * side
    width = max(fine // 80, 8)
    canvas = Image.new('RGB', (fine, fine), PAPER)
    shown = _fit(image if isinstance(image, Image.Image) else picture_of(image), fine - 2 * width)
    if boxes is not None and len(boxes) and lattice is not None:
        shown = _with_boxes(shown, boxes.float().cpu(), lattice.float().cpu(), width)
    left, top = (fine - shown.width) // 2, (fine - shown.height) // 2
    canvas.paste(shown, (left, top))
    if glimpse is not None:
        draw, color = ImageDraw.Draw(canvas), COLORS[glimpse % len(COLORS)]
        box = (left - width, top - width, left + shown.width + width - 1, top + shown.height + width - 1)
        draw.rectangle(box, outline=color, width=width)
        radius = 4 * width
        draw.pieslice((box[0] - radius, box[1] - radius, box[0] + radius, box[1] + radius), 0, 90, fill=color)
    return canvas.reduce(2)


def _with_boxes(picture: Image.Image, boxes: Tensor, lattice: Tensor, width: int) -> Image.Image:
    """The picture with the borders of boxes, also where they are curved there: pixels near to one inside and outside.

    ``width`` is that of outlines, of which white takes a half, and black a quarter.
    """
    x, y = sources(lattice, (picture.height, picture.width)).unbind(-1)
    for left, top, right, bottom in boxes.tolist():
        inside = ((x > left) & (x < right) & (y > top) & (y < bottom)).float()[None, None]
        for color, thick in (('#000000', width - width // 4), (TRUTH, width // 2)):
            picture.paste(color, mask=_edge(inside, thick))
    return picture


def _edge(inside: Tensor, width: int) -> Image.Image:
    """A line about the border of what is 1 in (1, 1, H, W), as a mask for Pillow."""
    reach = width // 2
    in_reach, out_of_it = (F.max_pool2d(v, 2 * reach + 1, 1, reach) for v in (inside, 1 - inside))
    return Image.fromarray((in_reach * out_of_it * 255)[0, 0].to(torch.uint8).numpy())


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The image with ``side`` pixels on its longer side; small images keep square pixels."""
    longer = max(image.size)
    size = (max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer)))
    if longer <= 96:
        whole = -(-side // longer)
        image = image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
        return image.resize(size, Image.Resampling.BOX)
    return image.resize(size, Image.Resampling.LANCZOS)

