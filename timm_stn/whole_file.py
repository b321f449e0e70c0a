"""A file that is there whole, or not at all, or as it was before. Python's own library only."""
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ['write_files', 'write_text', 'write_whole']


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a file beside its place, in a folder that is made, and move it there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.tmp')
    try:
        save(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text))


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
