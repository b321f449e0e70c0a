"""What is said of a source that is not what it must be."""
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ['Fault', 'WrongSource', 'named', 'printable', 'quoted']

LONGEST = 100  # characters of a name or line of an archive that are shown


class WrongSource(ValueError):
    """A source is not what it must be, or damaged; the message says which, and in one line why."""


Fault = Callable[[str], WrongSource]  # of a text


def named(sources: Iterable[Path]) -> str:
    """Sources, for a message."""
    return ', '.join(repr(str(source)) for source in sources)


def quoted(text: str) -> str:
    """A name or line of an archive for a message: its start, in quotes, without what a terminal would obey."""
    return repr(text if len(text) <= LONGEST else f'{text[:LONGEST]}...')


def printable(text: str) -> str:
    """A message of one of Python's readers, which may hold names of an archive: its start in one line, likewise."""
    line = ' '.join(text[:2 * LONGEST].split())
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)
