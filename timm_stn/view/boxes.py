"""True boxes of the objects in image files: read from a table, found for a file, placed in the network's input."""
import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from torch import Tensor

from .placing import placing

__all__ = ['BEYOND', 'are_beyond', 'boxes_of_file', 'read_boxes', 'to_input']

Box = tuple[float, float, float, float]
SIDES = ('x1', 'y1', 'x2', 'y2')
BEYOND = 'true boxes reach beyond the image: are they in its pixels?'

T = TypeVar('T')


def read_boxes(path: str | os.PathLike[str]) -> dict[str, list[Box]]:
    """The boxes of a CSV file with columns ``file,x1,y1,x2,y2``; other columns are ignored.

    Args:
        path: The CSV file. One row for each box, in pixels of the upright image from its left and upper edge.

    Returns:
        By file, as the table names it (``./`` left out): its boxes (left, top, right, bottom).

    Raises:
        OSError: There is no such file.
        ValueError: It is no such table; the message says in which line.
    """
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            return _boxes(file)
    except UnicodeDecodeError as error:
        raise ValueError(f'it must be a text file in UTF-8: {error}') from error


def _boxes(file: Iterable[str]) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    rows = csv.DictReader(file, skipinitialspace=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    missing = [name for name in ('file', *SIDES) if name not in names]
    if missing:
        raise ValueError(f'line 1: columns file,x1,y1,x2,y2 are needed; {",".join(missing)} missing in '
                         f'{",".join(names)!r}, where commas separate them')
    rows.fieldnames = names
    for row in rows:
        name = (row['file'] or '').strip()
        if not name:
            raise ValueError(f'line {rows.line_num}: no file')
        boxes.setdefault(PurePosixPath(name).as_posix(), []).append(_box(row, rows.line_num))
    return boxes


def _box(row: Mapping[str, str | None], line: int) -> Box:
    sides = []
    for side in SIDES:
        try:
            value = float(row[side] or '')
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f'line {line}: {side} must be a number, got {row[side] or ""!r}')
        sides.append(value)
    left, top, right, bottom = sides
    for low, high, axis in ((left, right, 'x'), (top, bottom, 'y')):
        if high < low:
            raise ValueError(
                f'line {line}: {axis}2 must not be less than {axis}1, got {axis}1={low:g}, {axis}2={high:g}')
    return left, top, right, bottom


def boxes_of_file(path: str | os.PathLike[str], boxes: Mapping[str, Sequence[Box]]) -> list[Box]:
    """The boxes of an image file; [] if there are none.

    A name of the table stands for all files whose path ends in its parts: ``b/c.png`` for ``/a/b/c.png``, not for
    ``/a/bb/c.png``. Of several such names the longest counts.
    """
    return list(by_trailing_parts(path, boxes) or ())


def by_trailing_parts(path: str | os.PathLike[str], named: Mapping[str, T]) -> T | None:
    """The value of the longest name whose parts are the last of a file's path; None if there is none."""
    parts = Path(os.path.abspath(path)).as_posix().split('/')
    names = ('/'.join(parts[k:]) for k in range(len(parts)))
    return next((named[name] for name in names if name in named), None)


def are_beyond(boxes: Sequence[Box], size: tuple[int, int]) -> bool:
    """Whether some box reaches beyond an image of (width, height) pixels, by more than rounding."""
    return any(min(x1, y1) < -1 or x2 > size[0] + 1 or y2 > size[1] + 1 for x1, y1, x2, y2 in boxes)


def to_input(boxes: Tensor, file_size: tuple[int, int], config: dict[str, Any]) -> Tensor:
    """Boxes (B, 4) in pixels of an upright image file as boxes (B, 4) of the network's input.

    Args:
        boxes: Left, top, right, bottom, from the left and upper edge of the image.
        file_size: (width, height) of the image.
        config: timm's data config, whose transform cuts and resizes the image.

    Returns:
        Left, top, right, bottom in [-1, 1] from edge to edge of the input; outside where the transform cut them off.
    """
    return placing(file_size, config).to_input(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
