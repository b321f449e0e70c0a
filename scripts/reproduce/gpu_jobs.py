"""Runs the jobs of gpu_queue.py side by side within a time budget, and keeps their results and records."""
import fcntl
import json
import math
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
from checkout import ROOT
from gpu_queue import Job, queue
from records import Line, key, read, replace

RECORD = Path('model_cards', 'results.jsonl')
LEARNING = Path('docs', 'learning.jsonl')
LAST = 12.0  # seconds that are left for the copy at the end
TINY = 20.0  # seconds that a job of a rehearsal may take
SMALL = 2 ** 20  # bytes
MPS = 'nvidia-cuda-mps-control'
PATHS = ('data', 'output', 'download', 'data_dir', 'pretrained_path', 'resume', 'weights')  # do not matter
MALLOC = {  # of glibc: memory is kept between steps, which halves the time of convolutions on a CPU
    'MALLOC_MMAP_THRESHOLD_': str(2 ** 33), 'MALLOC_TRIM_THRESHOLD_': str(2 ** 34), 'MALLOC_TOP_PAD_': str(2 ** 28)}
ENVIRONMENT, LOG, PID = 'environment.jsonl', 'log.txt', '.pid'  # beside what a job makes; of a process


class Clock:
    def __init__(self, budget: float = math.inf) -> None:
        self.end = time.monotonic() + budget

    def left(self) -> float:
        return self.end - time.monotonic()

    def __str__(self) -> str:
        left = self.left()
        return f'{left:.0f} s left' if left < math.inf else time.strftime('%H:%M:%S')


class Places:
    """The folders of the jobs and of their records.

    Args:
        pack: Holds the folders of the jobs.
        root: Holds model_cards/ and docs/, with the records.
        smoke: The jobs are rehearsals.
        jobs: All that there are. Default: the queue.
    """

    def __init__(self, pack: Path, root: Path, smoke: bool = False, jobs: list[Job] | None = None) -> None:
        self.jobs = queue() if jobs is None else jobs
        self.runs = pack / ('rehearsal' if smoke else 'runs')  # what is not collected yet
        self.finished = pack / 'finished'
        self.running = pack / '.running' / self.runs.name  # of this machine: it does not travel
        self.root, self.smoke = root, smoke

    def waiting(self, only: str = '*') -> list[Job]:
        """Jobs without a result, here or in the record; a rehearsal counts only its own results."""
        recorded = {line['name'] for line in read(self.root / RECORD) if not self.smoke}
        places = (self.runs,) if self.smoke else (self.runs, self.finished)
        return [job for job in self.jobs if job.name not in recorded and fnmatch(job.name, only)
                and not any((place / job.name / job.result).is_file() for place in places)]

    def worth_keeping(self) -> list[tuple[str, Path]]:
        """The files to return: small files of all jobs, then weights, then checkpoints, in the order of jobs."""
        found = [file for job in self.jobs for file in self.files_of(job)]
        return [file[1:] for file in sorted(found, key=lambda file: file[0])]

    def files_of(self, job: Job) -> Iterator[tuple[int, str, Path]]:
        """The files of a job that travel: in which turn, their names, their paths."""
        done = (self.runs / job.name / job.result).is_file()
        names = {*job.keeps, job.result, ENVIRONMENT} | (set() if done else {LOG})
        if not done and job.returns:
            names.add(job.checkpoint)
        for name in sorted(names):
            path = self.runs / job.name / name
            with suppress(FileNotFoundError):
                rank = 0 if path.stat().st_size < SMALL else 1 if done else 2
                yield rank, f'{job.name}/{name}', path

    def learned(self) -> list[Line]:
        """The record of learning with the lines of jobs; recorded lines take precedence."""
        found: dict[Any, Line] = {}
        for place in (self.root / LEARNING.parent, self.finished / 'learning', self.runs / 'learning'):
            for line in read(place / LEARNING.name):
                found.setdefault(key(line), line)
        return list(found.values())

    def put_aside(self, recorded: bool = False) -> None:
        """Move finished jobs aside, because they need not be copied any more; optionally only recorded ones."""
        names = {line['name'] for line in read(self.root / RECORD)}
        for job in self.jobs:
            here, there = self.runs / job.name, self.finished / job.name
            done = (there / job.result).is_file()
            if not here.is_dir() or not (done or whole(here / job.result)) or (recorded and job.name not in names):
                continue
            if done:  # what is there stays
                shutil.copytree(here, there, dirs_exist_ok=True, copy_function=copy_new)
                shutil.rmtree(here)
            else:
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(there, ignore_errors=True)
                shutil.move(here, there)
            if here.parent != self.runs and not any(here.parent.iterdir()):
                here.parent.rmdir()

    def begun(self) -> list[Job]:
        """Interrupted jobs, which resume from their checkpoint."""
        return [job for job in self.waiting() if (self.runs / job.name / job.checkpoint).is_file()]

    def to_go_on(self) -> dict[Job, list[tuple[str, Path]]]:
        """What interrupted jobs need to go on elsewhere, unless their checkpoints are too large to travel."""
        return {job: [file[1:] for file in self.files_of(job)] for job in self.begun() if job.returns}

    def record(self) -> dict[Job, list[str]]:
        """Move finished jobs aside and record their new results, each once."""
        self.put_aside()
        with alone_with(self.root / RECORD):
            return self._record()

    def record_learning(self) -> None:
        replace(self.root / LEARNING, self.learned())

    def _record(self) -> dict[Job, list[str]]:
        recorded = read(self.root / RECORD)
        new = [job for job in self.jobs if job.result.endswith('.json')
               and (self.finished / job.name / job.result).is_file()
               and job.name not in {line['name'] for line in recorded}]
        replace(self.root / RECORD, [*recorded, *(self.line(job, self.finished / job.name) for job in new)])
        return {job: [name for name in job.keeps if not (self.finished / job.name / name).is_file()] for job in new}

    def line(self, job: Job, folder: Path) -> Line:
        line = json.loads((folder / job.result).read_text())
        line['args'] = {k: v for k, v in line['args'].items() if k not in PATHS}
        *earlier, last = read(folder / ENVIRONMENT) or [{}]
        return dict(name=job.name, **line, environment=last, **({'begun_with': earlier} if earlier else {}))


