"""Runs the jobs of gpu_queue.py, side by side, until the time is over, and keeps their results and records."""
import fcntl
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
from checkout import ROOT
from gpu_queue import Job, queue
from records import Line, key, read, replace

RECORD = Path('model_cards', 'results.jsonl')
LEARNING = Path('docs', 'learning.jsonl')
LAST = 12.0  # seconds that are left for the copy at the end
TINY = 20.0  # seconds that a job of a rehearsal may take
SMALL = 2 ** 20  # bytes
MPS = 'nvidia-cuda-mps-control'
PATHS = ('data', 'output', 'download', 'data_dir', 'pretrained_path', 'resume')  # arguments that do not matter
ENVIRONMENT, LOG, PID = 'environment.jsonl', 'log.txt', '.pid'  # beside what a job makes; of a process


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
        self.running = pack / '.running' / self.runs.name  # of this machine: it does not travel
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
                with suppress(FileNotFoundError):
                    rank = 0 if path.stat().st_size < SMALL else 1 if done else 2
                    found.append((rank, f'{job.name}/{name}', path))
        return [file[1:] for file in sorted(found, key=lambda file: file[0])]

    def learned(self) -> list[Line]:
        """The record of learning, and what jobs have added; what is recorded stays."""
        found: dict[Any, Line] = {}
        for place in (self.root / LEARNING.parent, self.finished / 'learning', self.runs / 'learning'):
            for line in read(place / LEARNING.name):
                found.setdefault(key(line), line)
        return list(found.values())

    def put_aside(self, recorded: bool = False) -> None:
        """Finished jobs, which need not travel any more; or those alone that have been recorded."""
        names = {line['name'] for line in read(self.root / RECORD)}
        for job in queue():
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
        """Jobs that were cut off, and go on from their checkpoint."""
        return [job for job in self.waiting() if (self.runs / job.name / job.checkpoint).is_file()]

    def record(self) -> dict[Job, list[str]]:
        """Put finished jobs aside, and write down their results, each once: those that are new, and what they lack."""
        replace(self.root / LEARNING, self.learned())
        self.put_aside()
        recorded = read(self.root / RECORD)
        new = [job for job in queue() if job.result.endswith('.json')
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
    """That there is a result, which is then good JSON; one that is not goes, and its job is run again."""
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
    """Jobs, as many side by side as there are cores, until the time is over."""

    def __init__(self, places: Places, jobs: Iterable[Job], output: Path, env: dict[str, str], clock: Clock,
                 paths: dict[str, Path], device: str, cores: int | None, environment: Line) -> None:
        self.places, self.todo, self.output, self.env, self.clock = places, list(jobs), output, env, clock
        self.paths, self.device, self.environment = paths, device, environment
        self.cores = cores or max(1, (os.cpu_count() or 1) - 1)
        self.running: dict[str, tuple[Job, subprocess.Popen]] = {}
        self.failed: set[str] = set()

    def run(self) -> int:
        seconds = sum(self.seconds(job) * min(job.cores, self.cores) for job in self.todo) / self.cores
        print(f'jobs: {len(self.todo)}, {seconds:.0f} s on cores: {self.cores}, by the estimates of gpu_queue.py; '
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
            on_signals(signal.SIG_IGN)
            for name in self.running:
                print(f'{name} was cut off', flush=True)
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
        """Start what fits, on the cores and in the time that are left."""
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
            left=int(max(1, self.clock.left() - LAST - 15)))
        script, *args = (word.format(**words) if '{' in word else word for word in job.command)
        command = ['bash' if script.endswith('.sh') else sys.executable, str(ROOT / 'scripts' / script), *args]
        seen = read(folder / ENVIRONMENT) if (folder / job.checkpoint).is_file() else []
        if self.environment not in seen[-1:]:
            replace(folder / ENVIRONMENT, [*seen, self.environment])
        with (folder / LOG).open('a') as log:
            process = subprocess.Popen([*command, *(job.smoke if self.places.smoke else ())], cwd=ROOT, env=self.env,
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        remember(process, self.places.running)
        self.running[job.name] = job, process
        print(f'{job.name} started, {self.clock.left():.0f} s left', flush=True)

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
            print(f'{name} ended, {self.clock.left():.0f} s left', told(folder / job.result), flush=True)

    def copy(self) -> list[str]:
        """What jobs have made so far, to the folder that comes back; names of what has no room there."""
        return gpu_files.write(self.output, self.places.worth_keeping())


def workers() -> int:
    """Processes that load images for a job: none where there is no room for what they share."""
    shared = Path('/dev/shm')
    return 2 if shared.is_dir() and shutil.disk_usage(shared).free > 2 ** 30 else 0


def told(result: Path) -> str:
    """The figures of a result."""
    if not result.is_file() or not result.stat().st_size:
        return ''
    found = json.loads(result.read_text())
    return ', '.join(f'{key} {found[key]:.2f} %' for key in ('test_error', 'top1', 'top5') if key in found)


# processes


@contextmanager
def alone(running: Path) -> Iterator[None]:
    """Two runs of the same jobs would spoil each other: there is one at a time, and what another left is ended."""
    running.mkdir(parents=True, exist_ok=True)
    with (running / 'lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f'Another run is at work in {running.parents[1]}: wait for its end.') from None
        end_leftovers(running)
        yield


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
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)


def on_signals(handler: Any) -> None:
    """What becomes of a wish that this process ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def started(pid: int) -> str:
    """When a process was started, which tells it from a later one of the same number; empty where Linux is not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    except OSError:
        return ''


def remember(process: subprocess.Popen, running: Path) -> None:
    """For `end_leftovers`."""
    (running / f'{process.pid}{PID}').write_text(started(process.pid))


def end_leftovers(running: Path) -> None:
    """End what goes on since the run that had started it was killed."""
    for file in running.glob(f'*{PID}'):
        pid, since = int(file.name.removesuffix(PID)), file.read_text()
        if since and started(pid) == since:
            print(f'process {pid} of an earlier run is ended', flush=True)
            signal_group(pid, signal.SIGKILL)
        file.unlink()


@contextmanager
def shared_gpu(env: dict[str, str], folder: Path) -> Iterator[None]:
    """NVIDIA's service that lets kernels of several processes run side by side, where it is and does not run yet."""
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
