"""`timm-stn show`: draws where a transformer of a model looks in images."""
import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..view.classes import classes_of
from ..view.dependence import tell, witnessing
from ..view.draw import save_picture
from ..view.images import find_images, folder_name, in_turn, natural
from ..view.observe import observe
from ..view.sheet import captions, data_config, draw, read_images
from .common import Refused, attempt, check_output, positive, quiet_argument
from .models import check_transformers, described, load_model, model_arguments
from .over_time import OUTPUT, over_time

__all__ = ['show', 'show_arguments']

MOST = 5  # files that are named of those that cannot be read


def show_arguments(add: Callable[..., Any]) -> None:
    add('images', nargs='+', metavar='IMAGE',
        help='files, or folders of them; of folders of classes, one image of each class, then a second, ...')
    model_arguments(add)
    add('--stage', help="stage of the transformer to show, as in stn_stages (default: 'input' if there is one)")
    add('--labels', metavar='FILE',
        help='names of all classes, one per line (default: those of the model, else the folders, if as many as '
             'classes)')
    add('--count', type=positive, default=24, help='largest number of images (default: %(default)s)')
    add('--over-time', action='store_true',
        help='IMAGE is the folder of a run of `timm-stn train ... --stn-log N`: an animation of its pictures')
    add('--output', metavar='FILE', help=f'(default: look.png; {OUTPUT} with --over-time)')
    quiet_argument(add)


class File(NamedTuple):
    """An image file: what its class is called ('': it has none), and whether the command line names it itself."""
    path: Path
    label: str
    named: bool


def show(args: argparse.Namespace) -> int:
    if args.over_time:
        return over_time(args)
    args.output = 'look.png' if args.output is None else args.output
    check_output(args.output)
    check_transformers(args.model or '')
    lost: list[tuple[Path, str]] = []
    files = _image_files(args.images, Path(args.output), lost)
    names = _read_labels(args.labels) if args.labels else []
    model = load_model(args)
    if not hasattr(model, 'spatial_transformers'):
        raise Refused(f'argument --model: {args.model} has no spatial transformer')
    if not model.num_classes:
        raise Refused(f'argument --model: {args.model} has no classifier (num_classes=0)')
    if args.labels and len(names) < model.num_classes:
        raise Refused(f'argument --labels: {model.num_classes} classes need as many names, and {args.labels} has '
                      f'{len(names)}')
    stage, config = _stage(model, args.stage), attempt(described(args), data_config, model)
    paths, labels = [file.path for file in files], [file.label for file in files]
    order = sorted(in_turn(labels, args.count), key=lambda i: not files[i].named)
    pictures = attempt('IMAGE', read_images, paths, config, order, args.count)
    images = pictures.pixels.to(args.device)
    with witnessing() as witness:
        look = attempt('IMAGE', observe, model, images, stage)
    classes = classes_of(model, sorted({label for label in labels if label}, key=natural), names)
    shown = [paths[i] for i in pictures.chosen]
    truths = [classes.of_folder.get(labels[i]) for i in pictures.chosen]
    said = attempt(described(args), captions, look.logits, classes, shown, truths)
    picture = draw(images, look, said, config, args.model)
    attempt(f'--output {args.output}', save_picture, picture, args.output)  # before lines that may go to `head`
    for i, (path, caption, truth) in enumerate(zip(shown, said, truths)):
        (answer, probability), *_ = caption.answers
        known = {} if truth is None else {'class': classes.names[truth], 'right': caption.right}
        print(json.dumps({
            'file': str(path), 'answer': answer, 'probability': round(probability, 6), **known,
            'stage': look.stage, 'theta': _numbers(look.theta[i])}))
    bad = [*(f'{folder}: {reason}' for folder, reason in lost), *pictures.bad]
    left = len(files) - len(shown) - len(pictures.bad)
    unnamed = sum(truth is None and bool(labels[i]) for i, truth in zip(pictures.chosen, truths))
    print(f'{args.output}: {_count([caption.right for caption in said], unnamed, len(bad), left)}', file=sys.stderr)
    tell([*(f'skipped {line}' for line in bad[:MOST]), *pictures.notes, *witness.advice()])
    return 0


def _count(right: Sequence[bool | None], unnamed: int, bad: int, left: int) -> str:
    known = {True, False} & {*right}
    parts = (
        f'{len(right)} images', known and f'{right.count(True)} right', known and f'{right.count(False)} wrong',
        known and unnamed and f'{unnamed} of classes that the model does not name',
        bad and f'{bad} skipped that cannot be read', left and f'{left} more not shown (--count)')
    return ', '.join(part for part in parts if part)


def _image_files(given: Sequence[str], output: Path, lost: list[tuple[Path, str]]) -> list[File]:
    """The files named, and those in the folders named. Folders that cannot be read go to ``lost``, with the reason."""
    files: list[File] = []
    for text in given:
        path = Path(text)
        if not os.path.isdir(text):
            if not os.path.exists(text):
                raise Refused(f'argument IMAGE: no file or folder {text!r}')
            if _same(path, output):
                raise Refused(f'argument --output: {str(output)!r} is one of the images')
            files.append(File(path, folder_name(path), True))
            continue
        found = [file for file in find_images(path, lost) if file.name != output.name or not _same(file, output)]
        if not found:
            why = ''.join(f'; {folder}: {reason}' for folder, reason in lost)
            raise Refused(f'argument IMAGE: no pictures in the folder {text!r}{why}')
        labels = {folder: folder_name(folder / 'any') for folder in {file.parent for file in found}}
        if len(labels) > 1:
            labels[path] = ''  # beside the folders of classes
        files += [File(file, labels[file.parent], False) for file in found]
    return files


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _read_labels(path: str) -> list[str]:
    text = attempt(f'--labels {path}', Path(path).read_text)
    return [line.strip() for line in text.rstrip().splitlines()]


def _stage(model: Any, text: str | None) -> int | str | None:
    """The stage named on the command line, where 2 and '2' are the same."""
    stages = {str(stage): stage for stage in model.spatial_transformers()}
    if text is not None and text not in stages:
        raise Refused(f'argument --stage: there are transformers at {", ".join(stages)}, got {text!r}')
    return stages[text] if text is not None else None


def _numbers(theta: Tensor) -> Any:
    """The thetas of all glimpses as nested lists; for one glimpse, its theta alone."""
    rounded = (theta.double().cpu() * 1e6).round() / 1e6
    return (rounded[0] if len(rounded) == 1 else rounded).tolist()
