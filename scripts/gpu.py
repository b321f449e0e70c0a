#!/usr/bin/env python
"""Everything that needs a GPU, in one command, on a machine that may be bare and offline, until its time is used up.

    python scripts/gpu.py pack --data DIR --weights FILE     # .gpu/: data, weights, wheels; says what it weighs
    python scripts/gpu.py run --budget 540 --output OUT      # there: environment, checks, speed, then the queue
    python scripts/gpu.py collect OUT                        # back here: what came back, where it belongs

DIR has `mnist/`, `gtsrb32/` and `cub200-2010/` as scripts/measure_learning.py wants them; FILE is the ImageNet
checkpoint of tf_efficientnet_lite0. Of the tars, only the images that a job opens are packed; the others of
their classes are there by name alone, for images are chosen by their number. The weights travel in half precision.

What a job made is in `.gpu/runs/NAME`; `run` copies it to OUT again and again, in files of at most 15 MiB, so that a
machine that is taken away loses little. A job that was cut off goes on from there when it is packed and run again.
"""
import argparse
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import Any

from gpu_queue import Job, queue
from records import Line, key, read, replace

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path('model_cards', 'results.jsonl')
LEARNING = Path('docs', 'learning.jsonl')
SECTIONS = ('checks', 'speed', 'queue')
CHECKS = ('tests/test_gpu.py', 'tests/test_train_mnist.py')
MOST_CHECKS, MOST_SPEED = 150.0, 80.0  # seconds
LAST = 12.0  # seconds that are left for the copy at the end
MOST = 15 * 2 ** 20  # bytes of a file that comes back
CHECKPOINT = 'checkpoint.pt'
MPS = 'nvidia-cuda-mps-control'
PATHS = ('data', 'output', 'download')  # arguments of a job that say nothing of its result


# pack


def pack(args: argparse.Namespace) -> None:
    import measure_learning  # here, for the other commands do without torch
    import timm
    data = Path(args.data)
    for folder in ('data', 'weights', 'wheels'):
        shutil.rmtree(args.pack / folder, ignore_errors=True)
        (args.pack / folder).mkdir(parents=True)
    shutil.copytree(data / 'mnist', args.pack / 'data' / 'mnist', copy_function=shutil.copyfile)
    (args.pack / 'data' / 'mnist').chmod(0o755)
    chosen: dict[Path, set[str]] = {}
    for choose in (measure_learning.choice_of_signs, measure_learning.choice_of_birds):
        for path, classes in (*choose(str(data), False), *choose(str(data), True)):
            chosen.setdefault(path, set()).update(name for names in classes for name in names)
    for path, names in chosen.items():
        thin(path, args.pack / 'data' / path.relative_to(data), names)
    halve(Path(args.weights), args.pack / 'weights' / 'lite0.safetensors')
    subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', str(args.pack / 'wheels'),
                    f'timm=={timm.__version__}'], check=True)
    replace(args.runs / 'learning' / LEARNING.name, learned(args))  # not to be run again
    revision = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    (args.pack / 'revision').write_text(revision.stdout)
    for path in sorted(p for p in args.pack.rglob('*') if p.is_file()):
        print(f'{path.stat().st_size / 2 ** 20:8.2f} MiB  {path.relative_to(args.pack)}')
    print(f'{size(args.pack) / 2 ** 20:8.2f} MiB in all; {len(waiting(args))} jobs left to run')


def thin(source: Path, target: Path, names: set[str]) -> None:
    """A tar with those members, and the others of their classes, empty, and of each other class one, empty."""
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = {Path(name).parent for name in names}
    with tarfile.open(source) as old, tarfile.open(target, 'w:gz') as new:
        seen = set()
        for member in old:
            folder = Path(member.name).parent
            if member.isfile() and (folder in wanted or folder not in seen):
                seen.add(folder)
                content = old.extractfile(member).read() if member.name in names else b''  # type: ignore[union-attr]
                found = tarfile.TarInfo(member.name)
                found.size = len(content)
                new.addfile(found, BytesIO(content))


