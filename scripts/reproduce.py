#!/usr/bin/env python
"""Reproduce the experiments of Jaderberg et al. 2015 (arXiv:1506.02025), and where it pays, from data to table.

    python scripts/reproduce.py distorted-mnist --distortion E --model st-cnn --transform tps --seeds 3 --data DIR
    python scripts/reproduce.py table                  # model_cards/RESULTS.md from the recorded runs

An experiment runs those of its cells that the options select; without options, all. A run that is recorded is not run
again (`--root DIR` starts a record of your own); one that was interrupted goes on at its last epoch. Each finished run
is a line of model_cards/results.jsonl.
DIR has MNIST (https://ossci-datasets.s3.amazonaws.com/mnist/), for signs gtsrb32/ as timm_stn/data/signs.py says, for
`svhn` the folders train, extra and test of http://ufldl.stanford.edu/housenumbers/, for birds cub200-2010/train.tar and
test.tar. FILE, of --weights, has the ImageNet weights of tf_efficientnet_lite0: model.safetensors of
timm/tf_efficientnet_lite0.in1k on the Hugging Face Hub.
"""
import argparse
import os
import shlex
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().with_suffix('')))

from cells import SEEDS, Cell, cells
from checkout import ROOT, write_text
from gpu import environment, stop
from gpu_jobs import MALLOC, RECORD, Clock, Places, Queue, alone, command_of, on_signals, shared_gpu
from gpu_queue import Job, job_of, queue
from pays_cells import pays
from records import read
from results_table import results, shown_lines

BIRDS = 'Caltech-UCSD Birds 200 (2010), 224 x 224: a folder of images a class in each tar.'
DATA = {  # of a part: a file, the folders where it may be, and its source
    'mnist': ('train-images-idx3-ubyte*', ('.', 'mnist', 'raw', 'MNIST/raw', 'mnist/MNIST/raw'),
              'https://ossci-datasets.s3.amazonaws.com/mnist/: four files, see docs/gpu.md.'),
    'svhn': ('extra/digitStruct.mat', ('.', 'svhn'),
             'http://ufldl.stanford.edu/housenumbers/: train.tar.gz, extra.tar.gz and test.tar.gz, unpacked; to read '
             'them needs `pip install "timm-stn[svhn]"`.'),
    'birds-train': ('train.tar', ('.', 'cub200-2010'), BIRDS), 'birds-test': ('test.tar', ('.', 'cub200-2010'), BIRDS),
    'signs': ('test-boxes.csv', ('.', 'gtsrb32'), 'https://benchmark.ini.rub.de, resized to 32 x 32 and packed.')}
WORDS = {'birds-train': 'birds', 'birds-test': 'birds'}  # of commands, where a part has another name
WEIGHTS = 'model.safetensors'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='EXPERIMENT', dest='experiment')
    every = [*cells(), *pays()]
    for experiment in dict.fromkeys(cell.experiment for cell in every):
        mine = [cell for cell in every if cell.experiment == experiment]
        made = commands.add_parser(experiment, help=', '.join(dict.fromkeys(cell.row for cell in mine)))
        for name in mine[0].choice:
            made.add_argument(f'--{name}', nargs='+', choices=list(dict.fromkeys(cell.choice[name] for cell in mine)),
                              help='(default: all)')
        recipes = list(dict.fromkeys(cell.recipe for cell in mine))
        made.add_argument('--recipe', choices=recipes, default=recipes[0], help='(default: %(default)s)')
        made.add_argument('--seeds', type=int, choices=range(1, SEEDS + 1), default=SEEDS, metavar='N',
                          help=f'the first N seeds of {SEEDS} (default: all)')
        made.add_argument('--data', type=Path, default=os.environ.get('TIMM_STN_DATA'), metavar='DIR',
                          help='(default: the environment variable TIMM_STN_DATA)')
        if any('lite0' in cell.parts for cell in mine):
            made.add_argument('--weights', type=Path, required=True, metavar='FILE',
                              help='model.safetensors of timm/tf_efficientnet_lite0.in1k on the Hub')
        made.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
        made.add_argument('--jobs', type=int, default=1, help='runs side by side (default: %(default)s)')
        made.add_argument('--runs', type=Path, default=ROOT / 'runs', metavar='DIR',
                          help='folder of the runs (default: runs in the checkout)')
        made.add_argument('--smoke', action='store_true',
                          help='runs of one epoch, which are not recorded: does it work?')
        made.add_argument('--dry-run', action='store_true', help='print the commands of the runs that are left')
        add_root(made)
    made = commands.add_parser('table', help='write model_cards/RESULTS.md from the recorded runs')
    add_root(made)
    args = parser.parse_args(argv)
    if args.experiment != 'table':
        if args.data is None or not args.data.is_dir():
            parser.error(f'argument --data (default: the environment variable TIMM_STN_DATA): takes a folder with the '
                         f'data of {args.experiment}, got {args.data}')
        if 'weights' in args and (args.weights.name != WEIGHTS or not args.weights.is_file()):
            parser.error(f'argument --weights: takes a file {WEIGHTS}, got {args.weights}')
        if args.jobs < 1:
            parser.error(f'argument --jobs: takes a positive integer, got {args.jobs}')
    return args


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--root', type=Path, default=ROOT, metavar='DIR',
                        help='where model_cards/results.jsonl is, or shall be (default: the checkout)')


