"""Model arguments of all commands, and `timm-stn list`."""
import argparse
import ast
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint
from torch import nn

from ..names.registry import nearest, unknown
from ..names.zoo import weights_of, zoo_names
from ..publish.run_record import read_run
from .common import Refused, attempt, refusal

__all__ = [
    'FROM_CONFIG', 'check_known', 'check_transformers', 'create_model', 'described', 'is_plain', 'keyword',
    'kwargs_argument', 'list_arguments', 'list_models', 'load_model', 'model_arguments']

FROM_CONFIG = ('hf-hub:', 'hf_hub:', 'local-dir:')


def model_arguments(add: Callable[..., Any]) -> None:
    add('--model', metavar='NAME', help='a name of `timm-stn list`, or hf-hub:USER/NAME, local-dir:FOLDER; '
        "default: the model of --checkpoint, if timm's train.py wrote it")
    add('--checkpoint', metavar='FILE', help='weights to load; default: the trained weights of the name')
    add('--model-kwargs', nargs='+', type=keyword, default=[], metavar='KEY=VALUE', help='arguments of the model')
    add('--no-pretrained', action='store_true', help='random weights, unless --checkpoint is given')
    add('--device', default='cpu', help='a torch device (default: %(default)s)')


def keyword(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` as a pair; the value is a Python literal, or else a text."""
    key, equals, value = text.partition('=')
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f'takes KEY=VALUE, got {text!r}')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def load_model(args: argparse.Namespace, **defaults: Any) -> Any:
    """The model that ``model_arguments`` describe, in eval mode on its device."""
    if args.checkpoint and not Path(args.checkpoint).is_file():
        raise Refused(f'argument --checkpoint: no file {args.checkpoint!r}')
    if args.model is None:
        return attempt(f'--device {args.device}', _load_run(args).to, args.device).eval()
    pretrained = not args.checkpoint and not args.no_pretrained
    if not args.model.startswith(FROM_CONFIG):
        _check_name(args.model, pretrained)
    model = _create(args, pretrained, defaults)
    if args.checkpoint:
        hint = 'Was the model built with other arguments? Give them: --model-kwargs KEY=VALUE'
        attempt(f'--checkpoint {args.checkpoint}', load_checkpoint, model, args.checkpoint, hint=hint)
    return attempt(f'--device {args.device}', model.to, args.device).eval()


def _load_run(args: argparse.Namespace) -> Any:
    """The model of a train.py checkpoint; sets `args.model` to its name."""
    if args.checkpoint and args.model_kwargs:
        raise Refused(f'argument {kwargs_argument(args)}: needs --model NAME, too')
    if not args.checkpoint:
        raise Refused("argument --model: it takes a name; only --checkpoint alone, of timm's train.py, needs none")
    hint = 'If it holds only weights, name the model: --model NAME, --model-kwargs KEY=VALUE'
    run = attempt(f'--checkpoint {args.checkpoint}', read_run, Path(args.checkpoint), hint=hint)
    if not run.model.pretrained_cfg.get('label_names'):
        run.model.pretrained_cfg['label_names'] = attempt('--checkpoint: class names', run.class_names)
    args.model = run.model.pretrained_cfg['architecture']
    return run.model


def _create(args: argparse.Namespace, pretrained: bool, defaults: dict[str, Any]) -> nn.Module:
    """The model. An error is that of --model-kwargs where there is a model without them."""
    given = dict(args.model_kwargs)
    try:
        return create_model(args.model, pretrained, {**defaults, **given})
    except Exception as error:
        of_kwargs = given and not isinstance(error, OSError) and _is_made(args.model, pretrained, defaults)
        no_file = pretrained and isinstance(error, OSError) and not args.model.startswith(FROM_CONFIG)
        hint = 'Without the trained weights: --checkpoint FILE, or --no-pretrained' if no_file else ''
        raise refusal(kwargs_argument(args) if of_kwargs else f'--model {args.model}', error, hint) from error


def _is_made(name: str, pretrained: bool, kwargs: dict[str, Any]) -> bool:
    with suppress(Exception):
        create_model(name, pretrained, kwargs)
        return True
    return False


def kwargs_argument(args: argparse.Namespace) -> str:
    """--model-kwargs as it was given."""
    return ' '.join(['--model-kwargs', *(f'{key}={value}' for key, value in args.model_kwargs)])


def described(args: argparse.Namespace) -> str:
    """--model, and --model-kwargs where there are some, as they were given."""
    return f'--model {args.model}' + (f' {kwargs_argument(args)}' if args.model_kwargs else '')


def create_model(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=pretrained, **kwargs)


def check_known(name: str) -> None:
    if unknown(name):
        raise Refused(f'argument --model: {unknown(name)}')


def _check_name(name: str, pretrained: bool) -> None:
    check_known(name)
    arch = name.partition('.')[0]
    if pretrained and weights_of(name) is None and arch not in zoo_names():  # their error says how to train them
        raise Refused(f'argument --model: {name} has no trained weights; give --checkpoint FILE or --no-pretrained')


def is_plain(name: str) -> bool:
    """Whether that is the name of a model without transformers, of which there is one with them."""
    arch = name.partition('.')[0]
    return not name.startswith(FROM_CONFIG) and timm.is_model(f'stn_{arch}') and not arch.startswith('stn_')


def check_transformers(name: str) -> None:
    if is_plain(name):
        raise Refused(f'argument --model: {name} has no spatial transformer; stn_{name} has')


def list_arguments(add: Callable[..., Any]) -> None:
    add('filter', nargs='?', default='*', metavar='FILTER', help="part of a name, or a pattern like '*resnet50*'")
    add('--pretrained', action='store_true', help='only models with weights, with their tags')
    add('--own', action='store_true', help='only models with trained transformers, with the location of their weights')


def list_models(args: argparse.Namespace) -> int:
    names = zoo_names() if args.own else timm.list_models('stn_*', pretrained=args.pretrained)
    pattern = args.filter if any(c in args.filter for c in '*?[') else f'*{args.filter}*'
    found = [n for n in names if fnmatch(n, pattern) or fnmatch(n, f'stn_{pattern}')]
    if args.own and args.pretrained:
        found = [n for n in found if weights_of(n)]
    if not found:
        raise Refused(f'argument FILTER: no model matches {args.filter!r}{nearest(args.filter, names)}')
    for name in found:
        print(f'{name:<20} {weights_of(name) or "not trained yet"}' if args.own else name)
    return 0
