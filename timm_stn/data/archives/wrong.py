"""What is said of a source that is not what it must be."""

__all__ = ['WrongSource']


class WrongSource(ValueError):
    """A source is not what it must be, or damaged; the message says which, and in one line why."""
