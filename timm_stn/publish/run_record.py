"""A run of timm's train.py, read back from its files."""
import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml
from timm.data import resolve_data_config
from timm.models import clean_state_dict

from ..geometry.layout import size_that_enters
from ..names.brief import short
from ..names.provenance import OF_WEIGHTS, TESTED
from ..names.weights import options_allowed
from ..view.images import find_images, folder_name, in_turn
from .class_names import class_names

__all__ = ['Run', 'network_of', 'read_run']


class Run(NamedTuple):
    """A network and its training run."""
    model: Any
    args: dict[str, Any] = {}  # options of train.py
    epoch: int | None = None
    metrics: dict[str, float] = {}  # of these weights on the validation split: loss, top1, top5
    averaged: bool = False  # the weights are the run's moving average

    def images(self, count: int) -> list[Path]:
        """Validation images of the run, of ``count`` classes first, if they are still in its folder."""
        root = self.args.get('data_dir') or self.args.get('data')
        folder = Path(root) / str(self.args.get('val_split') or 'validation') if root else None
        found = list(find_images(folder, [])) if folder and folder.is_dir() else []
        return [found[i] for i in in_turn([folder_name(path) for path in found], count)]

    def class_names(self) -> list[str]:
        """Names of its classes in the order of the classifier, from its folder of images; [] if they are not known."""
        return class_names(self.args, self.model.num_classes)


def read_run(path: Path) -> Run:
    """The network of a checkpoint of ``train.py`` (with EMA weights, if it has them) and its results.

    Raises:
        ValueError: It is no such checkpoint, it holds other objects than tensors and plain options, or its weights do
            not fit its network.
    """
    try:
        with options_allowed():
            held = torch.load(path, map_location='cpu', weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of many types, where it is no pickle
        raise ValueError(f'model: {str(path)!r} is no checkpoint that can be read safely{_unsafe(path)}.') from error
    args = dict(vars(held.get('args') or argparse.Namespace())) if isinstance(held, dict) else {}
    if not isinstance(held, dict) or 'state_dict' not in held or not (args.get('model') or held.get('arch')):
        raise ValueError(f"model: {str(path)!r} is no checkpoint of timm's train.py, it lacks state_dict or arch: load "
                         'the weights into a model and push it with timm_stn.push_to_hub(model, ...).')
    averaged = held.get('state_dict_ema') is not None
    model = network_of(args, held.get('arch'))
    try:
        model.load_state_dict(clean_state_dict(held['state_dict_ema' if averaged else 'state_dict']))
    except RuntimeError as error:
        text = f'model: the weights of {str(path)!r} do not fit {_name(held, args)}: {short(error)}'
        raise ValueError(text) from error
    model.cfg_is_of_weights = True
    measured = not (averaged and args.get('model_ema_force_cpu'))  # train.py then measures the other weights
    metrics = _metrics(path.parent, held, args) if measured else {}
    return Run(model, {**args, **_options(path.parent, args)}, held.get('epoch'), metrics, averaged)


def network_of(args: dict[str, Any], arch: str | None = None) -> Any:
    """The untrained network of a run, whose cfg says how train.py read images.

    Args:
        args: Options of train.py, as in its checkpoints.
        arch: The network's name, if they lack it.

    Raises:
        ValueError: It cannot be made.
    """
    model = _create({'arch': arch}, args)
    cfg = _cfg_of(model, args)
    model.pretrained_cfg.clear()
    model.pretrained_cfg.update(cfg)
    return model


def _unsafe(path: Path) -> str:
    """Text for the message: the objects in a checkpoint that are neither tensors nor plain data."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {'argparse.Namespace'}
    except Exception:  # it is no checkpoint at all
        return ''
    return short(f': it holds {", ".join(sorted(names))}') if names else ''


def _name(held: dict[str, Any], args: dict[str, Any]) -> str:
    return str(args.get('model') or held.get('arch'))


def _channels(args: dict[str, Any]) -> int:
    return int(args.get('in_chans') or (args.get('input_size') or [3])[0])


def _cfg_of(model: Any, args: dict[str, Any]) -> dict[str, Any]:
    """The network's cfg for the run's weights: how train.py read images; what holds still of those it began with."""
    begun = args.get('pretrained') and not (args.get('initial_checkpoint') or args.get('pretrained_path'))
    strange = {*TESTED, 'pool_size', *(('label_names', 'label_descriptions', 'label_offset') if begun else OF_WEIGHTS)}
    data, channels = resolve_data_config(args, model=model), _channels(args)
    data.update(input_size=(channels, *data['input_size'][1:]), num_classes=model.num_classes)
    for key in ('mean', 'std'):  # as timm's loaders do
        if len(data[key]) not in (1, channels):
            data[key] = (sum(data[key]) / len(data[key]),) * channels
    return {**{k: v for k, v in model.pretrained_cfg.items() if k not in strange}, **data}


def _create(held: dict[str, Any], args: dict[str, Any]) -> Any:
    """The network as train.py creates it, without options that matter only in training.

    With ``stn_size`` it takes images of any size, and train.py may have given it others than it was made for: then it
    is made for these, of the same layers.
    """
    given = dict(num_classes=args.get('num_classes'), global_pool=args.get('gp'), bn_eps=args.get('bn_eps'))
    given.update(args.get('model_kwargs') or {}, in_chans=_channels(args))
    try:
        model = timm.create_model(_name(held, args), **given)
        size = tuple(resolve_data_config(args, model=model)['input_size'][1:])
        made: dict[str, Any] = getattr(model, '_model_args', {})
        if made.get('stn_size') and size != size_that_enters(model)[1:]:
            model = timm.create_model(_name(held, args), **{**given, **made, 'img_size': size})
        return model
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'model: the network of the checkpoint cannot be made: {short(error)}') from error


def _options(folder: Path, args: dict[str, Any]) -> dict[str, Any]:
    """The options in args.yaml, as given on the command line; {} if args.yaml belongs to another run."""
    try:
        options = yaml.safe_load((folder / 'args.yaml').read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return options if isinstance(options, dict) and options.get('model') == args.get('model') else {}


def _metrics(folder: Path, held: dict[str, Any], args: dict[str, Any]) -> dict[str, float]:
    """The epoch's metrics in summary.csv if they agree with the checkpoint's metric; else only that metric."""
    key, metric = args.get('eval_metric') or 'top1', held.get('metric')
    if metric is None:
        return {}
    try:
        with (folder / 'summary.csv').open(newline='') as file:
            for row in csv.DictReader(file):
                if row['epoch'] == str(held.get('epoch')) and float(row[f'eval_{key}']) == metric:
                    return {k[5:]: float(v) for k, v in row.items() if k.startswith('eval_')}
    except (OSError, KeyError, ValueError, TypeError):
        pass
    return {str(key): float(metric)}