def halve(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    save_file({k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(source).items()}, target)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


# run


class Clock:
    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    def left(self) -> float:
        return self.end - time.monotonic()


def run(args: argparse.Namespace) -> int:
    clock = Clock(args.budget)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages:
        for wheel in (args.pack / 'wheels').glob('*.whl'):
            zipfile.ZipFile(wheel).extractall(packages)
        paths = [str(ROOT), packages, os.environ.get('PYTHONPATH', '')]
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in paths if p), PYTHONUNBUFFERED='1',
                   OMP_NUM_THREADS='1')
        failed = environment(args, output, env)
        if failed:
            return failed
        if 'checks' in args.sections:
            failed |= checks(args, output, env, clock)
        if 'speed' in args.sections:
            failed |= speed(args, output, env, clock)
        if 'queue' in args.sections:
            data = tiny(Path(packages)) if args.smoke else args.pack / 'data'
            with shared_gpu(env, Path(packages)) if args.device == 'cuda' else nullcontext():
                failed |= Queue(args, output, env, clock, data).run()
    print(f'{clock.left():.0f} s left; in {output}: {" ".join(sorted(p.name for p in output.iterdir()))}', flush=True)
    return failed


def environment(args: argparse.Namespace, output: Path, env: dict[str, str]) -> int:
    """What the figures were made with."""
    code = '''import json, sys, timm, timm_stn, torch
cuda = torch.cuda.is_available()
print(json.dumps(dict(
    device=torch.cuda.get_device_name() if cuda else "cpu", cuda=torch.version.cuda, torch=torch.__version__,
    timm=timm.__version__, timm_stn=timm_stn.__version__, python=sys.version.split()[0])))'''
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, f'{sys.executable} needs torch and more, and {args.pack} timm: see docs/gpu.md.')
        return 1
    found = dict(json.loads(done.stdout), smoke=args.smoke, processor=platform.processor() or platform.machine(),
                 cores=os.cpu_count())
    if (args.pack / 'revision').is_file():
        found['revision'] = (args.pack / 'revision').read_text().strip()
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=driver_version,memory.total', '--format=csv,noheader']
        found['driver'] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    (output / 'environment.json').write_text(json.dumps(found, indent=2) + '\n')
    print(json.dumps(found), flush=True)
    if args.device == 'cuda' and found['device'] == 'cpu':
        print('--device cuda, but torch sees no GPU.')
        return 1
    return 0


def tiny(folder: Path) -> Path:
    """Random digits in the files of MNIST."""
    for split, count in (('train', 256), ('t10k', 100)):
        for kind, shape in (('images-idx3', (count, 28, 28)), ('labels-idx1', (count,))):
            most = 255 if len(shape) == 3 else 9
            content = bytes(i * 37 % (most + 1) for i in range(math.prod(shape)))
            head = struct.pack(f'>I{len(shape)}I', 2048 + len(shape), *shape)
            (folder / f'{split}-{kind}-ubyte').write_bytes(head + content)
    return folder


def checks(args: argparse.Namespace, output: Path, env: dict[str, str], clock: Clock) -> int:
    select = ['-k', 'identity'] if args.smoke else []
    spread = ['-n', '4'] if importlib.util.find_spec('xdist') and not args.smoke else []
    command = ['-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', '--durations=8', *spread, *select, *CHECKS]
    return section('checks', command, output / 'checks.txt', env, min(MOST_CHECKS, clock.left() - LAST))


def speed(args: argparse.Namespace, output: Path, env: dict[str, str], clock: Clock) -> int:
    most = min(MOST_SPEED, clock.left() - LAST)
    command = ['scripts/benchmark_gpu.py', '--device', args.device, '--output', str(output / 'speed.json'),
               '--budget', str(8 if args.smoke else max(1, most - 25)), *(['--smoke'] if args.smoke else [])]
    return section('speed', command, output / 'speed.txt', env, most)


