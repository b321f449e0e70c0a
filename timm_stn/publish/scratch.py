"""A temporary folder for files as large as the weights: removed by whatever ends a push, or else by the next push."""
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

try:
    import fcntl
except ImportError:  # Windows: a killed push leaves its folder there
    fcntl = None  # type: ignore[assignment]

__all__ = ['scratch_folder']

PREFIX, LOCK = 'timm-stn-push-', '.lock'
YOUNG = 60.0  # seconds in which a folder may still be without its lock
ENDING = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]  # by default at once


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A fresh folder, removed afterwards, or when SIGTERM or SIGHUP ends the process.

    What a process that was killed (SIGKILL) has left is removed first: its lock is held by nobody.
    """
    _sweep()
    held = None
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
            held = _lock(Path(name))
            with _removed_by_signals(name):
                yield Path(name)
    finally:
        if held is not None:
            os.close(held)


def _lock(folder: Path) -> int | None:
    """Hold the folder's lock, which ends with the process; None where there are no locks, or another has it."""
    if fcntl is None:
        return None
    held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _sweep() -> None:
    """Remove folders of this user's earlier pushes that nobody holds."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f'{PREFIX}*'):
        try:
            facts = folder.lstat()
            if folder.is_symlink() or facts.st_uid != os.getuid() or time.time() - facts.st_mtime < YOUNG:
                continue
            held = _lock(folder)
        except OSError:  # no folder, or gone meanwhile
            continue
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


@contextmanager
def _removed_by_signals(folder: str) -> Iterator[None]:
    """Remove the folder before a signal that nobody else handles ends the process."""
    def end(number: int, frame: FrameType | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ours = []
    if threading.current_thread() is threading.main_thread():  # others cannot handle signals
        ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
