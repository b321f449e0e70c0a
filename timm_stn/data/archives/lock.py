"""A file that only one process has at a time. Others are told, and do not wait."""
import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ['take']


def take(file: IO[str], path: Path) -> bool:
    """Whether this process has an open file now, and it is still the one at its path: who was done has removed it.

    Where the file system has no locks, as some on networks, it always has.
    """
    if not fcntl:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
