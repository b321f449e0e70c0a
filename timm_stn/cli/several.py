"""The networks of `timm-stn show`: several side by side, plain timm models as they would look if wrapped."""
import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm

from ..geometry.layout import size_that_enters
from ..names.build import wrap
from ..network.arguments import stn_arguments
from ..network.glance import resolve_auto
from ..view.classes import classes_of
from ..view.gallery import Viewed
from .common import Refused, attempt
from .models import FROM_CONFIG, described, load_model, model_arguments

__all__ = ['load_viewed', 'several_arguments', 'without_images']

LEAST = 0.25  # half-width of the smallest glimpse of a plain model


def several_arguments(add: Callable[..., Any]) -> None:
    """`model_arguments`, with several --model and --checkpoint, and how a plain model looks."""
    more: dict[str, dict[str, Any]] = {
        '--model': dict(nargs='+', action='extend', help='a name of `timm-stn list` or of a plain timm model, or '
                        'hf-hub:USER/NAME, local-dir:FOLDER; several are shown side by side; default: the model of '
                        "--checkpoint, if timm's train.py wrote it"),
        '--checkpoint': dict(action='append', help='weights to load, one --checkpoint for each model, or several of '
                             'one model; default: the trained weights of the name')}
    model_arguments(lambda name, **kwargs: add(name, **{**kwargs, **more.get(name, {})}))
    add('--as', dest='way', metavar='WAY',
        help='how a plain timm model looks, which nothing was trained to do: saliency[:STAGE] (where its features '
             'respond), orbit[:POSES] (the turn in which it is most certain); default: saliency if it has a map of '
             '7 x 7 at least, else orbit:8')


def without_images(models: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models, and the images behind them: ``--model NAME FILE``. The first is always a model."""
    found: tuple[list[str], list[str]] = ([], [])
    for i, text in enumerate(models):
        is_model = i == 0 or text.startswith(FROM_CONFIG) or timm.is_model(text) or not Path(text).exists()
        found[not is_model].append(text)
    return found


def load_viewed(args: argparse.Namespace, folders: Sequence[str], labels: Sequence[str]) -> list[Viewed]:
    """The networks that the arguments name, in eval mode on their device.

    Args:
        args: With lists of ``model`` and ``checkpoint``.
        folders: Names of the folders of the images, in natural order.
        labels: Names of all classes, if they are given.
    """
    each = _each(args)
    models = [_load(one, len(each) == 1) for one in each]
    if args.way and all(hasattr(model, 'spatial_transformers') for model in models):
        raise Refused('argument --as: it is for plain timm models, and what is shown has spatial transformers')
    found = []
    for one, name, model in zip(each, _names(each), models, strict=True):
        if not model.num_classes:
            raise Refused(f'argument --model: {one.model} has no classifier (num_classes=0)')
        if args.labels and len(labels) < model.num_classes:
            raise Refused(f'argument --labels: {model.num_classes} classes need as many names, and {args.labels} has '
                          f'{len(labels)}')
        classes = classes_of(model, folders, labels)
        if hasattr(model, 'spatial_transformers'):
            stage = _stage(model, args.stage)
            found.append(attempt(described(one), Viewed, model, name, classes, stage))
        else:
            if args.stage is not None:
                raise Refused(f'argument --stage: {one.model} has no spatial transformer at any stage')
            wrapped = _wrapped(model, args.way, one)
            way = wrapped.arguments.settings('input').localization
            found.append(attempt(described(one), Viewed, wrapped, name, classes, None, way))
    return found


def _each(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments of each model, as `load_model` takes them."""
    models, checkpoints = args.model or [None], args.checkpoint or [None]
    if len(models) == 1:
        models = models * len(checkpoints)
    if len(checkpoints) == 1 and checkpoints[0] is None:
        checkpoints = checkpoints * len(models)
    if len(models) != len(checkpoints):
        raise Refused(f'argument --checkpoint: it takes one file for each --model, or one --model; got '
                      f'{len(checkpoints)} files for {len(models)} models')
    return [
        argparse.Namespace(**{**vars(args), 'model': model, 'checkpoint': checkpoint})
        for model, checkpoint in zip(models, checkpoints, strict=True)]


def _load(args: argparse.Namespace, alone: bool) -> Any:
    """The model; beside others, a plain one does without the ``stn_`` arguments, which are for those."""
    try:
        return load_model(args)
    except Refused as error:
        others = [(key, value) for key, value in args.model_kwargs if not key.startswith('stn_')]
        if alone or others == args.model_kwargs:
            raise
        model = load_model(argparse.Namespace(**{**vars(args), 'model_kwargs': others}))
        if hasattr(model, 'spatial_transformers'):
            raise Refused(f'{error} (of --model {args.model})') from error
        return model


def _names(each: Sequence[argparse.Namespace]) -> list[str]:
    """What the models are called: with their checkpoints, where several have one name."""
    names = [one.model for one in each]
    for most in range(2, 1 + max(len(Path(one.checkpoint or '').parts) for one in each)):
        found = [
            name if names.count(name) == 1 or not one.checkpoint else
            f'{name}, {"/".join(Path(one.checkpoint).parts[-most:])}' for name, one in zip(names, each)]
        if len({*found}) == len(found):
            return found
    return names


def _stage(model: Any, text: str | None) -> int | str | None:
    """The stage named on the command line, where 2 and '2' are the same."""
    stages = {str(stage): stage for stage in model.spatial_transformers()}
    if text is not None and text not in stages:
        raise Refused(f'argument --stage: there are transformers at {", ".join(stages)}, got {text!r}')
    return stages[text] if text is not None else None


def _wrapped(model: Any, way: str | None, args: argparse.Namespace) -> Any:
    """A plain timm model with a transformer that looks where nothing was trained to."""
    kind, _, value = (way or 'saliency').partition(':')
    if kind not in ('saliency', 'orbit'):
        raise Refused(f'argument --as: it takes saliency[:STAGE] or orbit[:POSES], got {way!r}')
    argument = f'--as {way}' if way else f'--model {args.model}'
    if kind == 'saliency':
        stage = value or attempt(argument, _stage_that_responds, model)
        if stage:
            return attempt(argument, lambda: wrap(
                model, transform='translation', scale=(LEAST, 1.0), localization=f'saliency:{stage}'))
        if way:
            raise Refused(f'argument --as: {args.model} has no stage with a map of 7 x 7 or more; accepted is orbit:8')
    poses = value if kind == 'orbit' and value else '8'
    return attempt(argument, lambda: wrap(model, localization=f'orbit:{poses}', padding_mode='reflection'))


def _stage_that_responds(model: Any) -> str:
    """The stage whose features glimpses look at by default; empty if there is none."""
    asked = stn_arguments(stn_transform='translation', stn_scale=LEAST)
    found = resolve_auto(model, asked, size_that_enters(model)).source('input')
    return found.of if found.kind == 'saliency' else ''
