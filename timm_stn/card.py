"""A run of timm's ``train.py``, read from its checkpoint, and the card that tells of it."""
import argparse
import csv
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from PIL import Image
from timm.data import resolve_data_config
from timm.models import clean_state_dict

from .arguments import DEFAULTS
from .version import __version__

__all__ = ['Run', 'read_run', 'write_card']

MACHINE = {  # options that say where a run was, not what it was
    'config', 'data', 'data_dir', 'output', 'experiment', 'class_map', 'log_wandb', 'wandb_project', 'wandb_tags',
    'wandb_resume_id', 'local_rank', 'rank', 'world_size', 'distributed', 'workers', 'pin_mem', 'log_interval',
    'recovery_interval', 'checkpoint_hist', 'device', 'device_modules', 'prefetcher', 'no_prefetcher',
    'model', 'resume'}
FILES = ('initial_checkpoint', 'pretrained_path')  # of which only the name is told
METRICS = dict(top1=('accuracy', 'Top-1 accuracy'), top5=('top_5_accuracy', 'Top-5 accuracy'))
SHOWN = 6  # images in the card's picture


class Run(NamedTuple):
    """A network, and what is known of its training."""
    model: Any
    args: dict[str, Any] = {}  # options of train.py
    epoch: int | None = None
    metrics: dict[str, float] = {}  # of the weights, on the validation split: loss, top1, top5
    averaged: bool = False  # the weights are the run's moving average

    def images(self) -> list[Path]:
        """Some validation images of the run, one a class, if they are still where it found them."""
        root = self.args.get('data_dir') or self.args.get('data')
        folder = Path(root) / str(self.args.get('val_split') or 'validation') if root else None
        if folder is None or not folder.is_dir():
            return []
        known = Image.registered_extensions()
        classes = sorted(p for p in folder.iterdir() if p.is_dir())
        found = (sorted(p for p in c.iterdir() if p.suffix.lower() in known)[:1] for c in classes)
        return [path for paths in found for path in paths][:SHOWN]


def read_run(path: Path) -> Run:
    """The network of a checkpoint of ``train.py``, with averaged weights where it has them, and its results.

    Raises:
        ValueError: It is no such checkpoint, or holds more than tensors and plain options, which is not loaded.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f'model: {str(path)!r} is no checkpoint that can be read safely{_unsafe(path)}.') from error
    args = dict(vars(held.get('args') or argparse.Namespace())) if isinstance(held, dict) else {}
    if not isinstance(held, dict) or 'state_dict' not in held or not (args.get('model') or held.get('arch')):
        raise ValueError(f"model: {str(path)!r} is no checkpoint of timm's train.py, it lacks state_dict or arch: load "
                         'such weights into a model, and push that with timm_stn.push_to_hub(model, ...).')
    averaged = held.get('state_dict_ema') is not None
    model = _create(held, args)
    model.load_state_dict(clean_state_dict(held['state_dict_ema' if averaged else 'state_dict']))
    model.pretrained_cfg.update(resolve_data_config(args, model=model))
    measured = not (averaged and args.get('model_ema_force_cpu'))  # train.py then measures the other weights
    metrics = _metrics(path.parent, held, args) if measured else {}
    return Run(model, {**args, **_options(path.parent, args)}, held.get('epoch'), metrics, averaged)


def write_card(model: Any, at: str, run: Run, license: str | None = None, picture: str | None = None) -> str:
    """The README.md of a repository.

    Args:
        model: As it is published.
        at: ``ORG/NAME``, and ``@BRANCH`` if it is another than ``main``.
        run: What is known of its training.
        license: Of the weights. Default: what the model's cfg says, or else ``unknown``.
        picture: Name of the picture beside the card.
    """
    name = at.partition('@')[0].partition('/')[2]
    license = license or model.pretrained_cfg.get('license') or 'unknown'
    data = ModelCardData(
        license=license, library_name='timm', pipeline_tag='image-classification', model_name=name,
        tags=['image-classification', 'timm', 'timm-stn', 'spatial-transformer'],
        eval_results=_results(run, model.num_classes) or None)
    parts = [f'---\n{data.to_yaml()}\n---\n# {name}', _what(model), _usage(at), _looks(model, picture)]
    parts += [_measured(run, model.num_classes), _recipe(run), f'## Licence\n\nWeights: {license}.']
    return '\n\n'.join(part for part in parts if part) + '\n'


# reading a run


def _unsafe(path: Path) -> str:
    """What a checkpoint holds that is neither a tensor nor plain data."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {'argparse.Namespace'}
    except Exception:  # it is no checkpoint at all
        return ''
    return f': it holds {", ".join(sorted(names))}' if names else ''


def _create(held: dict[str, Any], args: dict[str, Any]) -> Any:
    """The network as train.py makes it, but for what matters in training only."""
    channels = args.get('in_chans') or (args.get('input_size') or [3])[0]
    given = dict(num_classes=args.get('num_classes'), global_pool=args.get('gp'), bn_eps=args.get('bn_eps'))
    given.update(args.get('model_kwargs') or {}, in_chans=channels)
    try:
        return timm.create_model(args.get('model') or held['arch'], **given)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'model: the network of the checkpoint cannot be made: {error}') from error