def chosen(args: argparse.Namespace) -> list[Cell]:
    """The cells that the options select."""
    mine = [cell for cell in [*cells(), *pays()]
            if cell.experiment == args.experiment and cell.recipe == args.recipe]
    return [cell for cell in mine if all(
        getattr(args, name) is None or value in getattr(args, name) for name, value in cell.choice.items())]


def run(args: argparse.Namespace) -> int:
    found = chosen(args)
    if not found:
        raise SystemExit(f'No cell of {args.experiment} has all of these options: plain networks have the transform '
                         'none, and others one of affine, projective and tps.' if hasattr(args, 'transform') else
                         f'No cell of {args.experiment} has all of these options.')
    parts = dict.fromkeys(part for cell in found for part in cell.parts)
    for part in parts:
        if part in DATA:
            check_data(args.data, part)
    all_jobs = [job_of(cell, seed) for seed in range(args.seeds) for cell in found]
    jobs = list({job.name: job for job in all_jobs}.values())  # a run may fill several cells
    places = Places(args.runs.resolve(), args.root.resolve(), args.smoke, known_jobs(jobs))
    args.pack = None  # whose revision would count where git's is not clean
    env = {**MALLOC, **os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'}
    env['PYTHONPATH'] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    on_signals(stop)
    failed = 0
    with alone(places.running), tempfile.TemporaryDirectory() as folder:
        names = {job.name for job in jobs}
        waiting = [job for job in places.waiting() if job.name in names]
        if done := sorted(names - {job.name for job in waiting}):
            where = places.runs if args.smoke else places.root / RECORD
            print(f'not run again, for {where} has them (--root DIR keeps a record of your own):', *done)
        paths = {WORDS.get(part, part): args.data.resolve() for part in parts}
        if 'lite0' in parts:
            paths['lite0'] = args.weights.resolve().parent
        if args.dry_run:
            for job in waiting:
                words = dict(paths, run=args.runs.resolve() / job.name, device=args.device)
                print(shlex.join([*command_of(job, words), *(job.smoke if args.smoke else ())]))
            return 0
        if waiting:
            print(f'{len(waiting)} runs; on an H100, beside others, each takes {seconds(waiting)} s, on a CPU many '
                  f'times that. Each writes a line per epoch to {places.runs}/NAME/log.txt, and goes on if it is '
                  'started again.', flush=True)
            try:
                with shared_gpu(env, Path(folder)) if args.device.startswith('cuda') else nullcontext():
                    made = environment(args, env)
                    failed = Queue(places, waiting, None, env, Clock(), paths, args.device, args.jobs, made).run()
            finally:
                if not args.smoke:
                    places.record()  # also what had ended before this was ended
    if not args.smoke:
        print(shown_lines(found, read(places.root / RECORD)))
    return failed


def check_data(folder: Path, part: str) -> None:
    """End here, and not in each run, where there are no data."""
    name, below, source = DATA[part]
    if not any(next((folder / place).glob(name), None) for place in below):
        raise SystemExit(f'argument --data: there is no {name} in {folder}, nor in {", ".join(below[1:])} below it. '
                         f'It is from {source}')


def seconds(jobs: list[Job]) -> str:
    ends = sorted({min(job.seconds for job in jobs), max(job.seconds for job in jobs)})
    return ' to '.join(f'{end:.0f}' for end in ends)


def known_jobs(jobs: list[Job]) -> list[Job]:
    """Those, and all others of the queue."""
    names = {job.name for job in jobs}
    return [*jobs, *(job for job in queue() if job.name not in names)]


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.experiment != 'table':
        return run(args)
    if not (args.root / RECORD).is_file():
        raise SystemExit(f'argument --root: there is no {args.root / RECORD}')
    page = args.root / 'model_cards' / 'RESULTS.md'
    write_text(page, results(read(args.root / RECORD)))
    print(f'{page} written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