def section(name: str, command: list[str], log: Path, env: dict[str, str], seconds: float) -> int:
    """Runs a command to its end, or to the end of its time; its last lines are shown."""
    start = time.monotonic()
    with log.open('w') as file:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            code: int | str = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            kill(process)
            code = 'stopped, for its time was over'
    print(f'--- {name}: {code} after {time.monotonic() - start:.0f} s')
    print('\n'.join(log.read_text().splitlines()[-40:]), flush=True)
    return int(code != 0)


def kill(process: subprocess.Popen) -> None:
    """A process, and those it has started."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(3)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def shared_gpu(env: dict[str, str], folder: Path) -> Iterator[None]:
    """NVIDIA's service that lets kernels of several processes run side by side, where it is and does not run yet."""
    mine = {f'CUDA_MPS_{name}_DIRECTORY': str(folder / f'mps-{name}') for name in ('PIPE', 'LOG')}
    if mine.keys() & env.keys() or not shutil.which(MPS):
        yield
        return
    for path in mine.values():
        Path(path).mkdir()
    started = subprocess.run([MPS, '-d'], env=env | mine).returncode == 0
    env.update(mine if started else {})
    try:
        yield
    finally:
        if started:
            subprocess.run([MPS], input='quit', text=True, env=env, timeout=10)


class Queue:
    """Jobs, as many side by side as there are cores, until the time is over."""

    def __init__(
            self, args: argparse.Namespace, output: Path, env: dict[str, str], clock: Clock, data: Path) -> None:
        self.args, self.output, self.env, self.clock, self.data = args, output, env, clock, data
        self.cores = args.cores or max(1, (os.cpu_count() or 1) - 1)
        self.running: dict[str, tuple[Job, subprocess.Popen]] = {}
        self.failed: list[str] = []

    def run(self) -> int:
        todo, copied = waiting(self.args), time.monotonic()
        while (todo or self.running) and self.clock.left() > LAST:
            self.reap()
            for job in list(todo):
                free = self.cores - sum(min(j.cores, self.cores) for j, _ in self.running.values())
                if min(job.cores, self.cores) <= free and (job.partly or job.seconds < self.clock.left() - LAST):
                    self.start(job)
                    todo.remove(job)
            if not self.running and all(job.seconds >= self.clock.left() - LAST for job in todo):
                break
            time.sleep(0.2)
            if time.monotonic() - copied > 20:
                self.copy()
                copied = time.monotonic()
        for name, (_, process) in self.running.items():
            print(f'{name} was cut off', flush=True)
            kill(process)
        self.copy()
        return int(bool(self.failed))

    def start(self, job: Job) -> None:
        folder = self.args.runs / job.name
        folder.mkdir(parents=True, exist_ok=True)
        fill = dict(data=self.data, weights=self.args.pack / 'weights' / 'lite0.safetensors', run=folder,
                    device=self.args.device, left=int(max(1, self.clock.left() - LAST - 15)))
        words = [word.format(**fill) if word.startswith('{') else word for word in job.command]
        words += job.smoke if self.args.smoke else []
        command = [sys.executable, str(ROOT / 'scripts' / words[0]), *words[1:]]
        with (folder / 'log.txt').open('a') as log:
            process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT,
                                       start_new_session=True)
        self.running[job.name] = job, process
        print(f'{job.name} started, {self.clock.left():.0f} s left', flush=True)

    def reap(self) -> None:
        for name, (job, process) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            folder = self.args.runs / name
            if process.returncode:
                self.failed.append(name)
                print(f'{name} failed:', *(folder / 'log.txt').read_text().splitlines()[-15:], sep='\n', flush=True)
            elif job.partly and self.clock.left() > LAST + 20:  # it ended before its time did
                (folder / job.result).touch()
            last = (folder / 'log.txt').read_text().splitlines()[-1:]
            print(f'{name} ended, {self.clock.left():.0f} s left', *last, flush=True)

    def copy(self) -> None:
        """What jobs have made so far, to OUT, in as many files as it takes."""
        parts: list[list[Path]] = [[]]
        weight = 0
        for path in worth_keeping(self.args):
            if parts[-1] and weight + path.stat().st_size > MOST:
                parts.append([])
                weight = 0
            parts[-1].append(path)
            weight += path.stat().st_size
        for number, part in enumerate(parts):
            beside = self.output / f'.runs-{number}.tar'
            with tarfile.open(beside, 'w') as tar:
                for path in part:
                    tar.add(path, path.relative_to(self.args.runs))
            os.replace(beside, self.output / f'runs-{number}.tar')


