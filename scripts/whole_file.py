"""A file that is there whole, or not at all, or as it was before."""
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a file beside its place, in a folder that is made, and move it there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.tmp')
    save(beside)
    os.replace(beside, path)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text))
