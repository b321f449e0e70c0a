#!/usr/bin/env python
"""Everything that needs a GPU, in one command, on a machine that may be bare and offline, until its time is used up.

    python scripts/gpu.py pack --data DIR --weights FILE --scripts DIR    # .gpu/: a folder a part; says what it weighs
    python scripts/gpu.py run --budget 540 --output OUT                   # there: environment, checks, speed, the queue
    python scripts/gpu.py collect OUT                                     # back here: what came back, where it belongs

DIR of the data has `mnist/`, `gtsrb32/` and `cub200-2010/` as scripts/measure_learning.py wants them; FILE is the
ImageNet checkpoint of tf_efficientnet_lite0; DIR of the scripts is a checkout of pytorch-image-models. `--parts` names
those that are made anew; `run` does what it can with those that are there, and says which jobs wait for others.

What a job makes is in `.gpu/runs/NAME`; `run` copies it to OUT again and again, so that a machine that is taken away
loses little. A job that was cut off goes on from there when it is carried to the next machine. `collect` puts finished
ones aside, in `.gpu/finished/NAME`, their results in model_cards/results.jsonl, figures in docs/gpu/DEVICE/.
"""
import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gpu_files
import gpu_pack
from gpu_jobs import LAST, LEARNING, ROOT, Clock, Places, Queue, end_leftovers, kill, shared_gpu
from gpu_queue import Job, queue
from records import replace

SECTIONS = ('checks', 'speed', 'queue')
CHECKS = ('tests/test_gpu.py', 'tests/test_train_mnist.py')
MOST_CHECKS, MOST_SPEED = 150.0, 80.0  # seconds


def pack(args: argparse.Namespace) -> None:
    args.places.put_aside()
    gpu_pack.pack(gpu_pack.Sources(args.data, args.weights, args.scripts), args.pack, args.parts)
    replace(args.places.runs / 'learning' / LEARNING.name, args.places.learned())  # not to be run again
    print(gpu_pack.report(args.pack, args.root, args.places.waiting(args.only), args.places.runs))


def run(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what has to be done at the end
    clock, output = Clock(args.budget), args.output
    output.mkdir(parents=True, exist_ok=True)
    end_leftovers(args.places.runs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for wheel in (args.pack / 'base').glob('*.whl'):
            zipfile.ZipFile(wheel).extractall(folder / 'packages')
        paths = [str(ROOT), str(folder / 'packages'), os.environ.get('PYTHONPATH', '')]
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in paths if p), PYTHONUNBUFFERED='1',
                   OMP_NUM_THREADS='1', PYTHON=sys.executable)
        if (args.pack / 'timm-scripts').is_dir():
            env['TIMM_SCRIPTS'] = str(args.pack / 'timm-scripts')
        failed = environment(args, output, env)
        if failed:
            return failed
        if 'checks' in args.sections:
            failed |= checks(args, output, env, clock)
        if 'speed' in args.sections:
            failed |= speed(args, output, env, clock)
        if 'queue' in args.sections:
            failed |= work(args, output, env, clock, folder)
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
        print(done.stderr, f'{sys.executable} needs torch and more, and {args.pack}/base timm: see docs/gpu.md.')
        return 1
    found = dict(json.loads(done.stdout), smoke=args.smoke, processor=platform.processor() or platform.machine(),
                 cores=os.cpu_count())
    if (args.pack / 'base' / 'revision').is_file():
        found['revision'] = (args.pack / 'base' / 'revision').read_text().strip()
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=driver_version,memory.total', '--format=csv,noheader']
        found['driver'] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    (output / 'environment.json').write_text(json.dumps(found, indent=2) + '\n')
    print(json.dumps(found), flush=True)
    if args.device == 'cuda' and found['device'] == 'cpu':
        print('--device cuda, but torch sees no GPU.')
        return 1
    return 0


def checks(args: argparse.Namespace, output: Path, env: dict[str, str], clock: Clock) -> int:
    select = ['-k', 'identity'] if args.smoke else []
    spread = ['-n', '4'] if importlib.util.find_spec('xdist') and not args.smoke else []
    command = ['-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', '--durations=8', *spread, *select, *CHECKS]
    return section('checks', command, output / 'checks.txt', env, min(MOST_CHECKS, clock.left() - LAST))


def speed(args: argparse.Namespace, output: Path, env: dict[str, str], clock: Clock) -> int:
    most, record = min(MOST_SPEED, clock.left() - LAST), folder_of(args, output) / 'speed.json'
    command = ['scripts/benchmark.py', '--device', args.device, '--output', str(output / 'speed.json'),
               '--budget', str(8 if args.smoke else max(1, most - 20)), *(['--smoke'] if args.smoke else []),
               *(['--after', str(record)] if record.is_file() else [])]
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
            code = 'stopped, for its time was over'
        finally:
            kill([process])
    print(f'--- {name}: {code} after {time.monotonic() - start:.0f} s')
    print('\n'.join(log.read_text().splitlines()[-40:]), flush=True)
    return int(code != 0)


