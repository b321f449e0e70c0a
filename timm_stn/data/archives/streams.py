"""A tar that is read from its start to its end, block by block, with limits on what a bomb unpacks to."""
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from timm_stn.data.archives.wrong import WrongSource

__all__ = ['BLOCK', 'TOTAL', 'Blocks', 'Forward']

TOTAL = 2 ** 34  # bytes of an archive, unpacked; the largest of the three sets, SVHN's extra, has some GB
HEADER = 2 ** 17  # of all that is said of a file: its names, times, attributes, and places
BLOCK = 2 ** 20  # of a read of the archive, and the unit of its bar

T = TypeVar('T')


class Blocks(io.RawIOBase):
    """Bytes that come in blocks, as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, memoryview(b'')

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._rest = self._rest or memoryview(next(self._blocks, b''))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Forward:
    """What tarfile asks of a file, of one that only goes forward; contents are read in blocks, headers as they are."""

    def __init__(self, source: Path, file: IO[bytes]) -> None:
        self._source, self._file, self._at = source, file, 0
        self._left = HEADER  # tarfile reads the first header when it opens

    def header(self, read: Callable[[], T]) -> T:
        """The result of a call that reads a header, with all that belongs to it."""
        self._left = HEADER
        found = read()
        self._left = TOTAL
        return found

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise WrongSource(f'{str(self._source)!r}: refused, for it has a name or header of more than {HEADER:,} '
                              'bytes')
        return self._take(size)

    def seek(self, place: int) -> None:
        while self._at < place and self._take(min(BLOCK, place - self._at)):
            pass

    def _take(self, size: int) -> bytes:
        if self._at + size > TOTAL:
            raise WrongSource(f'{str(self._source)!r}: refused, for it unpacks to more than {TOTAL >> 30} GB')
        found = self._file.read(size)
        self._at += len(found)
        return found
