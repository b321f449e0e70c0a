"""A Hub that takes a request and never answers: huggingface_hub's client waits for it for ever, by its default."""
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import get_session

__all__ = ['SILENCE', 'bounded']

SILENCE = 60.0  # seconds without a byte, in a request, after which the client gives it up, or tries it again
_lock = threading.Lock()
_inside: list[Any] = []  # the timeout before, of each call in progress


@contextmanager
def bounded() -> Iterator[None]:
    """Bound the silence in requests of the client that all of huggingface_hub shares; as it was afterwards.

    Raises:
        Exception: The HTTP library's error of a timeout, where the server was silent.
    """
    session: Any = get_session()
    with _lock:
        _inside.append(_inside[0] if _inside else getattr(session, 'timeout', None))
        session.timeout = SILENCE
    try:
        yield
    finally:
        with _lock:
            before = _inside.pop()
            if not _inside:
                session.timeout = before
