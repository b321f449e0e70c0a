"""What the page accepts, so that a request is small work: pixels of an image, bytes of a file, waiting requests."""
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

from ..view.images import BadImage, open_image

__all__ = ['AT_ONCE', 'MOST_BYTES', 'MOST_PIXELS', 'MOST_WAITING', 'guarded_pillow', 'open_limited']

MOST_PIXELS = 20_000_000
MOST_BYTES = 64_000_000  # of an uploaded file
AT_ONCE, MOST_WAITING = 4, 64  # requests that are worked on, and that wait


def open_limited(file: Path | IO[bytes], mode: str) -> Image.Image:
    """The picture in a file, upright, in mode ``L`` or ``RGB``; nothing of one that is too large is decoded.

    Raises:
        BadImage: It is no image, damaged, or has more than MOST_PIXELS pixels.
    """
    try:
        return open_image(file, mode, MOST_PIXELS)[0]
    except BadImage as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):  # Pillow's, of what its header says
            raise BadImage(f'an image of more than {MOST_PIXELS:,} pixels') from error
        raise


@contextmanager
def guarded_pillow() -> Iterator[None]:
    """Within it, Pillow itself refuses images of more than MOST_PIXELS pixels, also where Gradio opens them."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # it warns above, and refuses above twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
