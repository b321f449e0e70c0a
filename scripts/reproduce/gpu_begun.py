"""What interrupted jobs need to go on elsewhere: `pack` writes it in small tars, `run` reads them there.

All files of a job are in one tar, or in several that have nothing else: it can go on when these are there. Until then
it is not started, because a checkpoint of a new beginning would replace the one that is on its way.
"""
import json
import shutil
from pathlib import Path

import gpu_files
from checkout import write_text
from gpu_files import EDGE, MOST
from gpu_queue import Job

FOLDER = 'begun'
LIST = Path('base', 'begun.json')  # which jobs the tars are of; in the part that every load needs
Files = list[tuple[str, Path]]  # name, and path


def write(folder: Path, jobs: dict[Job, Files], most: int = MOST) -> dict[str, list[str]]:
    """Write the tars of interrupted jobs in place of earlier ones.

    Returns:
        The tars of each job, by its name: paths in the folder.
    """
    beside = folder / f'.{FOLDER}'
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tars: dict[str, list[str]] = {}
    for group in groups(jobs, most):
        first = len([*beside.iterdir()])
        count = 2 + sum(size(jobs[job]) for job in group) // (most - 6 * EDGE)
        gpu_files.write(beside, [file for job in group for file in jobs[job]], most, count, first)
        made = [f'{FOLDER}/runs-{number}.tar' for number in range(first, len([*beside.iterdir()]))]
        tars.update((job.name, made) for job in group)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    beside.rename(folder / FOLDER) if jobs else beside.rmdir()
    if (folder / LIST).parent.is_dir():
        times = {job.name: dict(files)[f'{job.name}/{job.checkpoint}'].stat().st_mtime for job, files in jobs.items()}
        told = {name: {'tars': tars[name], 'time': time} for name, time in times.items()}
        write_text(folder / LIST, json.dumps(told, indent=1) + '\n')
    return tars


def groups(jobs: dict[Job, Files], most: int) -> list[list[Job]]:
    """The jobs of each tar; one that needs several is alone."""
    found: list[list[Job]] = []
    for job, files in jobs.items():
        room = most - 4 * EDGE - size(files)
        group = next((group for group in found if sum(size(jobs[j]) for j in group) <= room), None)
        if group is None:
            found.append(group := [])
        group.append(job)
    return found


def size(files: Files) -> int:
    """Of files in a tar."""
    return sum(path.stat().st_size + EDGE for _, path in files)


def read(folder: Path, runs: Path, jobs: list[Job]) -> tuple[list[str], list[Job]]:
    """Put what the tars hold of these jobs into the folder of runs, where it is not older than what is there.

    Returns:
        What there is to say, and those of the jobs whose checkpoint is still to come.
    """
    told = gpu_files.read(folder / FOLDER, runs, folders={job.name for job in jobs}, tell_older=False)
    listed = json.loads((folder / LIST).read_text()) if (folder / LIST).is_file() else {}
    late = []
    for job in jobs:
        checkpoint, begun = runs / job.name / job.checkpoint, listed.get(job.name)
        if begun is None or (checkpoint.is_file() and checkpoint.stat().st_mtime > begun['time'] - 1):
            continue
        late.append(job)
        missing = [tar for tar in begun['tars'] if not (folder / tar).is_file()] or begun['tars']
        told.append(f'{job.name} has begun elsewhere, and waits for its checkpoint: {" ".join(missing)}')
    return told, late
