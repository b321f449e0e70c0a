"""Traffic signs: the German Traffic Sign Recognition Benchmark (GTSRB) at 32 x 32 pixels, read from tars; augmented.

Stallkamp et al. 2012, https://benchmark.ini.rub.de: 43 classes, 39,209 signs to train on and 12,630 to test on. A
split is `train.tar` or `test.tar`, with one folder of images for each class (`00000/` to `00042/`), all of 32 x 32
pixels, and `train-boxes.csv` or `test-boxes.csv` beside it, with a line for each image: file, width, height, x1, y1,
x2, y2, class. The box of the sign and the size are those of the original image, in its pixels. `timm-stn data gtsrb`
makes these files of the published ones.

A track is the photographs of one sign as a car drives by: thirty images that are nearly the same, whose names begin
with the same five digits. So tracks are kept together in the order of training images, and those at its end can be held
back.
"""
import csv
import os
import tarfile
from pathlib import Path
from typing import IO, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from timm_stn.data.distortions import as_float, between
from timm_stn.data.mnist import DATA_VARIABLE
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid

__all__ = ['CLASSES', 'DRAWS', 'SIDE', 'augmented_signs', 'load_signs', 'sign_boxes']

CLASSES, SIDE = 43, 32  # SIDE in pixels
SPLITS = ('train', 'test')
COLUMNS = ('file', 'width', 'height', 'x1', 'y1', 'x2', 'y2', 'class')
SOURCE = 'https://benchmark.ini.rub.de'
ORDER = 20120801  # seed of the order of tracks
DRAWS = 14  # uniform numbers that an augmented sign takes


class _Row(NamedTuple):
    """A line of the table of boxes."""
    width: int
    height: int
    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the original image
    answer: int


def load_signs(data: str | os.PathLike[str] | None = None, split: str = 'train') -> tuple[Tensor, Tensor]:
    """Signs as uint8 (N, 3, 32, 32), and what is known of them as int64 (N, 5).

    The five columns are the class, then left, top, right and bottom of the sign's box in thousandths of the image's
    side. Training images come track by track, in an order of tracks that is drawn once and for all; so the last N are
    whole tracks but for the first of them. Test images come in the order of their numbers.

    Args:
        data: Folder with the tars and tables, see above, or with a folder `gtsrb32` of these. Default: the folder in
            the environment variable `TIMM_STN_DATA`.
        split: 'train' (39,209 signs) or 'test' (12,630).

    Raises:
        FileNotFoundError: A file is missing; the message says what to put where.
        ValueError: A file is damaged, an image is not of 32 x 32 pixels, or the table does not fit the images.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    folder = _find(data, split)
    table = _read_table(folder / f'{split}-boxes.csv')
    pixels = _read_images(folder / f'{split}.tar')
    if table.keys() != pixels.keys():
        odd = min(table.keys() ^ pixels.keys())
        raise ValueError(f'{folder}: {split}.tar and {split}-boxes.csv differ in their files: {odd} is in one of them.')
    names = _by_track(list(table)) if split == 'train' else sorted(table, key=lambda name: Path(name).name)
    known = torch.tensor([[table[name].answer, *_thousandths(table[name])] for name in names])
    return torch.stack([pixels[name] for name in names]), known


def sign_boxes(known: Tensor, index: Tensor, u: Tensor) -> Tensor:
    """True boxes (N, 4) of the signs `index` (N,): left, top, right, bottom, in [-1, 1] from edge to edge.

    Args:
        known: What `load_signs` knows of the signs, (M, 5).
        index: Which of them.
        u: Uniform numbers, which a sign as it is does not need.
    """
    return known[index, 1:].to(u.dtype) / 500 - 1


def augmented_signs(signs: Tensor, known: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Signs to train on (N, 3, 32, 32) in [0, 1], each changed a little, and their classes (N,).

    One homography turns a sign (within 12 degrees), enlarges it along each axis (by 0.8 to 1.25), shears (within 0.15),
    moves (within 3 pixels) and tilts it (denominators from 0.8 to 1.2); what lies beyond the image repeats its edge.
    Signs are never mirrored. Then come blur or sharpening by the mean of 3 x 3 pixels, contrast (0.5 to 1.65 times) and
    brightness (0.5 to 1.5 times, and 0.1 more or less). An image depends on its own row of `index` and `u` only. CUDA
    graphs can capture the call.

    Args:
        signs: Signs (M, 3, 32, 32), floating point in [0, 1] or uint8.
        known: What `load_signs` knows of them, (M, 5).
        index: Which of them (N,), int64.
        u: All that is random, (N, 14), uniform in [0, 1).

    Raises:
        ValueError: `u` has another shape.
    """
    if u.shape != (len(index), DRAWS):
        raise ValueError(f'u must have shape {(len(index), DRAWS)}, got {tuple(u.shape)}.')
    images = sample(as_float(signs[index]), matrix_grid(_homography(u), (SIDE, SIDE)))
    gain, shift, blur = (u[:, i, None, None, None] for i in (10, 11, 12))
    images = torch.lerp(images, torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False),
                        between(blur, -0.5, 1.0))
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = middle + (images - middle) * torch.exp(between(gain, -0.7, 0.5))
    images = images * torch.exp(between(shift, -0.7, 0.4)) + between(u[:, 13, None, None, None], -0.1, 0.1)
    return images.clamp(0, 1), known[index, 0]


