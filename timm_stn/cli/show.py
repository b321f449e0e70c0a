"""`timm-stn show`: draws where a transformer of a model looks in images."""
import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..view.dependence import tell, witnessing
from ..view.draw import Caption, save_picture
from ..view.observe import observe
from ..view.sheet import best_answers, class_names, data_config, draw, read_images, short_name
from .common import Refused, attempt, check_output, positive
from .models import check_transformers, load_model, model_arguments

__all__ = ['show', 'show_arguments']


def show_arguments(add: Callable[..., Any]) -> None:
    add('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
    model_arguments(add)
    add('--stage', help="stage of the transformer to show, as in stn_stages (default: 'input' if there is one)")
    add('--labels', metavar='FILE', help='class names, one per line (default: those of the model)')
    add('--count', type=positive, default=24, help='largest number of images (default: %(default)s)')
    add('--output', default='look.png', metavar='FILE', help='(default: %(default)s)')


def show(args: argparse.Namespace) -> int:
    check_output(args.output)
    check_transformers(args.model or '')
    paths = _image_files(args.images)
    names = _read_labels(args.labels) if args.labels else None
    model = load_model(args)
    if not hasattr(model, 'spatial_transformers'):
        raise Refused(f'argument --model: {args.model} has no spatial transformer')
    if not model.num_classes:
        raise Refused(f'argument --model: {args.model} has no classifier (num_classes=0)')
    stage, config = _stage(model, args.stage), attempt(f'--model {args.model}', data_config, model)
    images = attempt('IMAGE', read_images, paths[:args.count], config).to(args.device)
    with witnessing() as witness:
        look = attempt('IMAGE', observe, model, images, stage)
    answers = attempt(f'--model {args.model}', best_answers, look.logits, names or class_names(model))
    for i, (path, answer) in enumerate(zip(paths, answers)):
        print(json.dumps({
            'file': str(path), 'answer': answer[0][0], 'probability': round(answer[0][1], 6),
            'stage': look.stage, 'theta': _numbers(look.theta[i])}))
    captions = [Caption(a, short_name(p.name)) for a, p in zip(answers, paths)]
    picture = draw(images, look, captions, config, args.model)
    attempt(f'--output {args.output}', save_picture, picture, args.output)
    skipped = f', {len(paths) - args.count} more not shown (--count)' if len(paths) > args.count else ''
    print(f'{args.output}: {len(images)} images{skipped}', file=sys.stderr)
    tell(witness.advice())
    return 0


def _image_files(given: Sequence[str]) -> list[Path]:
    known = Image.registered_extensions()
    paths: list[Path] = []
    for text in given:
        path = Path(text)
        if not path.exists():
            raise Refused(f'argument IMAGE: no file or folder {text!r}')
        found = sorted(p for p in path.rglob('*') if p.suffix.lower() in known) if path.is_dir() else [path]
        if not found:
            raise Refused(f'argument IMAGE: no pictures in the folder {text!r}')
        paths += found
    return paths


def _read_labels(path: str) -> list[str]:
    text = attempt(f'--labels {path}', Path(path).read_text)
    return [line.strip() for line in text.splitlines()]


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
