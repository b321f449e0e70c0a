#!/usr/bin/env python
"""Print the file of a ResNet-50 for scripts/train_cub.sh to start from; one of timm's is fetched from the Hub.

    python scripts/train/cub_weights.py resnet50.tv_in1k    # or a file

Before the file come the first twelve digits of its SHA-256. Both it and the device are tried first.
"""
import argparse
import hashlib
import warnings
from pathlib import Path

import huggingface_hub
import timm
import torch
from timm.models import load_state_dict

from timm_stn.names.weights import options_allowed

ARCHITECTURE = 'resnet50'
FILES = ('.safetensors', '.pth', '.pt', '.tar', '.bin', '.ckpt', '.pkl', '.npz')


def find(weights: str) -> Path:
    """A file, or that of a name of timm's with a tag.

    Raises:
        ValueError: It is neither, or the Hub does not give it.
    """
    if Path(weights).is_file():
        return Path(weights).absolute()  # links kept: the names of files in caches have no suffix
    if '/' in weights or weights.endswith(FILES):
        raise ValueError(f'WEIGHTS={weights}: no such file')
    known = timm.list_models(f'{ARCHITECTURE}.*', pretrained=True)
    if weights not in known:
        raise ValueError(f'WEIGHTS takes a file or one of {", ".join(known)}, got {weights}')
    repo = str(timm.get_pretrained_cfg(weights).hf_hub_id)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, 'model.safetensors'))
    except Exception as error:  # of many types: of the Hub, of httpx, of the disk
        raise ValueError(f'WEIGHTS={weights}: {repo} cannot be fetched ({_short(error)}); try again, or WEIGHTS=FILE'
                         ) from error


def check_file(file: Path) -> None:
    """That all of a ResNet-50 is in a file, but for its classifier; it may be the backbone of a network of ours.

    Raises:
        ValueError: It cannot be read, or something is missing or has another shape.
    """
    try:
        with options_allowed(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the error says it
            found = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # of many types: of safetensors, of pickle, of zip files
        raise ValueError(f'WEIGHTS={file}: cannot be read as a checkpoint ({_short(error)})') from error
    with torch.device('meta'):
        needed = timm.create_model(ARCHITECTURE, num_classes=0).state_dict()
    have = {name.removeprefix('backbone.'): value.shape for name, value in found.items()}
    for name, value in needed.items():
        if not name.endswith('num_batches_tracked') and have.get(name) != value.shape:
            what = f'is {tuple(have[name])}, not {tuple(value.shape)}' if name in have else 'is missing'
            raise ValueError(f'WEIGHTS={file}: holds no ResNet-50 of timm\'s: {name} {what}')


def check_device(device: str) -> None:
    """That torch can use a device.

    Raises:
        ValueError: It cannot.
    """
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'DEVICE={device}, but torch sees no GPU here; DEVICE=cpu does without')
    try:
        known = torch.device(device)
    except RuntimeError:  # lists all that torch knows
        raise ValueError(f'DEVICE takes cuda, cuda:1, cpu or another device of torch\'s, got {device}') from None
    try:
        torch.ones(1, device=known).item()
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: as the device's kind has it
        raise ValueError(f'DEVICE={device} cannot be used here ({_short(error)})') from error


def digest(file: Path) -> str:
    """The first twelve digits of its SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _short(error: Exception) -> str:
    """An error in a line."""
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', metavar='WEIGHTS', help='a file, or a name of timm with its tag')
    parser.add_argument('--device', default='cpu', help='to train on; default: %(default)s')
    args = parser.parse_args()
    try:
        check_device(args.device)
        file = find(args.weights)
        check_file(file)
    except ValueError as error:
        parser.exit(2, f'{error}\n')
    print(digest(file), file)


if __name__ == '__main__':
    main()