def _homography(u: Tensor) -> Tensor:
    """Matrices (N, 3, 3) from where a pixel comes to lie to where it is read, in [-1, 1]."""
    signed = between(u[:, :8], -1, 1)
    angle, shear = signed[:, 0] * 0.21, signed[:, 1] * 0.15
    stretch = torch.exp(signed[:, 2:4] * 0.11 + signed[:, 4:5] * 0.11)
    move, tilt = signed[:, 5:7] * (6 / SIDE), between(u[:, 7:9], -0.1, 0.1)
    cos, sin = angle.cos(), angle.sin()
    linear = torch.stack((cos, shear * cos - sin, sin, shear * sin + cos), dim=1).reshape(-1, 2, 2) * stretch[:, None]
    above = torch.cat((linear, move[:, :, None]), dim=2)
    last = torch.cat((tilt, torch.ones_like(tilt[:, :1])), dim=1)
    return torch.cat((above, last[:, None]), dim=1)


def _find(data: str | os.PathLike[str] | None, split: str) -> Path:
    data = data or os.environ.get(DATA_VARIABLE)
    files = f'{split}.tar and {split}-boxes.csv'
    if not data:
        raise FileNotFoundError(f'No data folder: pass one as `data`, or name it in the environment variable '
                                f"{DATA_VARIABLE}. It holds {files}, or a folder 'gtsrb32' with them.")
    folder = Path(data).expanduser()
    for place in (folder, folder / 'gtsrb32'):
        if (place / f'{split}.tar').is_file() and (place / f'{split}-boxes.csv').is_file():
            return place
    raise FileNotFoundError(
        f'No {files} in {folder} (nor in gtsrb32/ below it). Download GTSRB from {SOURCE}; `timm-stn data gtsrb` turns '
        'it into these files.')


def _by_track(names: list[str]) -> list[str]:
    """Names track by track, tracks in a fixed order at random."""
    tracks: dict[str, list[str]] = {}
    for name in sorted(names):
        tracks.setdefault(name.rpartition('_')[0], []).append(name)
    order = torch.randperm(len(tracks), generator=torch.Generator().manual_seed(ORDER))
    every = list(tracks.values())
    return [name for i in order.tolist() for name in every[i]]


def _thousandths(row: _Row) -> list[int]:
    sides = (row.width, row.height) * 2
    return [round(1000 * at / side) for at, side in zip(row.box, sides, strict=True)]


def _read_table(path: Path) -> dict[str, _Row]:
    rows = {}
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f'{path}: the columns must be {", ".join(COLUMNS)}, got {reader.fieldnames}.')
        for line in reader:
            try:
                width, height, x1, y1, x2, y2, answer = (int(line[column]) for column in COLUMNS[1:])
            except (TypeError, ValueError) as error:
                raise ValueError(f'{path}, line {reader.line_num}: not whole numbers ({error}).') from error
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(f'{path}, line {reader.line_num}: the box {x1, y1, x2, y2} does not lie in an image '
                                 f'of {width} x {height} pixels.')
            if not 0 <= answer < CLASSES:
                raise ValueError(f'{path}, line {reader.line_num}: classes are 0 to {CLASSES - 1}, got {answer}.')
            rows[line['file']] = _Row(width, height, (x1, y1, x2, y2), answer)
    if not rows:
        raise ValueError(f'{path}: there are no lines.')
    return rows


def _read_images(path: Path) -> dict[str, Tensor]:
    images = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile():
                    images[member.name.removeprefix('./')] = _pixels(path, member.name, tar.extractfile(member))
    except tarfile.TarError as error:
        raise ValueError(f'{path}: no tar, or damaged ({error}).') from error
    return images


def _pixels(path: Path, name: str, file: IO[bytes] | None) -> Tensor:
    """An image (3, 32, 32)."""
    try:
        with Image.open(file) as opened:  # type: ignore[arg-type]
            image = opened.convert('RGB')
    except (OSError, SyntaxError) as error:  # PIL's, of damaged files
        raise ValueError(f'{path}: {name} is no image, or damaged ({error}).') from error
    if image.size != (SIDE, SIDE):
        raise ValueError(f'{path}: {name} has {image.width} x {image.height} pixels, not {SIDE} x {SIDE}.')
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(SIDE, SIDE, 3).permute(2, 0, 1).contiguous()
