"""Progress bars on a terminal, for what takes more than a moment. Imports nothing of ours.

They are tqdm's, which huggingface-hub brings, on stderr: not where that is no terminal, and not within :func:`quiet`.
"""
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ['is_quiet', 'progress', 'quiet']

DELAY = 1.0  # seconds before a bar appears

T = TypeVar('T')

_quiet: ContextVar[bool] = ContextVar('quiet', default=False)


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = 'it') -> Iterable[T]:
    """``items``, with a bar while they are run through, if that takes more than a second.

    Args:
        items: What to run through.
        what: What the bar says is being done, as ``'reading'``.
        total: How many there are. Default: their length, where they have one.
        unit: What one of them is, as ``'image'``.
    """
    from tqdm import tqdm  # a tenth of a second
    return tqdm(items, what, total, unit=unit, delay=DELAY, leave=False, disable=True if is_quiet() else None)


@contextmanager
def quiet(really: bool = True) -> Iterator[None]:
    """Within it there are no bars, neither ours nor those of huggingface-hub's downloads and uploads."""
    if not really:
        yield
        return
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    token, theirs = _quiet.set(True), are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        _quiet.reset(token)
        if not theirs:
            enable_progress_bars()


def is_quiet() -> bool:
    return _quiet.get()
