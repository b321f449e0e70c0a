"""The image files that `timm-stn show` is asked for."""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..view.images import find_images, folder_name
from .common import Refused

__all__ = ['File', 'image_files']


class File(NamedTuple):
    """An image file: what its class is called ('': it has none), and whether the command line names it itself."""
    path: Path
    label: str
    named: bool


def image_files(given: Sequence[str], output: Path, lost: list[tuple[Path, str]]) -> list[File]:
    """The files named, and those in the folders named. Folders that cannot be read go to ``lost``, with the reason."""
    files: list[File] = []
    for text in given:
        path = Path(text)
        if not os.path.isdir(text):
            if not os.path.exists(text):
                raise Refused(f'argument IMAGE: no file or folder {text!r}')
            if _same(path, output):
                raise Refused(f'argument --output: {str(output)!r} is one of the images')
            files.append(File(path, folder_name(path), True))
            continue
        found = [file for file in find_images(path, lost) if file.name != output.name or not _same(file, output)]
        if not found:
            why = ''.join(f'; {folder}: {reason}' for folder, reason in lost)
            raise Refused(f'argument IMAGE: no pictures in the folder {text!r}{why}')
        labels = {folder: folder_name(folder / 'any') for folder in {file.parent for file in found}}
        if len(labels) > 1:
            labels[path] = ''  # beside the folders of classes
        files += [File(file, labels[file.parent], False) for file in found]
    return files


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
