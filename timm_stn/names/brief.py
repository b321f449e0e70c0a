"""Names and messages of strangers, short enough to be shown: a file may hold a hundred thousand of them."""
from collections.abc import Sequence

__all__ = ['listed', 'short']

LETTERS, NAMES, LETTERS_OF_A_NAME = 2000, 8, 120
TAIL = 40  # letters that say how long a text was


def short(text: object, letters: int = LETTERS) -> str:
    """A text, or its beginning and how long it is."""
    text = str(text)
    return text if len(text) <= letters + TAIL else f'{text[:letters]} ... ({len(text):,} characters)'


def listed(names: Sequence[object], most: int = NAMES) -> str:
    """Names as Python writes a list of them; of many, the first and how many more there are."""
    text = repr([short(name, LETTERS_OF_A_NAME) for name in names[:most]])
    return text if len(names) <= most else f'{text[:-1]}, and {len(names) - most:,} more]'
