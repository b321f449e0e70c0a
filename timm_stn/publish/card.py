"""Writes the model card (README.md) of a Hub repository, from a run of timm's ``train.py``."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..network.arguments import DEFAULTS
from ..version import __version__
from .run_record import Run

__all__ = ['write_card']

MACHINE = {  # options of the machine, not of the training
    'config', 'data', 'data_dir', 'output', 'experiment', 'class_map', 'log_wandb', 'wandb_project', 'wandb_tags',
    'wandb_resume_id', 'local_rank', 'rank', 'world_size', 'distributed', 'workers', 'pin_mem', 'log_interval',
    'recovery_interval', 'checkpoint_hist', 'device', 'device_modules', 'prefetcher', 'no_prefetcher',
    'model', 'resume'}
FILES = ('initial_checkpoint', 'pretrained_path')  # the card has only the file name of these
HALF = ' The file has weights in half precision; loaded, they are float32.'
METRICS = dict(top1=('accuracy', 'Top-1 accuracy'), top5=('top_5_accuracy', 'Top-5 accuracy'))


def write_card(
        model: Any,
        at: str,
        run: Run,
        license: str | None = None,
        picture: str | None = None,
        half: bool = False,
) -> str:
    """The text of a repository's README.md.

    Args:
        model: The published network.
        at: ``ORG/NAME``, with ``@BRANCH`` if the branch is not ``main``.
        run: Its training run.
        license: License of the weights. Default: that of the model's cfg, or else ``unknown``.
        picture: File name of the picture beside the card.
        half: Whether the weights are in half precision.
    """
    name = at.partition('@')[0].partition('/')[2]
    known = model.pretrained_cfg.get('license')
    of_start = ', as that of the weights that its training started from' if run.args and known and not license else ''
    license = license or known or 'unknown'
    data = ModelCardData(
        license=license, library_name='timm', pipeline_tag='image-classification', model_name=name,
        tags=['image-classification', 'timm', 'timm-stn', 'spatial-transformer'],
        eval_results=_results(run, model.num_classes) or None)
    parts = [f'---\n{data.to_yaml()}\n---\n# {name}', _what(model) + (HALF if half else ''), _usage(at)]
    parts += [_looks(model, picture), _measured(run, model.num_classes), _recipe(run)]
    parts += [f'## Licence\n\nWeights: {license}{of_start}.']
    return '\n\n'.join(part for part in parts if part) + '\n'


def _dataset(args: dict[str, Any]) -> tuple[str, str]:
    """Type and name of the data set, without its folder."""
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
            ', with spatial transformers (Jaderberg et al. 2015, arXiv:1506.02025): it selects and warps a part of the '
            'image, or of its features, before it classifies')
    size = ' x '.join(map(str, cfg['input_size']))
    return (f'{what}.\n\nInput: {size}, mean {_plain(cfg["mean"])}, std {_plain(cfg["std"])}, {cfg["interpolation"]} '
            f'interpolation, crop {cfg["crop_pct"]}.')


def _plain(values: Sequence[float]) -> str:
    return ', '.join(f'{v:g}' for v in values)


def _changed(model: Any) -> dict[str, Any]:
    """The stn_ arguments that differ from the defaults."""
    args = model._model_args
    return {k: args[k] for k, v in DEFAULTS.items() if k in args and args[k] != v and k != 'stn_stages'}


def _usage(at: str) -> str:
    return f'''## Use

```python
import timm, timm_stn  # timm_stn registers the stn_ architectures; without it timm raises 'Unknown model'

model = timm.create_model('hf-hub:{at}', pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config)  # for a PIL image
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
    return (f'## Results\n\n| | |\n| --- | --- |\n{rows}\n\ntimm\'s `train.py` measured {weights} after epoch '
            f'{run.epoch}, on the split `{split}` of {data}. {_selected(run)}')


def _selected(run: Run) -> str:
    longer = run.args.get('cooldown_epochs') or run.args.get('warmup_prefix')  # than its epochs
    if not longer and run.epoch is not None and run.epoch == int(run.args.get('epochs') or 0) - 1:
        return 'It is the last epoch of the training.'
    return 'The same split may have selected the epoch.'


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
