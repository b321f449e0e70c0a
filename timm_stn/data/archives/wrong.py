"""What is said of a source that is not what it must be."""

__all__ = ['WrongSource', 'printable', 'quoted']

LONGEST = 100  # characters of a name or line of an archive that are shown


class WrongSource(ValueError):
    """A source is not what it must be, or damaged; the message says which, and in one line why."""


def quoted(text: str) -> str:
    """A name or line of an archive for a message: its start, in quotes, without what a terminal would obey."""
    return repr(text if len(text) <= LONGEST else f'{text[:LONGEST]}...')


def printable(text: str) -> str:
    """A message of one of Python's readers, which may hold names of an archive: its start in one line, likewise."""
    line = ' '.join(text[:2 * LONGEST].split())
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)
