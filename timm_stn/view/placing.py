"""Where the pixels of an image file come to lie in the network's input, by the transform that timm makes of a config.

Pixels count from the left and upper edge of the upright image: the first pixel covers 0 to 1. Coordinates of the input
are the package's: xy order, [-1, 1] from edge to edge.
"""
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

__all__ = ['Placing', 'placing', 'steps_of']


class Placing(NamedTuple):
    """The map from pixels of a file to the network's input: ``scale`` x pixel + ``shift``, for x and y."""
    scale: tuple[float, float]
    shift: tuple[float, float]

    def to_input(self, points: Tensor) -> Tensor:
        """Points (..., 2) in pixels of the file as coordinates of the input; outside [-1, 1] where it was cut off."""
        points = _floating(points)
        return points * points.new_tensor(self.scale) + points.new_tensor(self.shift)

    def to_file(self, points: Tensor) -> Tensor:
        """Points (..., 2) of the input in pixels of the file."""
        points = _floating(points)
        return (points - points.new_tensor(self.shift)) / points.new_tensor(self.scale)


def _floating(points: Tensor) -> Tensor:
    return points if points.is_floating_point() else points.to(torch.get_default_dtype())


def placing(file_size: tuple[int, int], config: dict[str, Any]) -> Placing:
    """Where an image comes to lie in the input.

    Args:
        file_size: (width, height) of the upright image.
        config: timm's data config of the network.
    """
    what = ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'crop_border_pixels')
    kept = tuple((key, config[key]) for key in what if config.get(key) is not None)
    return _placing(file_size, tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in kept))


def steps_of(config: dict[str, Any]) -> list[Any]:
    """The steps of the transform that come before pixels are numbers, for images of one channel, with fill 0."""
    one = {**config, 'input_size': (1, *config['input_size'][1:]), 'mean': (0.0,), 'std': (1.0,)}
    steps = create_transform(**one, is_training=False).transforms
    image = Image.new('L', tuple(one['input_size'][:0:-1]))
    geometric: list[Any] = []
    for step in steps:
        image = step(image)
        if not isinstance(image, Image.Image):
            return geometric
        geometric.append(step)
    return geometric


@lru_cache(maxsize=1024)
def _placing(file_size: tuple[int, int], config: tuple[tuple[str, Any], ...]) -> Placing:
    scale, shift = [1.0, 1.0], [0.0, 0.0]
    size = file_size
    for step in steps_of(dict(config)):
        shown = [step(_ramp(size, axis)) for axis in (0, 1)]
        for axis, picture in enumerate(shown):
            line = _middle(picture, axis)
            moved = _moved(line)
            if moved is None:  # made larger or smaller
                factor = picture.size[axis] / size[axis]
                scale[axis], shift[axis] = scale[axis] * factor, shift[axis] * factor
            else:
                shift[axis] += moved
        size = shown[0].size
    to = [2 / length for length in size]
    return Placing((scale[0] * to[0], scale[1] * to[1]), (shift[0] * to[0] - 1, shift[1] * to[1] - 1))


def _ramp(size: tuple[int, int], axis: int) -> Image.Image:
    """A picture in mode F: each pixel holds its own number along the axis, from 1; 0 is what is filled in."""
    numbers = torch.arange(1, size[axis] + 1, dtype=torch.float32)
    field = (numbers[None] if axis == 0 else numbers[:, None]).expand(size[1], size[0]).contiguous()
    return Image.frombytes('F', size, field.numpy().tobytes())


def _middle(picture: Image.Image, axis: int) -> list[float]:
    """The row or column of a picture through its middle."""
    width, height = picture.size
    box = (0, height // 2, width, height // 2 + 1) if axis == 0 else (width // 2, 0, width // 2 + 1, height)
    return torch.frombuffer(bytearray(picture.crop(box).tobytes()), dtype=torch.float32).tolist()


def _moved(line: list[float]) -> float | None:
    """By how many pixels the numbers of `_ramp` were moved; None if they were not just moved, cut off or padded."""
    moves = {i + 1 - number for i, number in enumerate(line) if number}
    return moves.pop() if len(moves) == 1 else None
