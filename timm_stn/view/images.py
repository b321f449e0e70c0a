"""Image files: which files are images, and the picture in each, with 8 bits a channel."""
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

__all__ = [
    'BadImage', 'find_images', 'folder_name', 'formats_here', 'in_turn', 'natural', 'open_image', 'read_sheet',
    'reason_of']

# Pillow's formats of photographs: no documents (PDF, and EPS, for which it runs Ghostscript), films, icons, data
FORMATS = ('PNG', 'JPEG', 'MPO', 'WEBP', 'AVIF', 'HEIF', 'TIFF', 'BMP', 'DIB', 'GIF', 'JPEG2000', 'PPM', 'QOI')
NARROW = 1000  # how many times as long as its shorter side an image may be: with 224 pixels there, it fills 150 MB

# notes: what of a file is not shown as it is
SIXTEEN = "16 bits a channel became 8, divided by 257; timm's own scripts cut them off at 255"
UPPER = 'of 16 bits a channel, the upper 8 are read'
SHARES = "numbers from 0 to 1 became 0 to 255; timm's own scripts do not do that"
RANGE = "the lowest number became 0, the highest 255; timm's own scripts do not do that"
TURNED = "turned as EXIF says; timm's own scripts do not do that"
WHITE = "what is transparent became white; timm's own scripts show what is beneath"
INKS = 'CMYK became RGB without a colour profile'
FIRST = 'the first of several pictures in the file'


def formats_here() -> list[str]:
    """The formats of `FORMATS` that Pillow reads as it is installed."""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


class BadImage(ValueError):
    """A file holds no picture, or not all of it. The message is the reason, without the file's name."""


def find_images(folder: Path, bad: list[tuple[Path, str]]) -> Iterator[Path]:
    """Files in a folder and below that are named as images, in natural order.

    Links are followed, but not to a folder above. Folders that cannot be read go to ``bad``, with the reason.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}

    def within(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        here = os.path.realpath(folder)
        if here in above:
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name))
        except OSError as error:
            bad.append((folder, reason_of(error)))
            return
        for entry in entries:
            if _is_folder(entry):
                yield from within(folder / entry.name, above | {here})
            elif os.path.splitext(entry.name)[1].lower() in known:
                yield folder / entry.name

    return within(folder, frozenset())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folder_name(path: Path) -> str:
    """Name of the folder of a file, which stands for its class."""
    return os.path.basename(os.path.dirname(os.path.abspath(path)))


def natural(name: str) -> list[int | str]:
    """Sort key by which 2 comes before 10; timm numbers classes in this order."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name.lower())]


def in_turn(groups: Sequence[str], count: int) -> list[int]:
    """Indices of all ``groups``, in the order to take them: one of each group, then a second of each, and so on.

    If there are more than ``count`` groups, the first ``count`` indices are spread evenly over them.
    """
    columns: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        columns.setdefault(group, []).append(index)
    apart = {len(columns) * k // count for k in range(count)}
    order = sorted(enumerate(columns.values()), key=lambda column: column[0] not in apart)
    turns = range(max(map(len, columns.values()), default=0))
    return [column[turn] for turn in turns for _, column in order if turn < len(column)]


def open_image(
        file: Path | IO[bytes],
        mode: str = 'RGB',
        most_pixels: int | None = None,
) -> tuple[Image.Image, list[str]]:
    """The picture in a file, upright, and notes: what of the file it does not show as it is.

    Args:
        file: A path, or a file opened for bytes.
        mode: ``RGB``, or ``L`` for grey.
        most_pixels: Refuse an image of more, before any of them is decoded. Default: Pillow's own limit.

    Raises:
        BadImage: The file is not there, empty, cut off, damaged, too large, or no image.
    """
    formats = formats_here()
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's own, of what is noted or raised here
        try:
            if isinstance(file, Path) and not file.stat().st_size:  # also a pipe, which would be waited for
                raise BadImage('empty, or not a file')
            with Image.open(file, formats=formats) as image:
                if most_pixels is not None and image.width * image.height > most_pixels:
                    raise BadImage(f'{image.width} x {image.height} pixels; at most {most_pixels:,} are accepted')
                picture = _upright(image, notes)
            return (picture if picture.mode == mode else picture.convert(mode)), notes
        except BadImage:
            raise
        except UnidentifiedImageError as error:
            raise BadImage(f'not an image of these formats: {", ".join(formats)}') from error
        except Exception as error:  # of many types
            raise BadImage(reason_of(error)) from error


def read_sheet(path: Path) -> tuple[Tensor, Tensor]:
    """Digits (N, 1, S, S) in [0, 1] and classes (N,) from a square sheet; its PNG text `labels` has the classes."""
    with Image.open(path) as image:
        labels = [int(c) for c in image.info['labels']]
        pixels = torch.frombuffer(bytearray(image.convert('L').tobytes()), dtype=torch.uint8)
        side = round(len(labels) ** 0.5)
        size = image.width // side
    tiles = pixels.reshape(side, size, side, size).transpose(1, 2).reshape(-1, 1, size, size)
    return tiles.float() / 255, torch.tensor(labels)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """All pixels of an open image, turned as EXIF says, in a mode that `convert` takes to RGB and L."""
    width, height = image.size
    if max(width, height) > NARROW * min(width, height):
        raise BadImage(f'{width} x {height} pixels, one side more than {NARROW} times the other')
    if getattr(image, 'is_animated', False) and image.format != 'MPO':  # whose others are previews
        notes.append(FIRST)
    upper = any(';16' in str(tile) for tile in getattr(image, 'tile', ()))  # the raw mode that it is decoded from
    image.load()
    turned = ImageOps.exif_transpose(image)
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        notes.append(TURNED)
    if image.mode.startswith(('I', 'F')):
        sixteen = image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM'))
        levels = _levels(turned, sixteen, notes)
        return ImageOps.invert(levels) if _is_negative(image) else levels
    if upper:
        notes.append(UPPER)
    if image.mode == 'CMYK':
        notes.append(INKS)
    return _on_white(turned, notes)


def _is_negative(image: Image.Image) -> bool:
    """Whether a TIFF file says that its zero is white, which Pillow heeds for 8 bits only."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0


def _levels(image: Image.Image, sixteen: bool, notes: list[str]) -> Image.Image:
    """A grey image of more than 8 bits, in mode L."""
    kind, dtype = ('F', torch.float32) if image.mode == 'F' else ('I', torch.int32)
    values = torch.frombuffer(bytearray(image.convert(kind).tobytes()), dtype=dtype).double()
    if not values.isfinite().all():
        raise BadImage('some of its numbers are not finite')
    low, high = (float(v) for v in values.aminmax())
    if sixteen:
        low, high, note = 0, 65535, SIXTEEN
    elif kind == 'F' and low >= 0 and high <= 1:
        low, high, note = 0, 1, SHARES
    else:
        note = RANGE
    notes.append(note)
    levels = ((values - low) * (255 / ((high - low) or 1))).round().to(torch.uint8)
    return Image.fromarray(levels.reshape(image.height, image.width).numpy())


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    if 'transparency' not in image.info and image.mode not in ('RGBA', 'LA', 'PA', 'RGBa', 'La'):
        return image
    image = image.convert('RGBA')
    if image.getchannel('A').getextrema() == (255, 255):
        return image
    notes.append(WHITE)
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, without its name."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
