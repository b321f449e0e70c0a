"""`timm-stn diagnose`: what is wrong with the transformers of a trained network, and which knob to turn."""
import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import TASKS
from ..data.tasks import are_wrong, batches_of, boxes_of
from ..names.zoo import set_of
from ..view import diagnosis
from ..view.boxes import BEYOND, are_beyond, boxes_of_file, read_boxes, to_input
from ..view.classes import classes_of
from ..view.dependence import tell
from ..view.draw import save_picture
from ..view.images import find_images, folder_name, in_turn, natural, open_image
from ..view.sheet import data_config, read_images, some
from .common import Refused, attempt, check_output, positive, quiet_argument, refusal
from .digits import normalized, set_argument
from .models import FROM_CONFIG, check_transformers, described, load_model, model_arguments

__all__ = ['diagnose', 'diagnose_arguments']

BATCH = 32
BEST = 'model_best.pth.tar'  # that train.py writes to the folder of a run
ENDINGS = ('.tar', '.pth', '.pt', '.ckpt', '.safetensors', '.bin')  # of checkpoints


def diagnose_arguments(add: Callable[..., Any]) -> None:
    add('name', nargs='?', metavar='CHECKPOINT|MODEL', help='the same as --checkpoint FILE, or --model NAME')
    model_arguments(add)
    add('--data', metavar='DIR', required=True,
        help='folder with a folder of images for each class, or with the data of --set; images alone do, too')
    set_argument(add)
    add('--labels', metavar='FILE', help='names of the folders of all classes, one per line, in their order')
    add('--boxes', metavar='FILE', help='CSV with true boxes: file,x1,y1,x2,y2, in pixels of the image files')
    add('--count', type=positive, default=300, help='largest number of images (default: %(default)s)')
    add('--output', default='diagnosis.png', metavar='FILE', help='the picture (default: %(default)s)')
    add('--json', action='store_true', help='a line of JSON for each transformer, in place of text')
    quiet_argument(add)


def diagnose(args: argparse.Namespace) -> int:
    if args.name and (args.model or args.checkpoint):
        raise Refused(f'argument CHECKPOINT|MODEL: there are two, {args.name} and {args.model or args.checkpoint}')
    if not (args.name or args.model or args.checkpoint):
        raise Refused('argument CHECKPOINT|MODEL: takes a checkpoint of train.py, or a name of `timm-stn list`')
    if args.name and os.path.isdir(args.name) and not args.name.startswith(FROM_CONFIG):
        args.name = os.path.join(args.name, BEST)
    if args.name and not os.path.isfile(args.name) and _is_file_name(args.name):
        raise Refused(f'argument CHECKPOINT|MODEL: no file {args.name!r}')
    if args.name:
        setattr(args, 'checkpoint' if os.path.isfile(args.name) else 'model', args.name)
    if args.count < 2:
        raise Refused(f'argument --count: takes at least 2, got {args.count}')
    check_output(args.output)
    check_transformers(args.model or '')
    boxes = attempt(f'--boxes {args.boxes}', read_boxes, args.boxes) if args.boxes else {}
    files, lost = _files(args)
    model = load_model(args)
    kind = args.set or (set_of(getattr(model, 'pretrained_cfg', {}).get('architecture', '')) if not files else None)
    none = f'argument --data: no pictures in the folder {args.data!r}' + ''.join(
        f'; {folder}: {reason}' for folder, reason in lost)
    if not kind and not files:
        raise Refused(none)
    batches, notes = (_of_task(args, model, kind, none), []) if kind else _of_files(args, model, files, boxes)
    is_right = _is_right if kind and TASKS[kind].answers > 1 else diagnosis.answered_right
    run = partial(diagnosis.diagnose, most=args.count, is_right=is_right)
    found = attempt(described(args), run, model, batches)
    attempt(f'--output {args.output}', save_picture, found.picture(args.model or args.checkpoint), args.output)
    print('\n'.join(json.dumps(finding.json) for finding in found.findings) if args.json else found)
    print(f'{args.output}: {found.findings[0].figures.images} images', file=sys.stderr)
    tell([*(f'skipped {folder}: {reason}' for folder, reason in lost), *notes])
    return 0