def whole(result: Path) -> bool:
    """Whether there is a valid result; an invalid one is deleted, and its job runs again."""
    if not result.is_file():
        return False
    try:
        json.loads(result.read_text() or ('null' if result.suffix != '.json' else ''))
    except ValueError as error:
        print(f'{result} is broken, and deleted: {error}')
        result.unlink()
    return result.is_file()


def copy_new(source: str, target: str) -> None:
    if not os.path.exists(target):
        shutil.copy2(source, target)


class Queue:
    """Run jobs side by side, as many as there are cores, until the time is over."""

    def __init__(self, places: Places, jobs: Iterable[Job], output: Path | None, env: dict[str, str], clock: Clock,
                 paths: dict[str, Path], device: str, cores: int | None, environment: Line) -> None:
        self.places, self.todo, self.output, self.env, self.clock = places, list(jobs), output, env, clock
        self.paths, self.device, self.environment = paths, device, environment
        self.cores = cores or max(1, (os.cpu_count() or 1) - 1)
        self.running: dict[str, tuple[Job, subprocess.Popen]] = {}
        self.failed: set[str] = set()

    def run(self) -> int:
        seconds = sum(self.seconds(job) * min(job.cores, self.cores) for job in self.todo) / self.cores
        of_h100 = f'{seconds:.0f} s on cores: {self.cores}, by the estimates of gpu_queue.py'
        print(f'jobs: {len(self.todo)}, {of_h100 if self.device != "cpu" else "their logs are in their folders"}; '
              f'{self.clock}', flush=True)
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
            on_signals(signal.SIG_IGN)
            for name in self.running:
                print(f'{name} was cut off; it goes on from its last checkpoint', flush=True)
            kill([process for _, process in self.running.values()])
            left_out = self.copy()
        if self.todo:
            least = min(self.seconds(job) for job in self.todo)
            print(f'not started, for the shortest takes {least:.0f} s, and {LAST:.0f} s are kept to copy results:',
                  *(job.name for job in self.todo[:10]), *(['...'] if self.todo[10:] else []))
        if left_out:
            print('no room to come back:', *left_out)
        return int(bool(self.failed))

    def seconds(self, job: Job) -> float:
        return TINY if self.places.smoke else job.seconds

    def begin(self) -> None:
        """Start the jobs that fit the free cores and the remaining time."""
        for job in list(self.todo):
            free = self.cores - sum(min(j.cores, self.cores) for j, _ in self.running.values())
            if min(job.cores, self.cores) <= free and (job.partly or self.seconds(job) < self.clock.left() - LAST):
                self.start(job)
                self.todo.remove(job)

    def start(self, job: Job) -> None:
        folder = self.places.runs / job.name
        folder.mkdir(parents=True, exist_ok=True)
        words: dict[str, Any] = dict(
            self.paths, run=folder, parent=folder.parent, device=self.device, workers=workers(),
            left=int(min(max(1, self.clock.left() - LAST - 15), 10 ** 9)))
        command = command_of(job, words)
        seen = read(folder / ENVIRONMENT) if (folder / job.checkpoint).is_file() else []
        if self.environment not in seen[-1:]:
            replace(folder / ENVIRONMENT, [*seen, self.environment])
        with (folder / LOG).open('a') as log:
            process = subprocess.Popen([*command, *(job.smoke if self.places.smoke else ())], cwd=ROOT, env=self.env,
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        remember(process, self.places.running)
        self.running[job.name] = job, process
        print(f'{job.name} started, {self.clock}', flush=True)

    def reap(self) -> None:
        for name, (job, process) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            folder = self.places.runs / name
            if process.returncode:
                how = f'with status {process.returncode}' if process.returncode > 0 else 'for it was killed'
                said = (folder / LOG).read_text(errors='replace').splitlines()
                print(f'{name} failed, {how}:', *said[-15:], sep='\n', flush=True)
                if name not in self.failed:  # once more, in the end: on a device that is shared, one fault hits others
                    self.todo.append(job)
                self.failed.add(name)
                continue
            self.failed.discard(name)
            if job.partly and self.clock.left() > LAST + 20:  # it ended before its time did
                (folder / job.result).touch()
            print(f'{name} ended, {self.clock}', told(folder / job.result), flush=True)

    def copy(self) -> list[str]:
        """Write the files of jobs to the returned folder, if there is one; returns the names of files without room."""
        return [] if self.output is None else gpu_files.write(self.output, self.places.worth_keeping())


def command_of(job: Job, words: dict[str, Any]) -> list[str]:
    """What runs a job, of the words of gpu_queue.py: {run}, {device}, and its data."""
    script, *args = (word.format(**words) if '{' in word else word for word in job.command)
    return ['bash' if script.endswith('.sh') else sys.executable, str(ROOT / 'scripts' / script), *args]


def workers() -> int:
    """Number of loader processes of a job; 0 without enough shared memory."""
    shared = Path('/dev/shm')
    return 2 if shared.is_dir() and shutil.disk_usage(shared).free > 2 ** 30 else 0


def told(result: Path) -> str:
    """The figures of a result."""
    if not result.is_file() or not result.stat().st_size:
        return ''
    found = json.loads(result.read_text())
    keys = ('mean_accuracy',) if 'mean_accuracy' in found else ('test_error', 'top1', 'top5')
    return ', '.join(f'{key} {found[key]:.2f} %' for key in keys if key in found)


# processes


@contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """Wait until no other process that asks for the same is at work on a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def alone(running: Path) -> Iterator[None]:
    """Allow one run at a time, because two would disturb each other; ends leftover processes of an earlier one."""
    running.mkdir(parents=True, exist_ok=True)
    with (running / 'lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f'Another run is at work in {running.parents[1]}: wait for its end.') from None
        end_leftovers(running)
        yield


def kill(processes: Iterable[subprocess.Popen]) -> None:
    """End processes and their children: SIGTERM to all, SIGKILL after three seconds."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        signal_group(process.pid, signal.SIGTERM)
    stop = time.monotonic() + 3
    while time.monotonic() < stop and any(process.poll() is None for process in left):
        time.sleep(0.05)
    for process in left:
        signal_group(process.pid, signal.SIGKILL)  # its children may be there without it
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)


