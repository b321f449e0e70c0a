"""SVHN's house numbers (http://ufldl.stanford.edu/housenumbers/, format 1): whole sequences, cropped, as two tensors.

A split is a folder with `1.png`, `2.png`, ... and `digitStruct.mat`, a MATLAB v7.3 file (so HDF5) with each digit's box
and label.

| size | crop |
| --- | --- |
| 64 | the tight box of all digits, 1.3 times as wide and as high (Goodfellow et al. 2013, arXiv:1312.6082, section 5) |
| 128 | 2.6 times as wide and as high: digits have the pixels that they have at 64 |

Both are then resized, antialiased, without regard to their aspect. Our choices, where the papers give no details: a
crop of 128 x 128 is moved into the image as far as it fits, so that the digits are not always in the middle; what is
beyond the image repeats its edge. Goodfellow et al. take random crops of 54 x 54 out of the 64 x 64; none are taken
here. Boxes count pixels from 0.
"""
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from timm_stn._progress import progress
from timm_stn.data.sequences import LENGTH, NONE

__all__ = ['GROWTH', 'SPLITS', 'image_names', 'load_svhn']

SPLITS = ('train', 'extra', 'test')
SOURCE = 'http://ufldl.stanford.edu/housenumbers/'
GROWTH = {64: 1.3, 128: 2.6}  # side of the crop, pixels -> its width as a multiple of the tight box's


T = TypeVar('T')


class _Digit(NamedTuple):
    """A box in pixels, and what it holds; the names are the file's."""
    left: float
    top: float
    width: float
    height: float
    label: float  # 10 is the digit 0


def load_svhn(folder: str | os.PathLike[str], split: str = 'train', size: int = 64) -> tuple[Tensor, Tensor]:
    """Images as uint8 (N, 3, size, size), and their classes as int64 (N, 5): digits as they are read, then 10 for none.

    Sequences of more than five digits are left out (SVHN has one, of six, in `train`). All images are in memory: 12 kB
    each at size 64, 49 kB at 128. Decoding the 202,353 of `extra` takes minutes.

    Args:
        folder: Folder with the split's folder, or with a folder `svhn` that has it.
        split: 'train' (33,402 images), 'extra' (202,353) or 'test' (13,068). The paper trains on the first two.
        size: 64 or 128 pixels, see above.

    Raises:
        FileNotFoundError: A file is missing; the message says what to put where.
        ValueError: A file is damaged, a label is not from 1 to 10, or a box lies outside its image.
        ImportError: h5py is missing: `pip install "timm-stn[svhn]"`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train', 'extra' or 'test', got {split!r}.")
    if size not in GROWTH:
        raise ValueError(f'size must be 64 or 128, got {size!r}.')
    place = _find(Path(folder).expanduser(), split)
    struct = place / 'digitStruct.mat'
    entries = _read_struct(struct, _entry)
    for entry in entries:
        _check(struct, *entry)
    found = [(name, digits) for name, digits in entries if len(digits) <= LENGTH]
    images = torch.empty(len(found), 3, size, size, dtype=torch.uint8)
    classes = torch.full((len(found), LENGTH), NONE)
    for i, (name, digits) in enumerate(found):
        images[i] = _crop(place / name, digits, size)
        classes[i, :len(digits)] = torch.tensor([int(digit.label) % 10 for digit in digits])
    return images, classes


def _find(folder: Path, split: str) -> Path:
    for place in (folder / split, folder / 'svhn' / split):
        if (place / 'digitStruct.mat').is_file():
            return place
    raise FileNotFoundError(
        f'No {split}/digitStruct.mat in {folder} (nor in svhn/ below it). Download {split}.tar.gz from {SOURCE} and '
        'unpack it in that folder: `timm-stn data svhn` does, and checks it.')


def image_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the images that a `digitStruct.mat` describes. Raises ValueError and ImportError as `load_svhn` does."""
    return _read_struct(Path(path), lambda file, name, box: _text(file, name))