def _is_file_name(text: str) -> bool:
    return not text.startswith(FROM_CONFIG) and (os.sep in text or Path(text).suffix in ENDINGS)


def _files(args: argparse.Namespace) -> tuple[list[Path], list[tuple[Path, str]]]:
    lost: list[tuple[Path, str]] = []
    if not os.path.isdir(args.data):
        raise Refused(f'argument --data: takes a folder, got {args.data!r}')
    return [] if args.set else list(find_images(Path(args.data), lost)), lost


def _of_files(
        args: argparse.Namespace,
        model: Any,
        files: list[Path],
        boxes: dict[str, Any],
) -> tuple[Iterator[tuple[Tensor, ...]], list[str]]:
    """Batches of images, classes and boxes, of all classes in turn; and notes on what was not read as it is."""
    labels = ['' if file.parent == Path(args.data) else folder_name(file) for file in files]
    order = list(in_turn(labels, args.count))
    config = attempt(described(args), data_config, model)
    pictures = attempt('--data', read_images, files, config, order, args.count)
    names = attempt(f'--labels {args.labels}', Path(args.labels).read_text, 'utf-8-sig') if args.labels else ''
    folders = sorted({label for label in labels if label}, key=natural)
    classes = classes_of(model, folders, [line.strip() for line in names.rstrip().splitlines()])
    targets = torch.tensor([classes.of_folder.get(labels[i], -1) for i in pictures.chosen])
    parts: list[Tensor] = [pictures.pixels, targets]
    beyond: list[str] = []
    if boxes:
        parts.append(_boxes([files[i] for i in pictures.chosen], boxes, config, beyond))
        if not bool(parts[2].isfinite().any()):
            raise Refused(f'argument --boxes: {args.boxes} has none of the files in {args.data!r}; it has '
                          f'{next(iter(boxes))!r}, for instance')
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    batches = zip(*(torch.split(part[shuffled], BATCH) for part in parts))
    unknown = int((targets < 0).sum())
    one = next((labels[i] for i, target in zip(pictures.chosen, targets.tolist()) if target < 0), '')
    notes = [f'{unknown} of {len(targets)} images are of no class that the model names (a folder is {one!r}, a class '
             f'{classes.names[0]!r}): --labels FILE names the classes'] if unknown else []
    notes += [f'{BEYOND} {some(beyond, ", ")}'] if beyond else []
    return batches, [*(f'skipped {line}' for line in pictures.bad), *pictures.notes, *notes]


def _boxes(files: list[Path], boxes: dict[str, Any], config: dict[str, Any], beyond: list[str]) -> Tensor:
    """(N, B, 4) in [-1, 1] of the input; of nan where a file has fewer; ``beyond`` gets files that some leave."""
    found = [boxes_of_file(file, boxes) for file in files]
    placed = torch.full((len(files), max(1, *map(len, found)), 4), torch.nan)
    for i, (file, own) in enumerate(zip(files, found)):
        if own:
            size = open_image(file)[0].size
            beyond += [file.name] if are_beyond(own, size) else []
            placed[i, :len(own)] = to_input(torch.tensor(own), size, config)
    return placed


def _of_task(args: argparse.Namespace, model: Any, kind: str, none: str) -> Iterator[tuple[Tensor, ...]]:
    """Batches of a set; ``none`` is what to say where that was not asked for, and its data is not there either."""
    try:
        made_of, labels = TASKS[kind].load(args.data, 'test')
    except Exception as error:
        raise refusal('--data', error) if args.set else Refused(f'{none}, and not the data of {kind}') from error
    return _batches_of_task(args, model, kind, made_of, labels)


def _batches_of_task(
        args: argparse.Namespace,
        model: Any,
        kind: str,
        made_of: Tensor,
        labels: Tensor,
) -> Iterator[tuple[Tensor, ...]]:
    task = TASKS[kind]
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:args.count]
    made_of, labels = made_of[chosen], labels[chosen]
    size = task.at_once(BATCH)
    boxes = boxes_of(kind, labels, batch_size=size) if task.boxes else None
    for images, targets in batches_of(kind, made_of, labels, batch_size=size):
        yield normalized(model, images), targets, *([next(boxes)] if boxes else [])


def _is_right(logits: Tensor, targets: Tensor) -> Tensor:
    return ~are_wrong(logits, targets)
