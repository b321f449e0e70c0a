"""Results wait in a hidden folder until all of them are whole, and are moved to their places then.

`DIR/.<key>.part` is filled; `whole.json` in it says that nothing is missing any more; then its files and folders move
to `DIR`; then `whole.json` does, as `DIR/.<key>.json`. Whatever stops this, another run goes on from there.
"""
import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from timm_stn.data.archives.lock import take
from timm_stn.data.archives.wrong import WrongSource
from timm_stn.whole_file import write_text, write_whole

__all__ = ['InTheWay', 'Job', 'Plan', 'Unpacked', 'check_place', 'keep', 'tidy', 'unpack', 'write_table']

Counts = dict[str, int]


class InTheWay(ValueError):
    """Results cannot be written where they belong; the message says in one line why."""


class Job(NamedTuple):
    """What is to be made: a set's key, the names of its files and folders in `out`, and the counts of all of it."""
    out: Path
    key: str
    names: tuple[str, ...]
    official: Counts

    @property
    def part(self) -> Path:
        return self.out / f'.{self.key}.part'

    @property
    def whole(self) -> Path:
        return self.part / 'whole.json'

    @property
    def done(self) -> Path:
        return self.out / f'.{self.key}.json'


class Plan(NamedTuple):
    """What sources hold: what to call them, counts, bytes to be written at most, and what writes them into a folder."""
    where: str
    counts: Counts
    size: int
    write: Callable[[Path], None]


class Unpacked(NamedTuple):
    """A set that is there: its folder, names in it, counts, and whether it had been there before."""
    out: Path
    names: tuple[str, ...]
    counts: Counts
    was_there: bool


def check_place(job: Job) -> Counts | None:
    """The counts of results that are whole, at their places or waiting; None if there are none.

    Raises:
        InTheWay: Something else has a result's name.
    """
    if _is_done(job):
        return _counts(job.done)
    there = _there(job)
    waiting = job.whole.is_file()
    strange = [name for name in there if not waiting or (job.part / name).exists()]
    if strange:
        raise InTheWay(f'{str(job.out)!r} has {", ".join(strange)} already, not of a finished run of this command; '
                       f'takes a folder without {", ".join(job.names)}')
    return _counts(job.whole) if waiting else None


def unpack(job: Job, plan: Callable[[], Plan], subset: bool) -> Unpacked:
    """Make the results of a job, or what is missing of them.

    Args:
        job: What to make, and where.
        plan: Reads the sources, where that is needed.
        subset: Other counts than the official ones are right, too.

    Raises:
        WrongSource: A source is not what it must be.
        InTheWay: Something is in the way, or the disk has no room.
        OSError: It cannot be written.
    """
    planned, counts, was_there = None, check_place(job), _is_done(job)
    if counts is None:
        planned = _planned(job, plan, subset)
    if counts is None or job.part.exists():
        with _held(job):
            counts, was_there = check_place(job), _is_done(job)  # others may have been quicker
            if counts is None:
                counts = _write(job, planned or _planned(job, plan, subset))
            _check_part(job, counts, subset)
            _move(job)
    _check_part(job, counts, subset)
    return Unpacked(job.out, job.names, counts, was_there)


def keep(path: Path, content: bytes) -> None:
    """Write a file whole, unless it is there with this content."""
    try:
        is_there = path.stat().st_size == len(content) and path.read_bytes() == content
    except FileNotFoundError:
        is_there = False
    if not is_there:
        write_whole(path, lambda beside: beside.write_bytes(content))


def tidy(folder: Path, wanted: set[str]) -> None:
    """Remove all files of a folder but those of some paths: what a run that was stopped has left of other archives."""
    for path in sorted(folder.rglob('*'), reverse=True):  # files before their folders
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in wanted:
            path.unlink()


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    write_text(path, text.getvalue())


def _there(job: Job) -> list[str]:
    return [name for name in job.names if os.path.lexists(job.out / name)]


def _is_done(job: Job) -> bool:
    return job.done.is_file() and len(_there(job)) == len(job.names)


def _planned(job: Job, plan: Callable[[], Plan], subset: bool) -> Plan:
    planned = plan()
    if not all(planned.counts.values()):
        raise WrongSource(f'{planned.where}: nothing can be made of {_said(planned.counts)}')
    if planned.counts != job.official and not subset:
        raise WrongSource(f'{planned.where}: the set has {_said(job.official)}, and this has '
                          f'{_said(planned.counts)} (with --subset, a part is accepted)')
    return planned


def _check_part(job: Job, counts: Counts, subset: bool) -> None:
    if counts != job.official and not subset:
        raise InTheWay(f'{str(job.out)!r} holds a part of the set, {_said(counts)}, made with --subset; takes that '
                       'option, or another folder')


def _said(counts: Counts) -> str:
    return ', '.join(f'{count:,} {what}' for what, count in counts.items())


def _counts(path: Path) -> Counts:
    try:
        counts: Counts = json.loads(path.read_text())
    except ValueError as error:
        raise InTheWay(f'{str(path)!r} is damaged: remove it, or take another folder') from error
    return counts


@contextmanager
def _held(job: Job) -> Iterator[None]:
    """One process at a time; what it has written is left where it is stopped, but not of a source that is wrong."""
    job.part.mkdir(parents=True, exist_ok=True)
    place, ended = job.part / 'lock', False
    try:
        with place.open('w') as lock:
            if not take(lock, place):
                raise InTheWay(f'{str(job.out)!r}: another process is writing there')
            try:
                yield
                ended = True
            except WrongSource:
                ended = True
                raise
            finally:
                if ended:
                    tidy(job.part, {place.name})
    finally:
        if ended:
            with suppress(OSError):  # on networks, what was open a moment ago may still be in the way
                place.unlink()
                job.part.rmdir()


def _write(job: Job, plan: Plan) -> Counts:
    there = sum(path.stat().st_size for path in job.part.rglob('*') if path.is_file())
    free = shutil.disk_usage(job.part).free
    if plan.size - there > free:
        raise InTheWay(f'{str(job.out)!r}: about {(plan.size - there) / 1e9:.1f} GB are still to be written, and '
                       f'{free / 1e9:.1f} GB are free')
    plan.write(job.part)
    if hasattr(os, 'sync'):  # what is said to be whole is so after a power cut, too
        os.sync()
    write_text(job.whole, json.dumps(plan.counts) + '\n')
    return plan.counts


def _move(job: Job) -> None:
    """What is in the way of a finished set is of a process that came second."""
    waiting = [name for name in job.names if (job.part / name).exists()]
    if not (waiting and _is_done(job)):
        for name in waiting:
            os.rename(job.part / name, job.out / name)
        if job.whole.exists():
            os.replace(job.whole, job.done)
