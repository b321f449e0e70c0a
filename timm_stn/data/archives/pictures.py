"""Images as an archive holds them: are they some, and how large are they? Pillow alone, and only its plain formats."""
import io
import struct
import warnings

from PIL import Image

from timm_stn.data.archives.members import Member
from timm_stn.data.archives.wrong import WrongSource

__all__ = ['open_picture']

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'WEBP')


def open_picture(member: Member, content: bytes, whole: bool = False) -> Image.Image:
    """An image of an archive. Its header is read; all of it only if `whole`.

    Raises:
        WrongSource: Pillow cannot read it, or it would have more pixels than Pillow takes for safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if whole:
                image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, EOFError, OSError, SyntaxError, ValueError,
            struct.error) as error:
        raise WrongSource(f'{member.said} is no image, or damaged '
                          f'({type(error).__name__})') from error
