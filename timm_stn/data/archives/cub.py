"""Caltech-UCSD Birds 200-2011: photographs in folders `train` and `test` by the official split, and tables of boxes.

The lists of the archive are `images.txt` (number, path), `train_test_split.txt` (number, 1 of images to train on),
`image_class_labels.txt` (number, class), `classes.txt` (class, folder) and `bounding_boxes.txt` (number, left, top,
width and height in pixels).
"""
import math
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from timm_stn.data.archives.homes import HOMES, Found, reread, scan
from timm_stn.data.archives.pictures import open_picture
from timm_stn.data.archives.unpacking import Job, Plan, Unpacked, keep, tidy, unpack, write_table
from timm_stn.data.archives.wrong import Fault, WrongSource, named, quoted
from timm_stn.data.signs import COLUMNS as SIGN_COLUMNS

__all__ = ['unpack_cub']

HOME = HOMES['cub']
COUNTS = {'train': 5994, 'test': 5794, 'classes': 200}
NAMES = ('train', 'test', 'train-boxes.csv', 'test-boxes.csv')
COLUMNS = SIGN_COLUMNS[:-1]  # but for the class, which the folder tells
NUMBER = re.compile('[0-9]{1,9}')
SPLITS = {'1': 'train', '0': 'test'}

Sources = Sequence[str | os.PathLike[str]]


class _Photograph(NamedTuple):
    split: str
    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def unpack_cub(sources: Sources, out: str | os.PathLike[str], subset: bool = False) -> Unpacked:
    """Photographs as `out/train/<class>/*.jpg` and `out/test/<class>/*.jpg`, unchanged, by the official split.

    `out/train-boxes.csv` and `out/test-boxes.csv` have a line for each: file, width, height, x1, y1, x2, y2, in pixels
    from the left and upper edge; files as `<class>/<file>.jpg`, as `timm_stn.view.boxes.read_boxes` takes them.

    Args:
        sources: `CUB_200_2011.tgz`, or a folder where it is unpacked.
        out: The folder, which is made.
        subset: A part of the set will do, too.

    Raises:
        WrongSource: A source is damaged, not whole, or another data set; lists and images do not agree.
        InTheWay: `out` holds something else of these names, or has no room.
        OSError: It cannot be written.
    """
    job, paths = Job(Path(out), 'cub', NAMES, COUNTS), [Path(source) for source in sources]
    return unpack(job, partial(_plan, paths), subset)


def _plan(sources: list[Path]) -> Plan:
    where = named(sources)
    found = scan(sources, HOME)

    def fault(text: str) -> WrongSource:
        return WrongSource(f'{where}: {text}')

    photographs = _photographs(found, fault)
    classes = {path.split('/')[0] for path in photographs}
    splits = [photograph.split for photograph in photographs.values()]
    counts = {split: splits.count(split) for split in ('train', 'test')} | {'classes': len(classes)}
    return Plan(where, counts, sum(found.sizes.values()), partial(_write, sources, photographs, fault))


def _write(sources: list[Path], photographs: dict[str, _Photograph], fault: Fault, part: Path) -> None:
    sizes = {}
    for path, member in reread(sources, HOME, photographs):
        content = member.read()
        sizes[path] = open_picture(member, content).size
        _check_meets(path, photographs[path].box, sizes[path], fault)
        keep(part / photographs[path].split / path, content)
    for split in ('train', 'test'):
        own = {path: photograph.box for path, photograph in photographs.items() if photograph.split == split}
        tidy(part / split, set(own))
        rows = ([path, *sizes[path], *(f'{side:.10g}' for side in box)] for path, box in own.items())
        write_table(part / f'{split}-boxes.csv', COLUMNS, rows)


