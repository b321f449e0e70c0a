"""SVHN's full numbers (format 1): folders `train`, `test` and `extra`, as `timm_stn.data.svhn` reads them."""
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from timm_stn.data.archives.homes import HOMES, STRUCT, Home, reread, scan
from timm_stn.data.archives.members import Member, members
from timm_stn.data.archives.pictures import open_picture
from timm_stn.data.archives.unpacking import Job, Plan, Unpacked, check_place, keep, tidy, unpack
from timm_stn.data.archives.wrong import WrongSource, quoted
from timm_stn.data.svhn import image_names
from timm_stn.whole_file import write_whole

__all__ = ['unpack_svhn']

HOME = HOMES['svhn']
COUNTS = {'train': 33_402, 'test': 13_068, 'extra': 202_353}
TABLE = 'digitStruct.mat'


def unpack_svhn(
        sources: Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        subset: bool = False,
) -> list[Unpacked]:
    """Folders `train`, `test` and `extra` in `out`, of those splits whose archives are given, one after another.

    With h5py, the names in `digitStruct.mat` are compared with the images; without, these must be `1.png`, `2.png`, ...

    Args:
        sources: `train.tar.gz`, `test.tar.gz`, `extra.tar.gz`, in any order; or a folder where some are unpacked.
        out: The folder, which is made, and may hold other splits.
        subset: Parts of splits will do, too.

    Raises:
        WrongSource: A source is damaged, not whole, or another data set; lists and images do not agree.
        InTheWay: `out` holds something else of these names, or has no room.
        OSError: It cannot be written.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        for split in _splits(source):
            if split in found:
                raise WrongSource(f'{str(source)!r}: {split} is in {str(found[split])!r}, too')
            found[split] = source
    jobs = {split: Job(Path(out), f'svhn-{split}', (split,), {split: COUNTS[split]}) for split in found}
    for job in jobs.values():
        check_place(job)
    return [unpack(jobs[split], partial(_plan, found[split], split), subset) for split in found]


def _splits(source: Path) -> list[str]:
    """Those of a folder; or the one of an archive, by its first file."""
    if source.is_dir():
        return [split for split in COUNTS if (source / split / TABLE).is_file()] or [next(iter(COUNTS))]
    for member in members(source, 'checking'):
        if match := HOME.images.fullmatch(member.name):
            return [match[1].split('/')[0]]
    scan([source], HOME)  # says what it is
    return []


def _plan(source: Path, split: str) -> Plan:
    where, home = repr(str(source)), HOME
    if source.is_dir():
        home = HOME._replace(images=re.compile(rf'({split}/(?:\d+\.png|digitStruct\.mat))'))
    sizes = scan([source], home).sizes
    if other := sorted(path for path in sizes if not path.startswith(f'{split}/')):
        raise WrongSource(f'{where}: it holds files of two splits, {split} and {other[0].split("/")[0]}')
    if f'{split}/{TABLE}' not in sizes:
        raise WrongSource(f'{where}: there is no {split}/{TABLE}')
    return Plan(where, {split: len(sizes) - 1}, sum(sizes.values()), partial(_write, source, home, set(sizes), split))


def _write(source: Path, home: Home, paths: set[str], split: str, part: Path) -> None:
    for path, member in reread([source], home, paths):
        if path.endswith(TABLE):
            write_whole(part / path, partial(_write_blocks, member))
        else:
            content = member.read()
            open_picture(member, content)
            keep(part / path, content)
    tidy(part / split, {path.split('/')[1] for path in paths})
    _check_names(source, part / split)


def _write_blocks(member: Member, path: Path) -> None:
    with path.open('wb') as file:
        file.writelines(member.blocks(STRUCT))


def _check_names(source: Path, folder: Path) -> None:
    images = {path.name for path in folder.glob('*.png')}
    named = {f'{i + 1}.png' for i in range(len(images))}
    if importlib.util.find_spec('h5py'):
        try:
            names = image_names(folder / TABLE)
        except ValueError as error:
            raise WrongSource(f'{str(source)!r}: {folder.name}/{TABLE} is not that of SVHN, or damaged') from error
        named = set(names)
        if len(named) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise WrongSource(f'{str(source)!r}: {folder.name}/{TABLE} names {quoted(twice)} twice')
    if odd := sorted(images ^ named):
        raise WrongSource(f'{str(source)!r}: {TABLE} and the images differ: {quoted(odd[0])} is '
                          f'{"no image of its list" if odd[0] in images else "missing"} ({len(odd):,} such)')
