#!/usr/bin/env python
"""Where a spatial transformer pays: the page docs/when_it_pays.md, and what it needs beside the recorded runs.

    python scripts/pays.py page                                # writes the page, of the records in model_cards/
    python scripts/pays.py cost --only scattered-birds         # times its networks, for model_cards/costs.jsonl
    python scripts/pays.py picture scattered-birds --run runs/finished/scattered-whole1-0 --data DIR

`python scripts/reproduce.py EXPERIMENT` runs the experiments.
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / 'train'))
sys.path.insert(0, str(Path(__file__).resolve().parent / 'reproduce'))

from checkout import ROOT, place_of_file, write_text
from gpu_jobs import MALLOC
from pays_page import page
from pays_texts import TEXTS
from records import read


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='COMMAND', dest='command')
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument('--root', type=Path, default=ROOT, metavar='DIR',
                      help='where model_cards/ is, with the records (default: the checkout)')
    commands.add_parser('page', parents=[root], help='write docs/when_it_pays.md')
    made = commands.add_parser('cost', parents=[root], help='measure times, into model_cards/costs.jsonl')
    made.add_argument('--only', choices=list(TEXTS), metavar='EXPERIMENT', help='(default: all, one after another)')
    made.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
    made.add_argument('--threads', type=positive, default=1, help='of a CPU (default: %(default)s)')
    made.add_argument('--batch-size', type=positive, default=32, help='images in a step (default: %(default)s)')
    made.add_argument('--repeats', type=positive, default=7, help='of which the median is taken (default: %(default)s)')
    made = commands.add_parser('picture', help='draw test images with where a trained network looks')
    made.add_argument('experiment', choices=list(TEXTS), metavar='EXPERIMENT')
    made.add_argument('--run', type=Path, required=True, metavar='FOLDER',
                      help='of a finished run: of train_task.py, or of train_birds.sh')
    made.add_argument('--data', default=os.environ.get('TIMM_STN_DATA'), metavar='DIR',
                      help='(default: the environment variable TIMM_STN_DATA)')
    made.add_argument('--set', metavar='SET', help='of `timm_stn.data.tasks` (default: that of the run)')
    made.add_argument('--count', type=positive, default=6, help='images (default: %(default)s)')
    made.add_argument('--output', type=place_of_file, metavar='FILE', help='(default: docs/pays/EXPERIMENT.jpg)')
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'takes a positive integer, got {text}')
    return int(text)


def write_page(root: Path) -> Path:
    cards, docs = root / 'model_cards', root / 'docs'
    if not (cards / 'results.jsonl').is_file():
        raise SystemExit(f'argument --root: there is no {cards / "results.jsonl"}')
    text = page(read(cards / 'results.jsonl'), read(cards / 'costs.jsonl'),
                [picture.stem for picture in docs.glob('pays/*.jpg')])
    docs.mkdir(exist_ok=True)
    write_text(docs / 'when_it_pays.md', text)
    return docs / 'when_it_pays.md'


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.command == 'page':
        print(f'{write_page(args.root)} written')
    elif args.command == 'cost':
        from pays_cost import measure  # needs torch, as the page does not
        measure(args)
    else:
        from pays_picture import draw
        draw(args)


def with_memory_kept() -> None:
    """Begin again with glibc's settings with which networks are trained, which it reads once."""
    if not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**MALLOC, **os.environ})


if __name__ == '__main__':
    with_memory_kept()
    main()
