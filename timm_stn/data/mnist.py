"""MNIST as two tensors per split, read from the four published idx files (gzip or plain)."""
import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import download_url_to_file

from .._progress import is_quiet
from ..whole_file import write_files

__all__ = ['DATA_VARIABLE', 'load_mnist', 'read_idx']

DATA_VARIABLE = 'TIMM_STN_DATA'
PREFIXES = {'train': 'train', 'test': 't10k'}
SOURCE = 'https://ossci-datasets.s3.amazonaws.com/mnist/'
FILES = {  # file of SOURCE -> SHA-256
    'train-images-idx3-ubyte.gz': '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
    'train-labels-idx1-ubyte.gz': '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
    't10k-images-idx3-ubyte.gz': '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
    't10k-labels-idx1-ubyte.gz': 'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
}


def load_mnist(
        data: str | os.PathLike[str] | None = None,
        split: str = 'train',
        download: bool = False,
) -> tuple[Tensor, Tensor]:
    """Digits as uint8 (N, 1, 28, 28), and their classes as int64 (N,).

    Args:
        data: Folder with the files, or with a folder `mnist`, or torchvision's `MNIST/raw`. Default: the folder in the
            environment variable `TIMM_STN_DATA`.
        split: 'train' (60,000 digits) or 'test' (10,000).
        download: Download all four files to `MNIST/raw` in `data` if the split is missing.

    Raises:
        FileNotFoundError: The files are missing; the message says which files to put where.
        ValueError: A file is corrupt, truncated, or not an MNIST file.
        RuntimeError: A file cannot be downloaded, or has another SHA-256; then no file is kept.
    """
    if split not in PREFIXES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    folder = _data_folder(data)
    if download and _find(folder, split) is None:
        _download(folder)
    found = _find(folder, split)
    if found is None:
        raise FileNotFoundError(_how_to_get(folder, split))
    return _read_pair(*found)


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """The unsigned bytes of an idx file (gzip if its name ends in .gz) as a tensor of the declared shape.

    Raises:
        ValueError: The file is not an idx file of unsigned bytes, or its length differs from the declared shape.
    """
    content = _read_bytes(Path(path))
    if len(content) < 4 or content[:3] != b'\x00\x00\x08':
        found = content[:4].hex() or 'nothing'
        raise ValueError(f'{path}: not an idx file of unsigned bytes (it starts with {found}).')
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f'{path}: truncated within its header ({len(content)} bytes).')
    shape = struct.unpack(f'>{content[3]}I', content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f'{path}: {len(content)} bytes, but its header declares {expected} (shape {shape}).')
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != '.gz':
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f'{path}: corrupt or truncated gzip file ({error}).') from error


def _read_pair(image_path: Path, label_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f'{image_path}: expected images of 28 x 28, got shape {tuple(images.shape)}.')
    if labels.ndim != 1 or bool((labels > 9).any()):
        raise ValueError(f'{label_path}: expected one label from 0 to 9 per image, got shape {tuple(labels.shape)}.')
    if len(images) != len(labels):
        raise ValueError(f'{image_path} has {len(images)} images, but {label_path} has {len(labels)} labels.')
    return images[:, None], labels.long()


def _data_folder(data: str | os.PathLike[str] | None) -> Path:
    data = data or os.environ.get(DATA_VARIABLE)
    if not data:
        raise FileNotFoundError(
            f'No data folder: pass one as `data`, or name it in the environment variable {DATA_VARIABLE}. '
            f'It holds the four idx files of MNIST ({SOURCE}), or torchvision\'s MNIST/raw.')
    return Path(data).expanduser()


def _candidates(folder: Path) -> Iterator[Path]:
    for below in ('.', 'mnist', 'raw', 'MNIST/raw', 'mnist/MNIST/raw'):
        yield folder / below


def _find(folder: Path, split: str) -> tuple[Path, Path] | None:
    for candidate in _candidates(folder):
        pair = [_existing(candidate / f'{PREFIXES[split]}-{kind}-ubyte') for kind in ('images-idx3', 'labels-idx1')]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return None


def _existing(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + '.gz')) if p.is_file()), None)


def _how_to_get(folder: Path, split: str) -> str:
    prefix = PREFIXES[split]
    return (
        f'No MNIST {split} files in {folder} (nor in mnist/ or MNIST/raw/ below it). Download '
        f'{prefix}-images-idx3-ubyte.gz and {prefix}-labels-idx1-ubyte.gz from {SOURCE} into that folder, '
        f'or ask for the download (`download=True`, `--download`).')


def _download(folder: Path) -> None:
    """Fetch all files beside, and move them to their place (`MNIST/raw`) once all are there and as published."""
    def fetch(beside: Path) -> None:
        raw = beside / 'MNIST' / 'raw'
        raw.mkdir(parents=True)
        for name, digest in FILES.items():
            _fetch(SOURCE + name, raw / name, digest)

    write_files(folder, fetch)


def _fetch(url: str, path: Path, digest: str) -> None:
    try:
        shown = sys.stderr.isatty() and not is_quiet()
        download_url_to_file(url, str(path), digest, progress=shown)  # type: ignore[no-untyped-call]
    except Exception as error:  # of many types: urllib's, http.client's, the file system's, torch's of another digest
        raise RuntimeError(f'{url} cannot be downloaded: {error}') from error
