"""From a file or a drawing to the pixels that a network takes, and the digits to begin with."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..data.mnist import load_mnist
from ..data.tasks import TASKS
from ..names.zoo import EXAMPLES, card_folder, set_of, zoo_names
from ..view.images import read_sheet
from ..view.sheet import denormalized
from .limits import open_limited

__all__ = ['as_digit', 'digit_pieces', 'example_digits', 'pixels_of', 'save_examples', 'takes_digits']

DIGIT, INK = 28, 20  # sides of MNIST's images, and of the box that the ink of each fills
FAINT = 0.25  # less ink than this share of the darkest is none
LARGEST = 280  # side that a picture of a digit is first reduced to


def takes_digits(name: str) -> bool:
    """Whether a network of this name is for single digits of MNIST, light on dark."""
    task = TASKS.get(set_of(name) or '')
    return task is not None and task.load is load_mnist and (task.channels, task.answers, task.dims) == (1, 1, 2)


def pixels_of(path: Path, config: dict[str, Any], digits: bool) -> Tensor:
    """The picture in a file as a network takes it: (C, H, W) in [0, 1], before its mean and std are taken out.

    Args:
        path: The file.
        config: timm's data config of the network, of which timm's own transform is made.
        digits: Make a digit of MNIST of it instead.

    Raises:
        BadImage: See `open_limited`.
    """
    channels, *size = config['input_size']
    picture = open_limited(path, 'L' if channels == 1 else 'RGB')
    if digits:
        return as_digit(picture, size[0])
    return denormalized(create_transform(**config)(picture), config)


def as_digit(picture: Image.Image, size: int) -> Tensor:
    """A picture of one digit as those of MNIST are, in the middle of a black canvas: (1, size, size) in [0, 1].

    Ink is white, fills a box of 20 pixels on its longer side, and has its centre of mass in the middle. Dark ink on a
    light ground is turned into light on dark. A picture of that size, light on dark, is left as it is.
    """
    grey = picture.convert('L')
    as_it_is = grey.size == (size, size)
    grey.thumbnail((LARGEST, LARGEST))
    values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(grey.height, grey.width) / 255
    ground = torch.cat([values[0], values[-1], values[:, 0], values[:, -1]]).median()
    if ground > 0.5:
        values, ground = 1 - values, 1 - ground
    elif as_it_is:
        return values[None]
    ink = ((values - ground) / (values.max() - ground).clamp_min(1e-6)).clamp(0, 1)
    canvas = torch.zeros(1, size, size)
    if values.max() - ground < 0.1:  # nothing but ground
        return canvas
    box = _fitted(ink)
    middle = (size - 1) / 2
    top, left = (
        min(max(round(middle - center), 0), size - side) for center, side in zip(_center(box), box.shape))
    canvas[0, top:top + box.shape[0], left:left + box.shape[1]] = box
    return canvas


def _fitted(ink: Tensor) -> Tensor:
    """The ink (h, w) cut out, with 20 pixels on its longer side, its brightest 1."""
    rows, columns = ((ink > FAINT).any(axis).nonzero()[:, 0] for axis in (1, 0))
    cut = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    longer = max(cut.shape)
    width, height = (max(1, round(INK * side / longer)) for side in reversed(cut.shape))
    image = _picture(cut[None]).resize((width, height), Image.Resampling.BILINEAR)
    box = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(height, width) / 255
    return box / box.max()


def _center(box: Tensor) -> Sequence[float]:
    """Centre of mass, (row, column)."""
    shares = box / box.sum()
    return [float((shares.sum(1 - axis) * torch.arange(box.shape[axis])).sum()) for axis in (0, 1)]


def example_digits() -> Tensor:
    """Held-out digits (N, 1, S, S) in [0, 1], which the card of one network has; none where the package has no card."""
    sheets = [card_folder(name) / EXAMPLES for name in zoo_names() if takes_digits(name)]
    for sheet in sheets:
        if sheet.is_file():
            return read_sheet(sheet)[0]
    return torch.zeros(0, 1, DIGIT, DIGIT)


def save_examples(folder: Path, count: int) -> list[Path]:
    """The first digits as files in a folder."""
    paths = []
    for i, digit in enumerate(example_digits()[:count], 1):
        paths.append(folder / f'digit-{i}.png')
        _picture(digit).save(paths[-1])
    return paths


def digit_pieces() -> Tensor:
    """What clutter of digits is cut from: the examples as those of MNIST are, (N, 1, 28, 28)."""
    digits = [as_digit(_picture(digit), DIGIT) for digit in example_digits()]
    return torch.stack(digits or [torch.ones(1, DIGIT, DIGIT)])


def _picture(digit: Tensor) -> Image.Image:
    return Image.fromarray((digit[0] * 255).round().byte().numpy())