def work(args: argparse.Namespace, output: Path, env: dict[str, str], clock: Clock, folder: Path) -> int:
    """The queue: jobs for which everything is there; in a rehearsal the first of each kind, on tiny data."""
    jobs, place = args.places.waiting(args.only), args.pack
    if args.smoke:
        firsts = {job.kind: job for job in reversed(queue()) if fnmatch(job.name, args.only)}
        jobs, place = [job for job in jobs if job in firsts.values()], folder / 'tiny'
        parts = dict.fromkeys(part for job in jobs for part in job.parts)
        if jobs:
            tiny = [sys.executable, str(ROOT / 'scripts' / 'gpu_tiny.py'), str(place), *parts]
            subprocess.run(tiny, env=env, check=True)
    there = gpu_pack.present(place)
    print(*gpu_pack.lacking(jobs, there), sep='\n', flush=True)
    ready: list[Job] = [job for job in jobs if {*job.parts} <= there]
    paths = gpu_pack.unpack(place, folder, ready)
    with shared_gpu(env, folder) if args.device == 'cuda' else nullcontext():
        return Queue(args.places, ready, output, env, clock, paths, args.device, args.smoke, args.cores).run()


def collect(args: argparse.Namespace) -> None:
    found, target = json.loads((args.folder / 'environment.json').read_text()), folder_of(args, args.folder)
    if found.get('smoke') and args.root == ROOT:
        raise SystemExit(f'{args.folder} is of a rehearsal (--smoke), which is no record; '
                         '--root DIR collects it elsewhere.')
    for name in gpu_files.read(args.folder, args.places.runs):
        print(f'{name} came back in part, and is not used')
    target.mkdir(parents=True, exist_ok=True)
    for path in (*args.folder.glob('environment.json'), *args.folder.glob('checks.txt')):
        shutil.copyfile(path, target / path.name)
    if (args.folder / 'speed.json').is_file():
        keep_measured(args.folder / 'speed.json', target / 'speed.json', found.get('revision'))
    for job in args.places.record():
        print(f'{job.name}: {args.places.finished / job.name}')
    jobs = args.places.waiting(args.only)
    print(f'{len(jobs)} jobs left to run:', *(job.name for job in jobs[:10]), *(['...'] if jobs[10:] else []))


def folder_of(args: argparse.Namespace, output: Path) -> Path:
    """Where the records are of the device that this is of."""
    device = json.loads((output / 'environment.json').read_text())['device']
    return args.root / 'docs' / 'gpu' / re.sub(r'\W+', '-', device.lower())


def keep_measured(new: Path, old: Path, revision: str | None) -> None:
    """A record of speed in place of another of the same device; cases that it did not reach stay as they were."""
    report = json.loads(new.read_text())
    before = json.loads(old.read_text()) if old.is_file() else {'results': []}
    earlier = {r['case']: {'revision': before['revision'], **r} for r in before['results'] if 'ms' in r}
    report['revision'] = revision or report['revision']
    report['results'] = [earlier.get(r['case'], r) if 'skipped' in r else r for r in report['results']]
    beside = old.with_suffix('.tmp')
    beside.write_text(json.dumps(report, indent=1) + '\n')
    os.replace(beside, old)


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
    add('--data', type=Path, metavar='DIR')
    add('--weights', type=Path, metavar='FILE')
    add('--scripts', type=Path, metavar='DIR', default=os.environ.get('TIMM_SCRIPTS'), help='default: TIMM_SCRIPTS')
    add('--parts', nargs='+', default=[*gpu_pack.PARTS], choices=[*gpu_pack.PARTS], metavar='PART',
        help=f'to make anew, of {", ".join(gpu_pack.PARTS)} (default: all)')
    add = command('run', run)
    add('--budget', type=float, default=540.0, metavar='SECONDS')
    add('--output', type=Path, required=True, metavar='OUT')
    add('--device', default='cuda', choices=('cuda', 'cpu'))
    add('--sections', nargs='+', default=SECTIONS, choices=SECTIONS)
    add('--cores', type=int, help='that jobs share; default: all but one')
    add('--smoke', action='store_true', help='tiny sizes: does it run?')
    add = command('collect', collect)
    add('folder', type=Path, metavar='OUT')
    args = parser.parse_args()
    args.pack, args.root = args.pack.resolve(), args.root.resolve()
    args.places = Places(args.pack, args.root, getattr(args, 'smoke', False))
    return args.do(args) or 0


if __name__ == '__main__':
    sys.exit(main())
