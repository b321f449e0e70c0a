"""True masks of the objects in image files: found in a folder for a file, read, placed in the network's input."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
            mask = file if file.size == size else ImageOps.exif_transpose(file)
            values = np.asarray(mask)
            colors = values[..., :len(mask.getbands()) - mask.has_transparency_data] if values.ndim == 3 else values
    except Exception as error:  # of many types
        raise BadImage(reason_of(error)) from error
    if mask.size != size:
        raise BadImage('{} x {} pixels, and its image has {} x {}'.format(*mask.size, *size))
    object_here = (colors != 0).reshape(size[1], size[0], -1).any(-1)
    return Image.fromarray(object_here.astype(np.uint8) * 255)


def mask_in_input(mask: Image.Image, config: dict[str, Any]) -> Tensor:
    """A mask in the network's input (H, W), from 0 to 1, by the transform that timm makes of its data config."""
    for step in steps_of(config):
        mask = step(mask)
    return torch.from_numpy(np.array(mask)).float() / 255


def mask_as_seen(mask: Tensor, lattice: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) of the input in a picture of what was seen, (h, w) of ``size``; 0 outside the input.

    Args:
        mask: Of the input.
        lattice: Of the look, (SIDE * SIDE, 2).
        size: (h, w) of the picture.
    """
    at = sources(lattice.float().cpu(), size)
    return F.grid_sample(mask[None, None], at[None], align_corners=False)[0, 0]
