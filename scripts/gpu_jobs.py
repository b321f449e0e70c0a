"""Runs the jobs of scripts/gpu_queue.py, side by side, until the time is over, and keeps their results and records."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gpu_files
from gpu_queue import Job, queue
from records import Line, key, read, replace

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path('model_cards', 'results.jsonl')
LEARNING = Path('docs', 'learning.jsonl')
LAST = 12.0  # seconds that are left for the copy at the end
TINY = 20.0  # seconds that a job of a rehearsal may take
SMALL = 2 ** 20  # bytes
MPS = 'nvidia-cuda-mps-control'
PATHS = ('data', 'output', 'download', 'data_dir', 'pretrained_path', 'resume')  # arguments that do not matter
ENVIRONMENT, PID, LOG = 'environment.jsonl', 'pid', 'log.txt'  # beside what a job makes


class Clock:
    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    def left(self) -> float:
        return self.end - time.monotonic()


class Places:
    """Where jobs are made, and where their records are."""

    def __init__(self, pack: Path, root: Path, smoke: bool = False) -> None:
        self.runs = pack / ('rehearsal' if smoke else 'runs')  # what is not collected yet
        self.finished = pack / 'finished'
        self.root, self.smoke = root, smoke

    def waiting(self, only: str = '*') -> list[Job]:
        """Jobs that have no result yet, here or in the record; of a rehearsal only its own results count."""
        recorded = {line['name'] for line in read(self.root / RECORD) if not self.smoke}
        places = (self.runs,) if self.smoke else (self.runs, self.finished)
        return [job for job in queue() if job.name not in recorded and fnmatch(job.name, only)
                and not any((place / job.name / job.result).is_file() for place in places)]

    def worth_keeping(self) -> list[tuple[str, Path]]:
        """What comes back: first what is small, of all jobs, then weights, then checkpoints, in the order of jobs."""
        found: list[tuple[int, str, Path]] = []
        for job in queue():
            done = (self.runs / job.name / job.result).is_file()
            names = {*job.keeps, job.result, ENVIRONMENT} | (set() if done else {job.checkpoint, LOG})
            for name in sorted(names):
                path = self.runs / job.name / name
                if path.is_file():
                    found.append((0 if path.stat().st_size < SMALL else 1 if done else 2, f'{job.name}/{name}', path))
        return [file[1:] for file in sorted(found, key=lambda file: file[0])]

    def learned(self) -> list[Line]:
        """The record of learning, and what jobs have added; what is recorded stays."""
        places = (self.runs / 'learning', self.finished / 'learning', self.root / LEARNING.parent)
        found = [line for place in places for line in read(place / LEARNING.name)]
        return list({key(line): line for line in found}.values())

    def put_aside(self) -> None:
        """Finished jobs, which need not travel any more."""
        for job in queue():
            folder = self.finished / job.name
            if (self.runs / job.name / job.result).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.runs / job.name, folder)

    def record(self) -> list[Job]:
        """Put finished jobs aside, and write down their results, each once. Returns those that are new."""
        self.put_aside()
        recorded = read(self.root / RECORD)
        new = [job for job in queue() if (self.finished / job.name / job.result).is_file()
               and job.name not in {line['name'] for line in recorded}]
        lines = [self.line(job, self.finished / job.name) for job in new if job.result.endswith('.json')]
        replace(self.root / RECORD, [*recorded, *lines])
        replace(self.root / LEARNING, self.learned())
        return new

    def line(self, job: Job, folder: Path) -> Line:
        line = json.loads((folder / job.result).read_text())
        line['args'] = {k: v for k, v in line['args'].items() if k not in PATHS}
        *earlier, last = read(folder / ENVIRONMENT) or [{}]
        return dict(name=job.name, **line, environment=last, **({'begun_with': earlier} if earlier else {}))


class Queue:
    """Jobs, as many side by side as there are cores, until the time is over."""

    def __init__(self, places: Places, jobs: Iterable[Job], output: Path, env: dict[str, str], clock: Clock,
                 paths: dict[str, Path], device: str, smoke: bool, cores: int | None) -> None:
        self.places, self.todo, self.output, self.env, self.clock = places, list(jobs), output, env, clock
        self.paths, self.device, self.smoke = paths, device, smoke
        self.cores = cores or max(1, (os.cpu_count() or 1) - 1)
        self.running: dict[str, tuple[Job, subprocess.Popen]] = {}
        self.failed: list[str] = []
        self.environment = json.loads((output / 'environment.json').read_text())

    def run(self) -> int:
        seconds = sum(self.seconds(job) * min(job.cores, self.cores) for job in self.todo) / self.cores
        print(f'{len(self.todo)} jobs, about {seconds:.0f} s on {self.cores} cores by the estimates of gpu_queue.py, '
              f'{self.clock.left():.0f} s left', flush=True)
        copied = time.monotonic()
        try:
            while (self.todo or self.running) and self.clock.left() > LAST:
                self.reap()
                self.begin()
                if not self.running:
                    break
                time.sleep(0.2)
                if time.monotonic() - copied > 20:
                    self.copy()
                    copied = time.monotonic()
        finally:
            for name in self.running:
                print(f'{name} was cut off', flush=True)
            kill([process for _, process in self.running.values()])
            left_out = self.copy()
        if left_out:
            print('too large to come back:', *left_out)
        return int(bool(self.failed))

    def seconds(self, job: Job) -> float:
        return TINY if self.smoke else job.seconds

    def begin(self) -> None:
        """Start what fits, on the cores and in the time that are left."""
        for job in list(self.todo):
            free = self.cores - sum(min(j.cores, self.cores) for j, _ in self.running.values())
            if min(job.cores, self.cores) <= free and (job.partly or self.seconds(job) < self.clock.left() - LAST):
                self.start(job)
                self.todo.remove(job)

    def start(self, job: Job) -> None:
        folder = self.places.runs / job.name
        folder.mkdir(parents=True, exist_ok=True)
        words: dict[str, Any] = dict(self.paths, run=folder, parent=folder.parent, device=self.device,
                                     left=int(max(1, self.clock.left() - LAST - 15)))
        script, *args = (word.format(**words) if '{' in word else word for word in job.command)
        command = ['bash' if script.endswith('.sh') else sys.executable, str(ROOT / 'scripts' / script), *args]
        seen = read(folder / ENVIRONMENT)
        if self.environment not in seen[-1:]:
            replace(folder / ENVIRONMENT, [*seen, self.environment])
        with (folder / LOG).open('a') as log:
            process = subprocess.Popen([*command, *(job.smoke if self.smoke else ())], cwd=ROOT, env=self.env,
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        (folder / PID).write_text(f'{process.pid} {started(process.pid)}')
        self.running[job.name] = job, process
        print(f'{job.name} started, {self.clock.left():.0f} s left', flush=True)

    def reap(self) -> None:
        for name, (job, process) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            folder = self.places.runs / name
            said = (folder / LOG).read_text().splitlines()
            if process.returncode:
                self.failed.append(name)
                print(f'{name} failed:', *said[-15:], sep='\n', flush=True)
            elif job.partly and self.clock.left() > LAST + 20:  # it ended before its time did
                (folder / job.result).touch()
            print(f'{name} ended, {self.clock.left():.0f} s left', *said[-1:], flush=True)

    def copy(self) -> list[str]:
        """What jobs have made so far, to the folder that comes back; names of what has no room there."""
        return gpu_files.write(self.output, self.places.worth_keeping())


# processes


def kill(processes: Iterable[subprocess.Popen]) -> None:
    """Processes, and those that they have started: asked first, all together, and made to after three seconds."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        signal_group(process.pid, signal.SIGTERM)
    stop = time.monotonic() + 3
    while time.monotonic() < stop and any(process.poll() is None for process in left):
        time.sleep(0.05)
    for process in left:
        signal_group(process.pid, signal.SIGKILL)  # its children may be there without it
        process.wait()


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def started(pid: int) -> str:
    """When a process was started, which tells it from a later one of the same number; empty where Linux is not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    except OSError:
        return ''


def end_leftovers(runs: Path) -> None:
    """End jobs that go on since the run that had started them was killed: two in one folder would spoil each other."""
    for file in runs.rglob(PID):
        pid, _, since = file.read_text().partition(' ')
        if since and started(int(pid)) == since:
            print(f'{file.parent.name}: process {pid} of an earlier run is ended', flush=True)
            signal_group(int(pid), signal.SIGKILL)


@contextmanager
def shared_gpu(env: dict[str, str], folder: Path) -> Iterator[None]:
    """NVIDIA's service that lets kernels of several processes run side by side, where it is and does not run yet."""
    mine = {f'CUDA_MPS_{name}_DIRECTORY': str(folder / f'mps-{name}') for name in ('PIPE', 'LOG')}
    if mine.keys() & env.keys() or not shutil.which(MPS):
        yield
        return
    for path in mine.values():
        Path(path).mkdir()
    started_here = subprocess.run([MPS, '-d'], env=env | mine).returncode == 0
    env.update(mine if started_here else {})
    try:
        yield
    finally:
        if started_here:
            subprocess.run([MPS], input='quit', text=True, env=env, timeout=10)
