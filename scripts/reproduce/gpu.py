#!/usr/bin/env python
"""Run all GPU checks, benchmarks and trainings in one command, on a bare, offline machine, within a time budget.

    python scripts/reproduce/gpu.py pack --data DIR --weights FILE --scripts DIR    # .gpu/: one folder per part
    python scripts/reproduce/gpu.py run --budget 540 --output OUT    # on the GPU machine: checks, speed, the queue
    python scripts/reproduce/gpu.py collect OUT                      # back here: adds the results to the records

DIR of the data has `mnist/`, `gtsrb32/` and `cub200-2010/` as in measure_learning.py. FILE is the ImageNet checkpoint
of tf_efficientnet_lite0; with `--weights2 FILE` that of tf_efficientnet_lite2 is packed, too. DIR of the scripts is a
checkout of pytorch-image-models. `--parts` selects the parts to pack again. `run` starts the jobs whose parts are
present, and names the parts that other jobs need.

A job writes to `.gpu/runs/NAME`. `run` copies it to OUT repeatedly, so little is lost if the machine goes away.
`collect` brings it back to `.gpu/runs/`, moves finished jobs to `.gpu/finished/NAME`, adds their results to
model_cards/results.jsonl, and figures to docs/gpu/DEVICE/. What an interrupted job needs to go on is in the tars
of `.gpu/begun/`, which `pack` writes and `run` reads.
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

import gpu_begun
import gpu_files
import gpu_pack
from checkout import ROOT, place_of_folder, write_text
from gpu_jobs import LAST, LEARNING, RECORD, Clock, Places, Queue, alone, kill, on_signals, remember, shared_gpu
from gpu_queue import Job, queue
from records import Line, read, replace

SECTIONS = ('checks', 'speed', 'queue')
CHECKS = ('tests/test_gpu.py', 'tests/geometry/test_fused.py', 'tests/scripts/test_train_task.py',
          'tests/scripts/test_distil.py')
SANITIZED = ('tests/geometry/test_fused.py', '-k', 'values_and_gradients and border')
SANITIZERS = ('memcheck', 'racecheck')
MOST_CHECKS, MOST_SANITIZER, MOST_SPEED = 190.0, 45.0, 80.0  # seconds


def pack(args: argparse.Namespace) -> None:
    args.places.put_aside(recorded=True)
    sources = gpu_pack.Sources(args.data, args.weights, args.scripts, args.weights2)
    parts = args.parts or gpu_pack.usual(sources)
    gpu_pack.pack(sources, args.pack, parts)
    if not args.parts and 'lite2' not in parts:
        print('lite2 is left out, for --weights2 (with make WEIGHTS2=FILE) is not given')
    if (args.pack / 'base').is_dir():
        write_text(args.pack / 'base' / 'revision', describe() or '')  # whichever parts were made
    begun = gpu_begun.write(args.pack, args.places.to_go_on())
    print(gpu_pack.report(args.pack, args.root, args.places.waiting(args.only), begun))


def run(args: argparse.Namespace) -> int:
    on_signals(stop)
    clock = Clock(args.budget)
    if not any(fnmatch(job.name, args.only) for job in queue()):
        raise SystemExit(f'--only {args.only}: no job is named so; these are: '
                         f'{" ".join(f"{kind}-*" for kind in dict.fromkeys(job.kind for job in queue()))}')
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, alone(args.places.running):
        folder = Path(name)
        for wheel in (args.pack / 'base').glob('*.whl'):
            zipfile.ZipFile(wheel).extractall(folder / 'packages')
        paths = [str(ROOT), str(folder / 'packages'), os.environ.get('PYTHONPATH', '')]
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in paths if p), PYTHONUNBUFFERED='1',
                   OMP_NUM_THREADS='1', PYTHON=sys.executable)
        if (args.pack / 'timm-scripts').is_dir():
            env['TIMM_SCRIPTS'] = str(args.pack / 'timm-scripts')
        found = environment(args, env)
        print(json.dumps(found), flush=True)
        begin(args, found)
        failed = 0
        if 'checks' in args.sections:
            failed |= checks(args, found, env, clock)
        if 'speed' in args.sections:
            failed |= speed(args, found, env, clock)
        if 'queue' in args.sections:
            failed |= work(args, found, env, clock, folder)
    names = sorted(path.name for path in args.output.iterdir())
    print(f'{clock.left():.0f} s left; in {args.output}: {" ".join(names)}', flush=True)
    return failed


def stop(number: int, _: Any) -> None:
    """Exit with cleanup, and ignore a second signal: `timeout` sends two."""
    on_signals(signal.SIG_IGN)
    sys.exit(128 + number)


def environment(args: argparse.Namespace, env: dict[str, str]) -> Line:
    """Device and versions behind the figures."""
    code = '''import json, sys, timm, timm_stn, torch
cuda = torch.cuda.is_available()
print(json.dumps(dict(
    device=torch.cuda.get_device_name() if cuda else "cpu", cuda=torch.version.cuda if cuda else None,
    torch=torch.__version__, timm=timm.__version__, timm_stn=timm_stn.__version__, python=sys.version.split()[0])))'''
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{done.stderr}\n{sys.executable} needs torch and more, and {args.pack}/base timm: see '
                         'docs/gpu.md; with make, PYTHON=.venv/bin/python may be the one that has it.')
    found = dict(
        json.loads(done.stdout), smoke=args.smoke, processor=platform.processor() or platform.machine(),
        cores=os.cpu_count(), revision=revision(args.pack) if args.pack else describe(),
        time=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()))
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=driver_version,memory.total', '--format=csv,noheader']
        found['driver'] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    if args.device == 'cuda' and found['device'] == 'cpu':
        raise SystemExit('--device cuda, but torch sees no GPU.')
    return found


def revision(folder: Path) -> str | None:
    """The revision of the checkout: from git, or from the pack if git is missing or files are newer."""
    packed, said = folder / 'base' / 'revision', describe()
    return packed.read_text() if packed.is_file() and (not said or said.endswith('-dirty')) else said


def describe() -> str | None:
    """The revision of the checkout, from git."""
    if not (ROOT / '.git').exists() or not shutil.which('git'):
        return None
    done = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def begin(args: argparse.Namespace, found: Line) -> None:
    """Take over the results of earlier runs in the output folder."""
    file = args.output / 'environment.json'
    if file.is_file() and bool(json.loads(file.read_text()).get('smoke')) != args.smoke:
        kind = 'a real run' if args.smoke else 'a rehearsal (--smoke)'
        raise SystemExit(f'--output {args.output} is of {kind}: name another folder, for what comes back from there '
                         'would be mixed.')
    for said in gpu_files.read(args.output, args.places.runs, LEARNING.name):
        print(f'{args.output}: {said}')
    write_text(file, json.dumps(found, indent=2) + '\n')


def checks(args: argparse.Namespace, found: Line, env: dict[str, str], clock: Clock) -> int:
    select = ['-k', 'identity'] if args.smoke else []
    spread = ['-n', '4'] if importlib.util.find_spec('xdist') and not args.smoke else []
    command = ['-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', '--durations=8', *spread, *select, *CHECKS]
    failed, said = section(args, 'checks', [sys.executable, *command], env, min(MOST_CHECKS, clock.left() - LAST))
    if said:
        more, told = sanitized(args, env, clock)
        failed |= more
        write_text(args.output / 'checks.txt', f'{json.dumps(found)}\n{told}{said}')
    return failed


def sanitized(args: argparse.Namespace, env: dict[str, str], clock: Clock) -> tuple[int, str]:
    """What NVIDIA's compute-sanitizer says of the fused kernels, where it is installed."""
    tool, said, failed = shutil.which('compute-sanitizer'), '', 0
    if args.device != 'cuda' or tool is None:
        return failed, said
    env = env | {'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}  # or an access beyond a tensor is one within torch's memory
    for name in SANITIZERS:
        command = [tool, '--tool', name, '--error-exitcode', '3', sys.executable, '-m', 'pytest', '-q', '-p',
                   'no:cacheprovider', *SANITIZED]
        code, output = section(args, name, command, env, min(MOST_SANITIZER, clock.left() - LAST))
        words = [line for line in output.splitlines() if 'SUMMARY' in line or ' passed' in line or ' failed' in line]
        said += f'{name}: {"failed" if code else "passed"}: {" ".join(words) or "did not end"}\n'
        failed |= code
    return failed, said


def speed(args: argparse.Namespace, found: Line, env: dict[str, str], clock: Clock) -> int:
    most, file = min(MOST_SPEED, clock.left() - LAST), args.output / 'speed.json'
    record = records_of(args, found) / file.name
    file.unlink(missing_ok=True)
    command = ['scripts/check/benchmark.py', '--device', args.device, '--output', str(file),
               '--budget', str(8 if args.smoke else max(1, most - 20)), *(['--smoke'] if args.smoke else []),
               *(['--after', str(record)] if record.is_file() else [])]
    failed, _ = section(args, 'speed', [sys.executable, *command], env, most)
    if file.is_file():
        report = json.loads(file.read_text()) | {key: found[key] for key in ('revision', 'time')}
        write_text(file, json.dumps(report, indent=1) + '\n')
    return failed


def section(
        args: argparse.Namespace, name: str, command: list[str], env: dict[str, str], seconds: float,
) -> tuple[int, str]:
    """Run a command within its time; returns whether it failed, and its output if it ended."""
    if seconds < 20:
        print(f'--- {name}: left out, for no time is left for it', flush=True)
        return 1, ''
    start = time.monotonic()
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        remember(process, args.places.running)
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 'stopped, for its time was over'
        finally:
            kill([process])
        log.seek(0)
        said = log.read()
    print(f'--- {name}: {code} after {time.monotonic() - start:.0f} s')
    print('\n'.join(said.splitlines()[-40:]), flush=True)
    return int(code != 0), said if isinstance(code, int) else ''


def work(args: argparse.Namespace, found: Line, env: dict[str, str], clock: Clock, folder: Path) -> int:
    """Run the queue: jobs whose parts are present; in a rehearsal the first of each kind, on tiny data."""
    jobs, place = args.places.waiting(args.only), args.pack
    if args.smoke:
        firsts = {job.kind: job for job in reversed(queue()) if fnmatch(job.name, args.only)}
        jobs, place = [job for job in jobs if job in firsts.values()], folder / 'tiny'
        parts = dict.fromkeys(part for job in jobs for part in job.parts)
        if jobs:
            tiny = [sys.executable, str(Path(__file__).with_name('gpu_tiny.py')), str(place), *parts]
            subprocess.run(tiny, env=env, check=True)
    else:
        replace(args.places.runs / 'learning' / LEARNING.name, args.places.learned())  # not to be run again
        said, late = gpu_begun.read(place, args.places.runs, jobs)
        print(*said, sep='\n', end='\n' * bool(said), flush=True)
        jobs = [job for job in jobs if job not in late]
    there = gpu_pack.present(place)
    if not jobs:
        print(f'no job is left of --only {args.only}: each has a result'
              f'{f" in {args.places.runs}, which may be deleted" if args.smoke else ""}', flush=True)
    for line in gpu_pack.lacking(jobs, there):
        print(line, flush=True)
    ready: list[Job] = [job for job in jobs if {*job.parts} <= there]
    paths, broken = gpu_pack.unpack(place, folder, ready)
    for part, error in broken.items():
        print(f'{part} cannot be unpacked, and jobs that need it are left out: {error}', flush=True)
    ready = [job for job in ready if not {*job.parts} & {*broken}]
    with shared_gpu(env, folder) if args.device == 'cuda' else nullcontext():
        failed = Queue(args.places, ready, args.output, env, clock, paths, args.device, args.cores, found).run()
    return failed or int(bool(broken))


def collect(args: argparse.Namespace) -> None:
    file = args.folder / 'environment.json'
    if not file.is_file():
        raise SystemExit(f'{args.folder} is no OUT of a run: there is no {file}.')
    found = json.loads(file.read_text())
    target = records_of(args, found)
    if found.get('smoke') and (args.root == ROOT or args.pack == ROOT / '.gpu'):
        raise SystemExit(f'{args.folder} is of a rehearsal (--smoke), which is no record; '
                         '--root DIR --pack DIR, both, collect it elsewhere.')
    for said in gpu_files.read(args.folder, args.places.runs, LEARNING.name):
        print(said)
    for path in (args.folder / 'checks.txt', args.folder / 'speed.json'):
        place = target / path.name
        if not path.is_file():
            continue
        if place.is_file() and (time_of(path) or found.get('time', '')) < time_of(place):
            print(f'{path.name} is older than the one that is recorded, and is not used')
            continue
        target.mkdir(parents=True, exist_ok=True)
        keep_measured(path, place) if path.suffix == '.json' else shutil.copyfile(path, place)
    if more := len(args.places.learned()) - len(read(args.root / LEARNING)):
        print(f'new: {more} lines of {LEARNING}')
    args.places.record_learning()
    for job, lacks in args.places.record().items():
        without = f', without {" ".join(lacks)}: delete it there and in {RECORD} to run it again' if lacks else ''
        print(f'new: {job.name}, in {args.places.finished / job.name}{without}')
    for job in args.places.begun():
        print(f'cut off, and to go on where it was: {job.name}')
    jobs = args.places.waiting(args.only)
    print(f'left to run: {gpu_pack.tally(job.kind for job in jobs) or "nothing"}\n'
          f'to be committed, if changed: {RECORD}, {LEARNING}, {target.relative_to(args.root)}/')


def records_of(args: argparse.Namespace, environment: Line) -> Path:
    """The folder for checks and speed of the device."""
    return args.root / 'docs' / 'gpu' / re.sub(r'\W+', '-', environment['device'].lower())


def time_of(record: Path) -> str:
    """The time of the run that made a record, in UTC; empty if unknown."""
    text = record.read_text()
    found = json.loads(text if record.suffix == '.json' else text.partition('\n')[0])
    return found.get('time', '')


def keep_measured(new: Path, old: Path) -> None:
    """Replace a speed record of the same device; cases that the new one did not reach are kept."""
    report = json.loads(new.read_text())
    before = json.loads(old.read_text()) if old.is_file() else {'results': []}
    earlier = {r['case']: {'revision': before['revision'], **r} for r in before['results'] if 'ms' in r}
    report['results'] = [r if 'ms' in r else {**earlier.get(r['case'], {}), **r} for r in report['results']]
    for result in report['results']:
        if 'ms' in result:
            result.pop('skipped', None)
    write_text(old, json.dumps(report, indent=1) + '\n')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name: str, do: Callable[..., Any]) -> Any:
        made = commands.add_parser(name)
        made.set_defaults(do=do)
        made.add_argument('--pack', type=Path, default=ROOT / '.gpu', metavar='DIR',
                          help='where parts and runs are (default: .gpu)')
        made.add_argument('--root', type=Path, default=ROOT, metavar='DIR',
                          help='where model_cards/ and docs/ are, for the records (default: the checkout)')
        made.add_argument('--only', default='*', metavar='PATTERN',
                          help="names of jobs, as 'table1-*', see scripts/reproduce/gpu_queue.py (default: all)")
        return made.add_argument

    add = command('pack', pack)
    add('--data', type=Path, metavar='DIR', help='has mnist/, cub200-2010/ and gtsrb32/, as docs/gpu.md tells')
    add('--weights', type=Path, metavar='FILE', help='ImageNet checkpoint of tf_efficientnet_lite0')
    add('--weights2', type=Path, metavar='FILE', help='the same of tf_efficientnet_lite2: convert_lite.py makes it')
    add('--scripts', type=Path, metavar='DIR', default=os.environ.get('TIMM_SCRIPTS'),
        help='checkout of pytorch-image-models (default: TIMM_SCRIPTS)')
    add('--parts', nargs='+', choices=[*gpu_pack.PARTS], metavar='PART',
        help=f'to make anew, of {", ".join(gpu_pack.PARTS)} (default: all; lite2 only with --weights2)')
    add = command('run', run)
    add('--budget', type=float, default=540.0, metavar='SECONDS', help='it ends after so long (default: 540)')
    add('--output', type=place_of_folder, required=True, metavar='OUT', help='folder for what comes back')
    add('--device', default='cuda', choices=('cuda', 'cpu'), help='cpu: for rehearsals, with --smoke')
    add('--sections', nargs='+', default=SECTIONS, choices=SECTIONS, help='to run (default: all)')
    add('--cores', type=int, help='that jobs share; default: all but one')
    add('--smoke', action='store_true', help='a rehearsal, on tiny data: does it run?')
    add = command('collect', collect)
    add('folder', type=Path, metavar='OUT')
    args = parser.parse_args()
    if getattr(args, 'device', 'cuda') == 'cpu' and not args.smoke:
        parser.error('--device cpu is for rehearsals: --smoke is needed, too')
    for name in {'pack', 'root', 'output', 'data', 'weights', 'weights2', 'scripts'} & vars(args).keys():
        if getattr(args, name) is not None:  # jobs run elsewhere
            setattr(args, name, Path(getattr(args, name)).resolve())
    args.places = Places(args.pack, args.root, getattr(args, 'smoke', False))
    return args.do(args) or 0


if __name__ == '__main__':
    sys.exit(main())
