"""True masks of the objects in image files: found in a folder for a file, read, placed in the network's input."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from .boxes import by_trailing_parts
from .images import BadImage, find_images, formats_here, reason_of
from .lattice import sources
from .placing import steps_of

__all__ = ['find_masks', 'mask_as_seen', 'mask_in_input', 'mask_of_file', 'read_mask']


def find_masks(folder: Path) -> dict[str, Path]:
    """The masks in a folder and below, by their names in it without endings.

    Raises:
        BadImage: A folder cannot be read, or there are none.
    """
    lost: list[tuple[Path, str]] = []
    masks: dict[str, Path] = {}
    for path in find_images(folder, lost):
        masks.setdefault(path.relative_to(folder).with_suffix('').as_posix(), path)
    if lost or not masks:
        raise BadImage('; '.join(f'{path}: {reason}' for path, reason in lost) or 'no pictures in it')
    return masks


def mask_of_file(path: Path, masks: Mapping[str, Path]) -> Path | None:
    """The mask of an image file: of the names that end its path, endings aside, that with the most folders."""
    return by_trailing_parts(path.with_suffix(''), masks)


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """A mask in mode L, upright: 255 where its file is not zero in some channel (transparency does not count).

    Args:
        path: The file.
        size: (width, height) of the upright image that it is of.

    Raises:
        BadImage: It is no picture, or of another size.
    """
    try:
        with Image.open(path, formats=formats_here()) as file:
            file.load()
            mask = ImageOps.exif_transpose(file)
            here = _not_zero(mask)
    except Exception as error:  # of many types
        raise BadImage(reason_of(error)) from error
    if mask.size != size:
        raise BadImage('{} x {} pixels, and its image has {} x {}'.format(*mask.size, *size))
    return Image.fromarray((here.to(torch.uint8) * 255).numpy())


def _not_zero(mask: Image.Image) -> Tensor:
    """Where some band of a picture is not zero, transparency aside: (H, W). Of a palette the number counts."""
    if mask.mode == 'P':
        mask = Image.frombytes('L', mask.size, mask.tobytes())
    bands = [band for name, band in zip(mask.getbands(), mask.split()) if name not in 'Aa' or mask.mode == 'LAB']
    kinds = [('F', torch.float32) if band.mode == 'F' else ('I', torch.int32) for band in bands]
    values = [torch.frombuffer(bytearray(band.convert(kind).tobytes()), dtype=dtype)
              for band, (kind, dtype) in zip(bands, kinds)]
    return torch.stack([value != 0 for value in values]).any(0).reshape(mask.height, mask.width)


def mask_in_input(mask: Image.Image, config: dict[str, Any]) -> Tensor:
    """A mask in the network's input (H, W), from 0 to 1, by the transform that timm makes of its data config."""
    for step in steps_of(config):
        mask = step(mask)
    values = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8)
    return values.reshape(mask.height, mask.width).float() / 255


def mask_as_seen(mask: Tensor, lattice: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) of the input in a picture of what was seen, (h, w) of ``size``; 0 outside the input.

    Args:
        mask: Of the input.
        lattice: Of the look, (SIDE * SIDE, 2).
        size: (h, w) of the picture.
    """
    at = sources(lattice.float().cpu(), size)
    return F.grid_sample(mask[None, None], at[None], align_corners=False)[0, 0]
