"""Writes a network's two files of a Hub repository: weights, and a config that timm and transformers build it from."""
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models import save_for_hf

from ..names.weights import WEIGHTS
from .half import halved

__all__ = ['CONFIG', 'save_network']

CONFIG = 'config.json'


def save_network(model: Any, folder: Path, half: bool = False) -> None:
    """Write ``model.safetensors`` and ``config.json`` to a folder; ``half``: weights in half precision.

    transformers passes the number of classes itself, beside ``model_args``, and reads names of classes at the top of
    the config, where timm reads them, too.
    """
    args = {**getattr(model, '_model_args', {}), 'num_classes': model.num_classes}
    names = model.pretrained_cfg.get('label_names')
    save_for_hf(model, str(folder), model_args=args, safe_serialization=True)
    if half:
        weights = {name: value.contiguous() for name, value in halved(model.state_dict()).items()}
        save_file(weights, folder / WEIGHTS, metadata={'format': 'pt'})
    file = folder / CONFIG
    config = json.loads(file.read_text())
    del config['model_args']['num_classes']
    config['pretrained_cfg'].pop('label_names', None)
    if names and len(names) == model.num_classes:
        config = {'architecture': config.pop('architecture'), 'label_names': names, **config}
    file.write_text(json.dumps(config, indent=2))
