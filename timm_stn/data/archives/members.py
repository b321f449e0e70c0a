"""The files in an archive (tar, tar.gz, zip) or a folder, one after another. Nothing that an archive says is trusted.

Nothing is written here. Names that lead out of the archive are refused, links and devices are told as such, hidden
files are left out, and no read takes more memory than a limit.
"""
import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from timm_stn._progress import progress
from timm_stn.data.archives.streams import BLOCK, Blocks, Forward
from timm_stn.data.archives.wrong import WrongSource, printable, quoted

__all__ = ['LARGEST', 'Member', 'members']

LARGEST = 2 ** 26  # bytes of a file that is read at once; the largest image of the three sets has less than 1 MB
METHODS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # of others, zipfile unpacks a block without a limit
FAULTS = (  # what Python's readers raise of damaged archives, and of those that ask for a password
    EOFError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError, struct.error, tarfile.TarError,
    zipfile.BadZipFile, zlib.error)


class Member(NamedTuple):
    """A file of an archive: its name, with parts separated by /, and what the archive says of its size in bytes."""
    source: Path
    name: str
    size: int
    is_file: bool  # and no link, device, or the like
    open: Callable[[], IO[bytes] | io.RawIOBase]

    @property
    def said(self) -> str:
        """Where it is, for a message."""
        return f'{str(self.source)!r}: {quoted(self.name)}'

    def read(self, most: int = LARGEST) -> bytes:
        """All of it.

        Raises:
            WrongSource: It has more than `most` bytes, or other than it says; or the archive is damaged.
        """
        return b''.join(self.blocks(most))

    def blocks(self, most: int) -> Iterator[bytes]:
        """Its contents, block by block. Raises what `read` raises."""
        self.check_size(most)
        left = self.size
        with _faults(self.source), self.open() as file:
            while block := file.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                yield block
        if left:
            raise WrongSource(f'{self.said} has other than the {self.size:,} bytes it should')

    def check_size(self, most: int) -> None:
        """Raises WrongSource of what has more than `most` bytes, by what the archive says, or is no file."""
        if not self.is_file:
            raise WrongSource(f'{self.said} is a link or a device, and must be a file')
        if self.size > most:
            raise WrongSource(f'{self.said} would have {self.size:,} bytes, and {most:,} is the '
                              'most that is accepted')


def members(source: Path, doing: str) -> Iterator[Member]:
    """All files of a source but hidden ones, in its order. Each is to be read before the next one is asked for.

    Args:
        source: A tar, tar.gz or zip, whatever its name; or a folder, of which all files below it.
        doing: What the progress bar says, as 'checking'.

    Raises:
        WrongSource: There is no such file; it is of no known kind, damaged, or ends early; a name leads out of it.
    """
    with _faults(source):
        if source.is_dir():
            found = _of_folder(source, doing)
        elif _begins_with(source, b'PK'):
            found = _of_zip(source, doing)
        else:
            found = _of_tar(source, doing)
        for member in found:
            if not any(part.startswith('.') for part in member.name.split('/')):
                yield member


@contextmanager
def _faults(source: Path) -> Iterator[None]:
    """Errors of Python's readers become a WrongSource."""
    try:
        yield
    except WrongSource:
        raise
    except FileNotFoundError as error:
        raise WrongSource(f'{str(source)!r}: no such file') from error
    except EOFError as error:
        raise WrongSource(f'{str(source)!r}: it ends early: was the download cut off?') from error
    except FAULTS as error:
        if reason := getattr(error, 'strerror', None):
            raise WrongSource(f'{str(source)!r}: it cannot be read: {reason}') from error
        reason = printable(str(error)) or type(error).__name__
        raise WrongSource(f'{str(source)!r}: damaged, or no tar or zip archive ({reason})') from error


def _begins_with(source: Path, magic: bytes) -> bool:
    with source.open('rb') as file:
        return file.read(len(magic)) == magic


def _within(source: Path, name: str) -> str:
    """A name without `./`, if it stays in the archive."""
    parts = PurePosixPath(name).parts
    if name.startswith('/') or '..' in parts or '\\' in name or re.match('[A-Za-z]:', name):
        raise WrongSource(f'{str(source)!r}: refused, for the name {quoted(name)} in it is no path within a folder')
    return '/'.join(parts)


def _of_folder(source: Path, doing: str) -> Iterator[Member]:
    def fail(error: OSError) -> None:
        raise error

    walk = os.walk(source, onerror=fail)
    paths = sorted(Path(folder, name) for folder, _, names in walk for name in names)
    for path in progress(paths, f'{doing} {source.name}', unit='file'):
        if path.is_file():
            name = path.relative_to(source).as_posix()
            yield Member(source, name, path.stat().st_size, True, partial(io.FileIO, path))


def _of_zip(source: Path, doing: str) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in progress(archive.infolist(), f'{doing} {source.name}', unit='file'):
            if info.compress_type not in METHODS:
                raise WrongSource(f'{str(source)!r}: {quoted(info.filename)} is packed by method '
                                  f'{info.compress_type} of zips; takes 0 (stored) and 8 (deflated)')
            if not info.is_dir():
                is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                yield Member(source, _within(source, info.filename), info.file_size, is_file,
                             partial(archive.open, info))


def _of_tar(source: Path, doing: str) -> Iterator[Member]:
    with source.open('rb') as file:
        total = -(-os.fstat(file.fileno()).st_size // BLOCK)
        blocks = progress(iter(lambda: file.read(BLOCK), b''), f'{doing} {source.name}', total, unit='MB')
        raw = io.BufferedReader(Blocks(iter(blocks)))
        unpacked: IO[bytes] = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b'\x1f\x8b' else raw  # type: ignore
        forward = Forward(source, unpacked)
        with tarfile.open(fileobj=forward, mode='r:') as tar:  # type: ignore[call-overload]
            while (info := forward.header(tar.next)) is not None:
                if not info.isdir():
                    is_file = info.isreg() and not info.issparse()
                    yield Member(source, _within(source, info.name), info.size, is_file,
                                 partial(tar.extractfile, info))  # type: ignore[arg-type]
                tar.members.clear()  # else tarfile keeps hundreds of thousands
                tar.pax_headers.clear()  # and what is said of all files, which is nothing to us
        while forward.read(BLOCK):  # to its end, where gzip's checksum is
            pass