def _photographs(found: Found, fault: Fault) -> dict[str, _Photograph]:
    """By path, in the order of `images.txt`."""
    read = partial(_read_list, found, fault)
    paths, folders = read('images.txt', 1), read('classes.txt', 1)
    of_class, of_split, boxes = (
        read(name, columns) for name, columns in (
            ('image_class_labels.txt', 1), ('train_test_split.txt', 1), ('bounding_boxes.txt', 4)))
    for name, other in (('image_class_labels.txt', of_class), ('train_test_split.txt', of_split),
                        ('bounding_boxes.txt', boxes)):
        if odd := paths.keys() ^ other.keys():
            raise fault(f'images.txt and {name} differ: image {min(odd)} is in one of them')
    _check_differ('images.txt', paths, fault)
    _check_differ('classes.txt', folders, fault)
    photographs = {}
    for number, (path,) in paths.items():
        (label,), (split,) = of_class[number], of_split[number]
        if folders.get(label) != [path.split('/')[0]]:
            raise fault(f'image {number}, {quoted(path)}, is of class {quoted(label)} in image_class_labels.txt, '
                        f'and that is {quoted(folders[label][0]) if label in folders else "none"} in classes.txt')
        if split not in SPLITS:
            raise fault(f'train_test_split.txt: image {number} must have 1 (train) or 0 (test), got {quoted(split)}')
        photographs[path] = _Photograph(SPLITS[split], _box(number, boxes[number], fault))
    _check_images(photographs, found.sizes, fault)
    return photographs


def _check_images(photographs: dict[str, _Photograph], sizes: dict[str, int], fault: Fault) -> None:
    if missing := sorted(photographs.keys() - sizes.keys()):
        raise fault(f'images.txt names {quoted(missing[0])}, and there is no such image ({len(missing):,} are missing)')
    if more := sorted(sizes.keys() - photographs.keys()):
        raise fault(f'{quoted(more[0])} is an image, and not in images.txt ({len(more):,} such)')
    train, test = ({path.split('/')[0] for path, photograph in photographs.items() if photograph.split == split}
                   for split in ('train', 'test'))
    if odd := train ^ test:
        raise fault(f'train_test_split.txt: class {quoted(min(odd))} has images of only one of train and test')


def _read_list(found: Found, fault: Fault, name: str, columns: int) -> dict[str, list[str]]:
    """The columns of a list, by its first column."""
    if name not in found.lists:
        raise fault(f'there is no {name}')
    rows: dict[str, list[str]] = {}
    for i, line in enumerate(found.lists[name].splitlines(), start=1):
        key, *row = line.split() or ['']
        if key and (len(row) != columns or not NUMBER.fullmatch(key)):
            raise fault(f'{name}, line {i}: takes a number and {columns} more, got {quoted(line)}')
        if key in rows:
            raise fault(f'{name}, line {i}: {key} is there twice')
        if key:
            rows[key] = row
    return rows


def _check_differ(name: str, rows: dict[str, list[str]], fault: Fault) -> None:
    seen: dict[str, str] = {}
    for key, (value,) in rows.items():
        if value in seen:
            raise fault(f'{name}: {seen[value]} and {key} have one name, {quoted(value)}')
        seen[value] = key


def _box(number: str, row: list[str], fault: Fault) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, row)
    except ValueError:
        x = y = width = height = math.nan
    if not (width > 0 and height > 0 and math.isfinite(x + width) and math.isfinite(y + height)):
        raise fault(f'bounding_boxes.txt: image {number} must have x, y, width and height, got {quoted(" ".join(row))}')
    return x, y, x + width, y + height


def _check_meets(path: str, box: tuple[float, float, float, float], size: tuple[int, int], fault: Fault) -> None:
    """Boxes may reach beyond their images."""
    x1, y1, x2, y2 = box
    if not (x1 < size[0] and y1 < size[1] and x2 > 0 and y2 > 0):
        raise fault(f'bounding_boxes.txt: the box of {quoted(path)}, from {x1:g}, {y1:g} to {x2:g}, {y2:g}, is '
                    f'outside the image of {size[0]} x {size[1]} pixels')
