"""A run of timm's train.py, read back from its files."""
import argparse
import csv
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml
from timm.data import resolve_data_config
from timm.models import clean_state_dict

from ..names.weights import options_allowed
from ..view.images import find_images, folder_name, in_turn, natural

__all__ = ['Run', 'read_run']


class Run(NamedTuple):
    """A network and its training run."""
    model: Any
    args: dict[str, Any] = {}  # options of train.py
    epoch: int | None = None
    metrics: dict[str, float] = {}  # of these weights on the validation split: loss, top1, top5
    averaged: bool = False  # the weights are the run's moving average

    def images(self, count: int) -> list[Path]:
        """Validation images of the run, of ``count`` classes first, if they are still in its folder."""
        folder = self._folder('val_split', 'validation')
        found = list(find_images(folder, [])) if folder and folder.is_dir() else []
        return [found[i] for i in in_turn([folder_name(path) for path in found], count)]

    def class_names(self) -> list[str]:
        """Names of the classes in the order of the classifier: from the run's class map, else its training folders.

        They are [] if these are not there any more, or not as many as the network's classes.
        """
        folder, names = self._folder('train_split', 'train'), []
        if folder is None or '/' in str(self.args.get('dataset') or ''):  # then the data set is no folder of images
            return []
        given = str(self.args.get('class_map') or '')
        if given.endswith('.txt'):
            file = next((path for path in (Path(given), folder / given) if path.is_file()), None)
            names = [line.strip() for line in file.read_text('utf-8').splitlines()] if file else []
        elif not given and folder.is_dir():
            found = {folder_name(path) for path in find_images(folder, []) if path.parent != folder}
            names = sorted(found, key=natural)
        return names if len(names) == self.model.num_classes else []

    def _folder(self, option: str, default: str) -> Path | None:
        root = self.args.get('data_dir') or self.args.get('data')
        return Path(root) / str(self.args.get(option) or default) if root else None


def read_run(path: Path) -> Run:
    """The network of a checkpoint of ``train.py`` (with EMA weights, if it has them) and its results.

    Raises:
        ValueError: It is no such checkpoint, or it holds other objects than tensors and plain options.
    """
    try:
        with options_allowed():
            held = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f'model: {str(path)!r} is no checkpoint that can be read safely{_unsafe(path)}.') from error
    args = dict(vars(held.get('args') or argparse.Namespace())) if isinstance(held, dict) else {}
    if not isinstance(held, dict) or 'state_dict' not in held or not (args.get('model') or held.get('arch')):
        raise ValueError(f"model: {str(path)!r} is no checkpoint of timm's train.py, it lacks state_dict or arch: load "
                         'the weights into a model and push it with timm_stn.push_to_hub(model, ...).')
    averaged = held.get('state_dict_ema') is not None
    model = _create(held, args)
    model.load_state_dict(clean_state_dict(held['state_dict_ema' if averaged else 'state_dict']))
    model.pretrained_cfg.update(resolve_data_config(args, model=model))
    measured = not (averaged and args.get('model_ema_force_cpu'))  # train.py then measures the other weights
    metrics = _metrics(path.parent, held, args) if measured else {}
    return Run(model, {**args, **_options(path.parent, args)}, held.get('epoch'), metrics, averaged)


def _unsafe(path: Path) -> str:
    """Text for the message: the objects in a checkpoint that are neither tensors nor plain data."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {'argparse.Namespace'}
    except Exception:  # it is no checkpoint at all
        return ''
    return f': it holds {", ".join(sorted(names))}' if names else ''


def _create(held: dict[str, Any], args: dict[str, Any]) -> Any:
    """The network as train.py creates it, without options that matter only in training."""
    channels = args.get('in_chans') or (args.get('input_size') or [3])[0]
    given = dict(num_classes=args.get('num_classes'), global_pool=args.get('gp'), bn_eps=args.get('bn_eps'))
    given.update(args.get('model_kwargs') or {}, in_chans=channels)
    try:
        return timm.create_model(args.get('model') or held['arch'], **given)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'model: the network of the checkpoint cannot be made: {error}') from error


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
