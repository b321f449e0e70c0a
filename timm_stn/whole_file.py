"""A file that is there whole, or not at all, or as it was before. Python's own library only."""
import argparse
import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ['check_place', 'place_of_file', 'place_of_folder', 'write_files', 'write_text', 'write_whole']


def check_place(path: Path) -> None:
    """Raise an OSError if `write_whole` could not write there. Nothing is left behind."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(_beside(path))  # its name may be too long
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    tempfile.TemporaryFile(dir=folder).close()


def place_of_file(text: str) -> Path:
    """A file to be written, as a `type` of argparse, which refuses what could not be."""
    return _place(text, Path(text))


def place_of_folder(text: str) -> Path:
    """A folder in which files are to be written, likewise."""
    return _place(text, Path(text) / 'file')


def _place(text: str, file: Path) -> Path:
    try:
        check_place(file)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'cannot write {text!r}: {error.strerror}') from None
    return Path(text)


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a file beside its place, in a folder that is made, and move it there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        save(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.tmp')


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text, encoding='utf-8'))


def write_files(folder: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` fill a folder beside, and move all files to their places in `folder` once they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.beside-') as name:
        beside = Path(name)
        save(beside)
        for file in sorted(path for path in beside.rglob('*') if path.is_file()):
            place = folder / file.relative_to(beside)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
