"""An animation of the pictures of a training's log, with the step written on each."""
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .._progress import progress
from ..whole_file import write_whole
from .caption import FAINT, INK, RULE, SCALE, write
from .draw import PAPER

__all__ = ['FORMATS', 'frames', 'save_animation']

FORMATS = {'.webp': 'WEBP', '.gif': 'GIF'}
STRIP, MARGIN = 30, 22  # units of the layout, of 2 pixels
EACH, FIRST, LAST = 350, 1000, 3000  # milliseconds


def frames(pictures: Sequence[tuple[int, Path]]) -> list[Image.Image]:
    """The pictures, (step, file) each, in one size, under a strip with the step, and how far along the training it is.

    Raises:
        OSError: A file is no picture.
    """
    images = []
    for _, path in progress(pictures, 'reading', unit='picture'):
        with Image.open(path) as image:
            images.append(image.convert('RGB'))
    size = max(image.width for image in images), max(image.height for image in images)
    return [_framed(image, size, step, pictures[-1][0]) for image, (step, _) in zip(images, pictures)]


def _framed(image: Image.Image, size: tuple[int, int], step: int, last: int) -> Image.Image:
    width, top = size[0], STRIP * SCALE
    canvas = Image.new('RGB', (width, top + size[1]), PAPER)
    canvas.paste(image, (0, top))
    draw = ImageDraw.Draw(canvas)
    write(draw, (MARGIN, 12), f'step {step:,}', 16, INK, width / SCALE)
    end = width // SCALE - MARGIN
    write(draw, (end, 14), f'of {last:,}', 13, FAINT, width / SCALE, anchor='ra')
    begin, length = MARGIN + 130, end - MARGIN - 220
    for share, color in ((1.0, RULE), (step / max(last, 1), INK)):
        draw.rectangle([SCALE * v for v in (begin, 20, begin + length * share, 22)], fill=color)
    return canvas


def save_animation(images: Sequence[Image.Image], path: Path) -> None:
    """Write frames as WebP or, at half their size, GIF, as the name ends; it begins again after a pause at the last.

    Raises:
        ValueError: The name ends otherwise.
        OSError: It cannot be written.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f'path must end in {" or ".join(FORMATS)}, got {str(path)!r}.')
    shown = [FIRST, *[EACH] * (len(images) - 2), LAST][-len(images):]
    how: dict[str, Any] = dict(quality=85, method=4)
    if kind == 'GIF':  # which is five times as large
        images, how = [image.reduce(2) for image in images], {}
    write_whole(path, partial(images[0].save, format=kind, save_all=True, append_images=images[1:], duration=shown,
                              loop=0, **how))