def on_signals(handler: Any) -> None:
    """Set the handler of SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def started(pid: int) -> str:
    """Start time of a process, to tell it from a later one with the same id; empty if not on Linux."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    except OSError:
        return ''


def remember(process: subprocess.Popen, running: Path) -> None:
    """Record a process for `end_leftovers`."""
    (running / f'{process.pid}{PID}').write_text(started(process.pid))


def end_leftovers(running: Path) -> None:
    """End processes that are left from a killed run."""
    for file in running.glob(f'*{PID}'):
        pid, since = int(file.name.removesuffix(PID)), file.read_text()
        if since and started(pid) == since:
            print(f'process {pid} of an earlier run is ended', flush=True)
            signal_group(pid, signal.SIGKILL)
        file.unlink()


@contextmanager
def shared_gpu(env: dict[str, str], folder: Path) -> Iterator[None]:
    """Start NVIDIA's multi-process service, if it is installed and not running."""
    mine = {f'CUDA_MPS_{name}_DIRECTORY': str(folder / f'mps-{name}') for name in ('PIPE', 'LOG')}
    if mine.keys() & env.keys() or not shutil.which(MPS):
        yield
        return
    for path in mine.values():
        Path(path).mkdir()
    serving = subprocess.run([MPS, '-d'], env=env | mine).returncode == 0
    if serving and works(env | mine):
        env.update(mine)
    elif serving:
        print(f'{MPS} runs, but torch does not work with it: jobs share the device without', flush=True)
    try:
        yield
    finally:
        if serving:
            with suppress(subprocess.TimeoutExpired):
                subprocess.run([MPS], input='quit\n', text=True, env=env | mine, timeout=10)


def works(env: dict[str, str]) -> bool:
    code = "import torch; torch.zeros(1, device='cuda').item()"
    try:
        return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, timeout=40).returncode == 0
    except subprocess.TimeoutExpired:
        return False