def _options(folder: Path, args: dict[str, Any]) -> dict[str, Any]:
    """What args.yaml says, which are the options as they were given; nothing if it is that of another run."""
    try:
        options = yaml.safe_load((folder / 'args.yaml').read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return options if isinstance(options, dict) and options.get('model') == args.get('model') else {}


def _metrics(folder: Path, held: dict[str, Any], args: dict[str, Any]) -> dict[str, float]:
    """The checkpoint's line of summary.csv, if it agrees with the metric in the checkpoint; else that metric alone."""
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


# writing a card


def _dataset(args: dict[str, Any]) -> tuple[str, str]:
    """Type and name of the data, without the folder that it lay in."""
    root = args.get('data_dir') or args.get('data')
    scheme, _, name = str(args.get('dataset') or '').partition('/')
    if name and scheme in ('hfds', 'hfids', 'tfds', 'torch', 'wds'):
        return name, name
    return 'imagefolder', Path(root).name if root else 'images'


def _results(run: Run, num_classes: int) -> list[EvalResult]:
    kind, name = _dataset(run.args)
    return [
        EvalResult(
            task_type='image-classification', task_name='Image classification', dataset_type=kind, dataset_name=name,
            dataset_split=str(run.args.get('val_split') or 'validation'), metric_type=metric, metric_name=title,
            metric_value=round(run.metrics[key] / 100, 6))
        for key, (metric, title) in METRICS.items() if key in _told(run, num_classes)]


def _told(run: Run, num_classes: int) -> dict[str, float]:
    return {k: v for k, v in run.metrics.items() if k != 'top5' or num_classes > 5}


def _what(model: Any) -> str:
    cfg = model.pretrained_cfg
    count = sum(p.numel() for p in model.parameters())
    what = f'`{cfg["architecture"]}`, {count:,} parameters, {model.num_classes} classes'
    if hasattr(model, 'spatial_transformers'):
        what += (
            ', with spatial transformers (Jaderberg et al. 2015, arXiv:1506.02025): it looks at a part of the image, '
            'or of its features, and goes on with what it saw')
    size = ' x '.join(map(str, cfg['input_size']))
    return (f'{what}.\n\nInput: {size}, mean {_plain(cfg["mean"])}, std {_plain(cfg["std"])}, {cfg["interpolation"]} '
            f'interpolation, crop {cfg["crop_pct"]}.')


def _plain(values: Sequence[float]) -> str:
    return ', '.join(f'{v:g}' for v in values)


def _changed(model: Any) -> dict[str, Any]:
    """The stn_ arguments that are not as by default."""
    args = model._model_args
    return {k: args[k] for k, v in DEFAULTS.items() if k in args and args[k] != v and k != 'stn_stages'}


def _usage(at: str) -> str:
    return f'''## Use

```python
import timm, timm_stn  # timm_stn registers the stn_ architectures: without it timm says 'Unknown model'

model = timm.create_model('hf-hub:{at}', pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config)  # of a PIL image
```'''


def _looks(model: Any, picture: str | None) -> str:
    if not hasattr(model, 'spatial_transformers'):
        return ''
    rows = '\n'.join(
        f'| `{stage}` | {stn.transform.name} | {" x ".join(map(str, stn.size or ["as it came"]))} | {stn.glimpses} |'
        for stage, stn in model.spatial_transformers().items())
    changed = ', '.join(f'`{k}={v!r}`' for k, v in _changed(model).items())
    parts = ['## Where it looks', f'| stage | transform | output | glimpses |\n| --- | --- | --- | --- |\n{rows}']
    parts += [f'Arguments: {changed}.'] if changed else []
    parts += [f'![Where it looks, what it sees there, and what it answers]({picture})'] if picture else []
    return '\n\n'.join(parts)


def _measured(run: Run, num_classes: int) -> str:
    if not run.metrics:
        return ''
    told = _told(run, num_classes)
    rows = '\n'.join(f'| {METRICS[k][1] + ", %" if k in METRICS else k} | {v:.6g} |' for k, v in told.items())
    weights = 'the moving average of the weights' if run.averaged else 'the weights'
    split, data = run.args.get('val_split') or 'validation', _dataset(run.args)[1]
    return (f'## Results\n\n| | |\n| --- | --- |\n{rows}\n\nMeasured by timm\'s `train.py` of {weights} after epoch '
            f'{run.epoch}, on the split `{split}` of {data}; the same split may have served to choose the epoch.')


def _recipe(run: Run) -> str:
    if not run.args:
        return ''
    kept = {k: v for k, v in run.args.items() if k not in MACHINE and v not in (None, '', [], {})}
    kept = {k: Path(v).name if k in FILES else v for k, v in kept.items()}
    kept = {k: v for k, v in kept.items() if not (isinstance(v, str) and Path(v).is_absolute())}
    text = yaml.safe_dump(kept, sort_keys=True).strip()
    devices = int(run.args.get('world_size') or 1)
    on = f'On {devices} devices, with' if devices > 1 else 'With'
    return f'''## Recipe

    timm-stn train --data-dir DATA --model {run.args.get('model', '')} --config args.yaml

{on} this args.yaml. Published with timm {timm.__version__}, timm_stn {__version__}.

<details><summary>args.yaml</summary>

```yaml
{text}
```

</details>'''
