"""Packs files into a few small tars, with large files split, for a machine that takes or returns only these."""
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Container, Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from checkout import write_text

MOST, COUNT = 15 * 2 ** 20, 4  # bytes of a tar, and how many there are
EDGE = 4096  # bytes that a member may take beside its own, and a tar beside its members
PIECE = re.compile(r'(?P<name>.+)\.piece-(?P<index>\d+)-of-(?P<count>\d+)-(?P<digest>[0-9a-f]{16})')


class Bin:
    """A tar to be written."""

    def __init__(self, most: int) -> None:
        self.members: list[tuple[str, bytes, float]] = []
        self.room = most - 4 * EDGE

    def add(self, name: str, content: bytes, time: float) -> None:
        self.members.append((name, content, time))
        self.room -= len(content) + EDGE

    def packed(self) -> bytes:
        file = BytesIO()
        with tarfile.open(fileobj=file, mode='w') as tar:
            for member in self.members:
                add(tar, *member)
        return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes, time: float = 0) -> None:
    """Add a member that is not a file on disk."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), time
    tar.addfile(member, BytesIO(content))


def write(
        target: Path, files: Iterable[tuple[str, Path]], most: int = MOST, count: int = COUNT, first: int = 0,
) -> list[str]:
    """Write named files in order to `runs-N.tar` in a folder, N from `first`; returns the names without room."""
    bins, left_out = [Bin(most) for _ in range(count)], []
    for name, path in files:
        try:
            content, time = path.read_bytes(), path.stat().st_mtime
        except FileNotFoundError:  # a job is about to replace it
            continue
        whole = next((b for b in bins if len(content) + EDGE <= b.room), None)
        if whole:
            whole.add(name, content, time)
            continue
        roomy = [b for b in bins if b.room > 2 * EDGE]
        if len(content) > sum(b.room - EDGE for b in roomy):
            left_out.append(name)
            continue
        pieces, begin = [], 0
        for b in roomy:
            pieces.append((b, content[begin:begin + b.room - EDGE]))
            begin += len(pieces[-1][1])
        pieces = [(b, piece) for b, piece in pieces if piece]
        digest = hashlib.sha256(content).hexdigest()[:16]
        for index, (b, piece) in enumerate(pieces):
            b.add(f'{name}.piece-{index}-of-{len(pieces)}-{digest}', piece, time)
    put({target / f'runs-{number}.tar': b.packed() if b.members else b'' for number, b in enumerate(bins, first)})
    return left_out


def put(contents: dict[Path, bytes]) -> None:
    """Replace files as nearly at once as it goes, for several have pieces of one; delete those without content."""
    beside: dict[Path, Path] = {}
    try:
        for place, content in contents.items():
            if content and (not place.is_file() or place.read_bytes() != content):
                beside[place] = place.with_name(f'.{place.name}.tmp')
                beside[place].write_bytes(content)
        for place, new in beside.items():
            os.replace(new, place)
        for place in (place for place, content in contents.items() if not content):
            place.unlink(missing_ok=True)
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)


def read(
        source: Path, target: Path, lines: str = '', folders: Container[str] | None = None, tell_older: bool = True,
) -> list[str]:
    """Extract the files of `write`, unless there are newer ones; reports incomplete files, and older ones if asked.

    To files of the name `lines` what they lack is added, a line each. With `folders`, only files of these are taken.
    """
    target.mkdir(parents=True, exist_ok=True)
    told = []
    with tempfile.TemporaryDirectory(dir=target, prefix='.collect-') as folder:
        beside = Path(folder)
        for path in sorted(source.glob('runs-*.tar')):
            try:
                extract(path, beside)
            except tarfile.TarError as error:
                told.append(f'{path.name} is broken off, what follows is missing: {error}')
        told += [f'{name} came in part, and is not used' for name in join(beside)
                 if folders is None or str(name.parent) in folders]
        for path in sorted(p for p in beside.rglob('*') if p.is_file()):
            name = path.relative_to(beside)
            if folders is not None and str(name.parent) not in folders:
                continue
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_file() and path.name == lines:
                add_lines(place, path)
            elif not place.is_file() or place.stat().st_mtime <= path.stat().st_mtime:
                os.replace(path, place)
            elif tell_older and place.read_bytes() != path.read_bytes():
                told.append(f'{name} is older than the one that is here, and is not used')
    return told


def add_lines(old: Path, new: Path) -> None:
    """Append missing lines to a file; incomplete last lines are dropped."""
    found = [line for path in (old, new) for line in path.read_text().rpartition('\n')[0].splitlines()]
    write_text(old, ''.join(f'{line}\n' for line in dict.fromkeys(found)))


def extract(path: Path, target: Path) -> None:
    """Extract a tar, but nothing over what is newer; if it is cut off, the incomplete member is deleted."""
    with tarfile.open(path) as tar:
        for member in tar:
            if is_newer(target / member.name, member.mtime):  # from another tar
                continue
            try:
                tar.extract(member, target, filter='data')
            except tarfile.TarError:
                (target / member.name).unlink(missing_ok=True)
                raise


def is_newer(path: Path, time: float) -> bool:
    return path.is_file() and path.stat().st_mtime > time


class Whole(NamedTuple):
    name: Path
    count: int
    digest: str


def join(folder: Path) -> list[Path]:
    """Join pieces to files, to the newest where there are several; files of which none is whole are named."""
    found: dict[Whole, dict[int, Path]] = {}
    for path in folder.rglob('*'):
        if path.is_file() and (match := PIECE.fullmatch(path.name)):
            whole = Whole(path.with_name(match['name']), int(match['count']), match['digest'])
            found.setdefault(whole, {})[int(match['index'])] = path
    broken = []
    for whole, pieces in found.items():
        content = b''.join(path.read_bytes() for _, path in sorted(pieces.items()))
        if len(pieces) != whole.count or not hashlib.sha256(content).hexdigest().startswith(whole.digest):
            broken.append(whole.name)
        elif not is_newer(whole.name, pieces[0].stat().st_mtime):
            whole.name.write_bytes(content)
            shutil.copystat(pieces[0], whole.name)
        for path in pieces.values():
            path.unlink()
    return [name.relative_to(folder) for name in broken if not name.is_file()]
