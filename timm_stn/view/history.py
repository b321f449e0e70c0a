"""The log of a training: what it says of each transformer, and its files in the folder of the run."""
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..modules.spatial_transformer import SpatialTransformer
from .geometry_of_looks import looks, wrapped

__all__ = ['LINES', 'PICTURES', 'append_line', 'last_step', 'picture_place', 'pictures_of', 'read_lines', 'scalars']

LINES, PICTURES = 'stn_log.jsonl', 'stn_log'  # a file and a folder in that of the run
AXES = 'xyz'

Line = dict[str, Any]


def scalars(stn: SpatialTransformer, theta: Tensor) -> list[dict[str, float]]:
    """What theta does to a batch of N images, one dict for each glimpse or stream of theirs.

    Of each number there is the mean over the images, and as ``<name>_spread`` the standard deviation; of ``outside``
    and ``bend`` the mean alone. See :class:`timm_stn.view.geometry_of_looks.Looks` for their exact meaning; for
    families without a matrix they are those of the affine map nearest to them.

    - ``scale``: side of the view as a share of the image's; ``stretch``: its width over its height, relative to the
      image's.
    - ``angle``: degrees, clockwise; ``shear``: degrees. Their means are those of directions: of 179 and -179 it is 180.
    - ``x``, ``y`` (``z``): where the centre of the view lies, in half-widths of the image from its middle.
    - ``outside``: share of the view outside the image.
    - ``bend``: distance of the view from the nearest affine map, in half-widths; not for affine maps.

    Args:
        stn: The transformer; images have ``stn.rows`` rows each in its batch.
        theta: Its thetas, as in ``last_theta``.
    """
    found = looks(stn, theta)
    parts = {key: value for key, value in found._asdict().items() if value is not None and key != 'center'}
    parts.update(zip(AXES, found.center.unbind(-1)))
    if stn.transform.linear and theta.shape[-2:] != (3, 3):
        del parts['bend']
    columns = {key: value.reshape(-1, stn.rows * value.shape[1]).unbind(1) for key, value in parts.items()}
    return [_finite(_summary({key: value[k] for key, value in columns.items()}))
            for k in range(stn.rows * found.scale.shape[1])]


def _summary(parts: dict[str, Tensor]) -> dict[str, float]:
    """Mean and spread of numbers (N,)."""
    said: dict[str, float] = {}
    for key, values in parts.items():
        mean = values.mean()
        if key in ('angle', 'shear'):
            turns = torch.deg2rad(values)
            mean = torch.rad2deg(torch.atan2(turns.sin().mean(), turns.cos().mean()))
            spread = wrapped(values - mean).square().mean().sqrt()
        else:
            spread = values.std(correction=0)
        said[key] = float(mean)
        if key not in ('outside', 'bend'):
            said[f'{key}_spread'] = float(spread)
    return said


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {key: float(f'{value:.6g}') for key, value in numbers.items() if math.isfinite(value)}


def append_line(folder: Path, line: Line) -> None:
    """Add a line to the log of a run, after what there is, of which the last line may be cut off."""
    with (folder / LINES).open('a+b') as file:
        text = json.dumps(line, allow_nan=False) + '\n'
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read() == b'\n' else '\n' + text
        file.write(text.encode())


def read_lines(folder: Path) -> list[Line]:
    """The lines of a log, in their order; [] if there is none. What is no line, as one cut off, is left out."""
    lines: list[Line] = []
    try:
        text = (folder / LINES).read_text(errors='replace')
    except FileNotFoundError:
        return []
    for each in text.splitlines():
        try:
            line = json.loads(each)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get('step'), int):
            lines.append(line)
    return lines


def picture_place(folder: Path, step: int) -> Path:
    """The file of the picture that is drawn after a step."""
    return folder / PICTURES / f'step-{step:08d}.jpg'


def pictures_of(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of all pictures of a log, in the order of the steps; [] if there are none."""
    found = ((path.stem.removeprefix('step-'), path) for path in (folder / PICTURES).glob('step-*.jpg'))
    return sorted((int(step), path) for step, path in found if step.isdecimal())


def last_step(folder: Path) -> int:
    """The last step that a log says something of; 0 if there is none."""
    steps = [line['step'] for line in read_lines(folder)] + [step for step, _ in pictures_of(folder)]
    return max(steps, default=0)