def worth_keeping(args: argparse.Namespace) -> Iterator[Path]:
    """What comes back of each job that has begun: of those without a result the checkpoint, and what they have said."""
    for job in queue():
        folder = args.runs / job.name
        done = (folder / job.result).is_file()
        names = [*job.keeps, job.result] if done else [*job.keeps, CHECKPOINT, 'log.txt']
        yield from (folder / name for name in dict.fromkeys(names) if (folder / name).is_file())


def waiting(args: argparse.Namespace) -> list[Job]:
    """Jobs that have no result yet, here or in the record."""
    recorded = {line['name'] for line in read(args.root / RECORD)}
    return [job for job in queue() if job.name not in recorded and fnmatch(job.name, args.only)
            and not (args.runs / job.name / job.result).is_file()]


# collect


def collect(args: argparse.Namespace) -> None:
    folder, runs, target = Path(args.folder), args.runs, args.root / 'docs' / 'gpu'
    environment = json.loads((folder / 'environment.json').read_text())
    if environment.get('smoke') and args.root == ROOT:
        raise SystemExit(f'{folder} is of a rehearsal (--smoke), which is no record; --root DIR collects it elsewhere.')
    runs.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob('runs-*.tar')):
        with tarfile.open(path) as tar:
            tar.extractall(runs, filter='data')
    for path in sorted(folder.glob('*.json')) + sorted(folder.glob('checks.txt')):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    recorded = read(args.root / RECORD)
    for job in queue():
        result = runs / job.name / 'result.json'
        if result.is_file() and job.name not in {line['name'] for line in recorded}:
            line = json.loads(result.read_text())
            line['args'] = {k: v for k, v in line['args'].items() if k not in PATHS}
            recorded.append(dict(name=job.name, **line, environment=environment))
    replace(args.root / RECORD, recorded)
    replace(args.root / LEARNING, learned(args))
    names = [job.name for job in waiting(args)]
    print(f'{len(names)} jobs left to run:', *names[:10], *(['...'] if names[10:] else []))


def learned(args: argparse.Namespace) -> list[Line]:
    """The record of learning, and what jobs have added; what is recorded stays."""
    found = [*read(args.runs / 'learning' / LEARNING.name), *read(args.root / LEARNING)]
    return list({key(line): line for line in found}.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name: str, do: Callable[..., Any]) -> Any:
        made = commands.add_parser(name)
        made.set_defaults(do=do)
        made.add_argument('--pack', type=Path, default=ROOT / '.gpu', metavar='DIR', help='default: .gpu')
        made.add_argument('--root', type=Path, default=ROOT, metavar='DIR', help='of the records (default: checkout)')
        made.add_argument('--only', default='*', metavar='PATTERN', help='of the names of jobs')
        return made.add_argument

    add = command('pack', pack)
    add('--data', required=True, metavar='DIR')
    add('--weights', required=True, metavar='FILE')
    add = command('run', run)
    add('--budget', type=float, default=540.0, metavar='SECONDS')
    add('--output', required=True, metavar='OUT')
    add('--device', default='cuda', choices=('cuda', 'cpu'))
    add('--sections', nargs='+', default=SECTIONS, choices=SECTIONS)
    add('--cores', type=int, help='that jobs share; default: all but one')
    add('--smoke', action='store_true', help='tiny sizes: does it run?')
    add = command('collect', collect)
    add('folder', metavar='OUT')
    args = parser.parse_args()
    args.pack, args.root = args.pack.resolve(), args.root.resolve()
    args.runs = args.pack / ('rehearsal' if getattr(args, 'smoke', False) else 'runs')
    return args.do(args) or 0


if __name__ == '__main__':
    sys.exit(main())
