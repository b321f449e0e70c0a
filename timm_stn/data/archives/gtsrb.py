"""Traffic signs (GTSRB), from the official zips to the tars and tables that `timm_stn.data.signs` reads.

Images are resized to 32 x 32 pixels without regard to their aspect, with Pillow's BILINEAR, which is antialiased: so
were those that `stn_gtsrb` was trained on. Boxes stay in pixels of the original image.
"""
import csv
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from timm_stn.data.archives.homes import HOMES, Found, reread, scan
from timm_stn.data.archives.members import Member
from timm_stn.data.archives.pictures import open_picture
from timm_stn.data.archives.unpacking import Job, Plan, Unpacked, unpack, write_table
from timm_stn.data.archives.wrong import Fault, WrongSource, named, quoted
from timm_stn.data.signs import CLASSES, COLUMNS, SIDE
from timm_stn.whole_file import write_whole

__all__ = ['unpack_gtsrb']

HOME = HOMES['gtsrb']
COUNTS = {'train': 39_209, 'test': 12_630, 'classes': CLASSES}
NAMES = ('train.tar', 'test.tar', 'train-boxes.csv', 'test-boxes.csv')
TRAIN, TEST = 'Final_Training/Images/', 'Final_Test/Images/'
TRUTH = 'GT-final_test.csv'
THEIRS = ('Filename', 'Width', 'Height', 'Roi.X1', 'Roi.Y1', 'Roi.X2', 'Roi.Y2', 'ClassId')
ENTRY = 1024  # bytes of a PNG's header and padding in a tar, about


class _Sign(NamedTuple):
    """An image, as it will be called, and its row of the table."""
    split: str
    name: str
    size: tuple[int, int]
    row: tuple[int, ...]  # width, height, x1, y1, x2, y2, class


def unpack_gtsrb(
        sources: Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        subset: bool = False,
) -> Unpacked:
    """`train.tar`, `test.tar`, `train-boxes.csv` and `test-boxes.csv` in `out`, as `timm_stn.data.signs` reads them.

    Args:
        sources: The three official zips, or a folder where they are unpacked.
        out: The folder, which is made.
        subset: A part of the set will do, too.

    Raises:
        WrongSource: A source is damaged, not whole, or another data set; lists and images do not agree.
        InTheWay: `out` holds something else of these names, or has no room.
        OSError: It cannot be written.
    """
    job, paths = Job(Path(out), 'gtsrb', NAMES, COUNTS), [Path(source) for source in sources]
    return unpack(job, partial(_plan, paths), subset)


def _plan(sources: list[Path]) -> Plan:
    where = named(sources)
    signs = _signs(scan(sources, HOME), lambda text: WrongSource(f'{where}: {text}'))
    splits = [sign.split for sign in signs.values()]
    counts = {split: splits.count(split) for split in ('train', 'test')}
    counts['classes'] = len({sign.row[-1] for sign in signs.values()})
    size = len(signs) * (3 * SIDE * SIDE + ENTRY)
    return Plan(where, counts, size, lambda part: _write(sources, signs, part))


def _write(sources: list[Path], signs: dict[str, _Sign], part: Path) -> None:
    pictures = {path: _small(signs[path], member) for path, member in reread(sources, HOME, signs)}
    for split in ('train', 'test'):
        own = sorted(path for path in signs if signs[path].split == split)  # tests by number
        write_whole(part / f'{split}.tar', partial(_write_tar, {signs[path].name: pictures[path] for path in own}))
        write_table(part / f'{split}-boxes.csv', COLUMNS, ([signs[path].name, *signs[path].row] for path in own))


def _small(sign: _Sign, member: Member) -> bytes:
    """A PNG of 32 x 32 pixels."""
    image = open_picture(member, member.read(), whole=True)
    if image.size != sign.size:
        raise WrongSource(f'{member.said} has {image.width} x {image.height} pixels, and '
                          f'{sign.size[0]} x {sign.size[1]} in its table')
    small, file = image.convert('RGB').resize((SIDE, SIDE), Image.Resampling.BILINEAR), io.BytesIO()
    small.save(file, 'PNG')
    return file.getvalue()


def _write_tar(files: dict[str, bytes], path: Path) -> None:
    """Always the same bytes for the same files."""
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # of no time, and of nobody
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _signs(found: Found, fault: Fault) -> dict[str, _Sign]:
    """By the path of the image."""
    for what, there in ((f'{TRAIN}00000/', any(path.startswith(TRAIN) for path in found.sizes)),
                        (TEST, any(path.startswith(TEST) for path in found.sizes)), (TRUTH, TRUTH in found.lists)):
        if not there:
            raise fault(f'there is no {what}: of the three archives, one is missing')
    signs: dict[str, _Sign] = {}
    for path in sorted(found.lists):
        try:
            rows = list(_rows(path, found.lists[path], fault))
        except csv.Error as error:
            raise fault(f'{path}: no table ({error})') from error
        for image, sign in rows:
            if image in signs:
                raise fault(f'{path}: {quoted(image)} is there twice')
            signs[image] = sign
    if missing := sorted(signs.keys() - found.sizes.keys()):
        raise fault(f'the tables name {quoted(missing[0])}, and there is no such image ({len(missing):,} are missing)')
    if more := sorted(found.sizes.keys() - signs.keys()):
        raise fault(f'{quoted(more[0])} is in no table ({len(more):,} such)')
    return signs


def _rows(path: str, text: str, fault: Fault) -> Iterator[tuple[str, _Sign]]:
    """The images of a table; those of a training class are all of that class."""
    reader = csv.DictReader(io.StringIO(text), delimiter=';')
    if tuple(reader.fieldnames or ()) != THEIRS:
        raise fault(f'{path}: the columns must be {";".join(THEIRS)}, got {quoted(";".join(reader.fieldnames or ()))}')
    folder = '' if path == TRUTH else path.split('/')[-2]
    for row in reader:
        try:
            width, height, x1, y1, x2, y2, answer = (int(row[column]) for column in THEIRS[1:])
        except (TypeError, ValueError) as error:
            raise fault(f'{path}, line {reader.line_num}: not whole numbers') from error
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and 0 <= answer < CLASSES):
            raise fault(f'{path}, line {reader.line_num}: no box within {width} x {height} pixels, or no class')
        if folder and answer != int(folder):
            raise fault(f'{path}, line {reader.line_num}: class {answer} in the folder of another')
        name = f'{answer:05}/{str(row["Filename"]).removesuffix(".ppm")}.png'
        known = (width, height, x1, y1, x2, y2, answer)
        place = f'{TRAIN}{folder}/' if folder else TEST
        yield place + str(row['Filename']), _Sign('train' if folder else 'test', name, (width, height), known)