def _read_struct(path: Path, read: Callable[[Any, Any, Any], T]) -> list[T]:
    """What `read` makes of each image, that is of the file and its references to the image's name and digits."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('Reading SVHN needs h5py: pip install "timm-stn[svhn]"') from error
    try:
        with h5py.File(path, 'r') as file:
            names, boxes = (file['digitStruct'][key][:, 0] for key in ('name', 'bbox'))
            pairs = progress(zip(names, boxes, strict=True), f'reading {path.name}', len(names), unit='image')
            return [read(file, *references) for references in pairs]
    except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # h5py's
        raise ValueError(f'{path}: not the digitStruct.mat of SVHN, or damaged ({error}).') from error


def _entry(file: Any, name: Any, box: Any) -> tuple[str, list[_Digit]]:
    """What an image's two references lead to."""
    columns = [_column(file, file[box][key]) for key in _Digit._fields]
    return _text(file, name), [_Digit(*row) for row in zip(*columns, strict=True)]


def _text(file: Any, name: Any) -> str:
    return ''.join(map(chr, file[name][:, 0]))


def _column(file: Any, dataset: Any) -> list[float]:
    """The value of each digit: a number where there is one digit, else references to numbers."""
    column = dataset[:, 0]
    return [float(file[value][0, 0]) for value in column] if dataset.dtype.kind == 'O' else [float(v) for v in column]


def _check(path: Path, name: str, digits: list[_Digit]) -> None:
    if not name or Path(name).name != name:
        raise ValueError(f'{path}: {name!r} is no name of a file in its folder.')
    if not digits:
        raise ValueError(f'{path}: {name} has no digits.')
    for digit in digits:
        if digit.label not in range(1, 11):
            raise ValueError(f'{path}: labels must be from 1 to 10, {name} has {digit.label:g}.')
        if not (0 < digit.width < 2 ** 15 and 0 < digit.height < 2 ** 15):
            raise ValueError(f'{path}: {name} has a box of {digit.width:g} x {digit.height:g} pixels.')


def _crop(path: Path, digits: list[_Digit], size: int) -> Tensor:
    """The crop of an image, (3, size, size)."""
    if not path.is_file():
        raise FileNotFoundError(f'No {path}, which digitStruct.mat names: unpack the whole archive.')
    try:
        with Image.open(path) as opened:
            image = opened.convert('RGB')
    except (OSError, SyntaxError) as error:  # PIL's, of damaged files
        raise ValueError(f'{path}: no image, or damaged ({error}).') from error
    for digit in digits:
        is_inside = (-digit.width < digit.left < image.width and -digit.height < digit.top < image.height)
        if not is_inside:
            raise ValueError(f'{path}: the box {tuple(digit[:4])} (left, top, width, height) lies outside the image of '
                             f'{image.width} x {image.height} pixels.')
    sides = []
    for i, length in enumerate((image.width, image.height)):
        low, high = min(digit[i] for digit in digits), max(digit[i] + digit[i + 2] for digit in digits)
        reach = GROWTH[size] * (high - low) / 2
        center = (low + high) / 2
        if size > min(GROWTH):  # into the image
            center = length / 2 if 2 * reach > length else min(max(center, reach), length - reach)
        sides.append((center - reach, center + reach))
    return _resize(image, sides[0], sides[1], size)


def _resize(image: Image.Image, across: tuple[float, float], down: tuple[float, float], size: int) -> Tensor:
    """What lies between x and y of an image, which goes on beyond its edges, at size x size."""
    pixels = _to_tensor(image)
    left, top = int(across[0] // 1), int(down[0] // 1)
    columns = torch.arange(left, int(-(-across[1] // 1))).clamp(0, image.width - 1)
    rows = torch.arange(top, int(-(-down[1] // 1))).clamp(0, image.height - 1)
    beyond = Image.frombytes('RGB', (len(columns), len(rows)), pixels[rows][:, columns].numpy().tobytes())
    box = across[0] - left, down[0] - top, across[1] - left, down[1] - top
    return _to_tensor(beyond.resize((size, size), Image.Resampling.BILINEAR, box=box)).permute(2, 0, 1)


def _to_tensor(image: Image.Image) -> Tensor:
    """(H, W, 3), uint8."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)
