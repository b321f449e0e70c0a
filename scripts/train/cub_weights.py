#!/usr/bin/env python
"""Print the file of a ResNet-50 for scripts/train_cub.sh to start from; one of timm's is fetched from the Hub.

    python scripts/train/cub_weights.py resnet50.tv_in1k    # or a file
"""
import argparse
from pathlib import Path

import huggingface_hub
import timm

ARCHITECTURE = 'resnet50'


def find(weights: str) -> Path:
    """A file, or that of a name of timm's with a tag.

    Raises:
        ValueError: It is neither, or the Hub does not give it.
    """
    if Path(weights).is_file():
        return Path(weights).resolve()
    known = timm.list_models(f'{ARCHITECTURE}.*', pretrained=True)
    if weights not in known:
        raise ValueError(f'WEIGHTS takes a file or one of {", ".join(known)}, got {weights}')
    repo = str(timm.get_pretrained_cfg(weights).hf_hub_id)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, 'model.safetensors'))
    except Exception as error:  # of many types: of the Hub, of httpx, of the disk
        text = str(error).splitlines() or ['']
        raise ValueError(f'WEIGHTS={weights}: {repo} cannot be fetched: {type(error).__name__}: {text[0]}') from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', metavar='WEIGHTS', help='a file, or a name of timm with its tag')
    try:
        print(find(parser.parse_args().weights))
    except ValueError as error:
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main()
