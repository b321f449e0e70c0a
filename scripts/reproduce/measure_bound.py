#!/usr/bin/env python
"""Measures what the best choice of a crop could give on birds that fill their pictures, for docs/when_it_pays.md.

    python scripts/reproduce/measure_bound.py --run runs/finished/turned-birds-upright-plain-0 --data DIR

RUN is a finished run of tf_efficientnet_lite0 at 112 x 112 (`reproduce.py turned-birds --model plain`), which random
crops have taught to answer for parts of a bird. It answers for 28 crops of each test image, each seen at 112 x 112: the
whole, and squares of 0.85, 0.7 and 0.55 of the side at nine places. The line `birds-bound-0` of
model_cards/results.jsonl gets the accuracies of: the whole; the crop that it is most certain of; the crop where the
published `stn_tf_efficientnet_lite0_cub2010` responds, asked at the full 224 x 224; and how often any of the 28 answers
rightly, which no choice among them can exceed. Images are those of every fifth row, unless `--every 1`.
"""
import argparse
import json
from pathlib import Path

import timm
import torch
from checkout import ROOT
from gpu_jobs import RECORD, alone_with
from pays_page import BOUND
from records import read, replace
from safetensors.torch import load_file
from torch import Tensor

import timm_stn
from timm_stn.data.birds import load_birds
from timm_stn.geometry.shrink import shrink

SIDE = 112
SCALES, PLACES = (0.85, 0.7, 0.55), (-1.0, 0.0, 1.0)


def crops() -> Tensor:
    """Matrices (28, 2, 3) of the whole, and of squares inside."""
    found = [(1.0, 0.0, 0.0)]
    found += [(s, x * (1 - s), y * (1 - s)) for s in SCALES for x in PLACES for y in PLACES]
    return torch.tensor([[[s, 0.0, x], [0.0, s, y]] for s, x, y in found])


def answers(net: torch.nn.Module, images: Tensor, theta: Tensor) -> Tensor:
    """Logarithms of probabilities (N, K, classes) of K crops (K, 2, 3), or (N, K, 2, 3), of images (N, 3, S, S)."""
    theta = theta.expand(len(images), *theta.shape[-3:])
    found = [net(timm_stn.warp(images, theta[:, k], size=SIDE, antialias=True)) for k in range(theta.shape[1])]
    return torch.stack(found, 1).log_softmax(2)


@torch.inference_mode()
def measure(net: torch.nn.Module, looking: torch.nn.Module, photos: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracies in percent, of photographs (N, 3, 224, 224) in [0, 1]."""
    right: dict[str, list[Tensor]] = {'whole': [], 'surest': [], 'pointed_at': [], 'any': []}
    for x, y in zip(photos.split(50), labels.split(50), strict=True):
        images = (x.float() / 255 - 0.5) / 0.5
        logits = answers(net, images, crops())  # (N, 28, classes)
        surest = logits.amax(2).argmax(1)
        each = torch.arange(len(y))
        right['whole'].append(net(shrink(images, (SIDE, SIDE))).argmax(1) == y)
        right['surest'].append(logits[each, surest].argmax(1) == y)
        right['any'].append((logits.argmax(2) == y[:, None]).any(1))
        right['pointed_at'].append(answers(net, images, looking.look(images)[1][:, None])[:, 0].argmax(1) == y)
    return {name: 100 * float(torch.cat(parts).double().mean()) for name, parts in right.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', type=Path, required=True, help='folder of a finished run')
    parser.add_argument('--data', help='(default: the environment variable TIMM_STN_DATA)')
    parser.add_argument('--every', type=int, default=5, metavar='N', help='images (default: every fifth)')
    parser.add_argument('--root', type=Path, default=ROOT, metavar='DIR', help='where model_cards/ is')
    args = parser.parse_args(argv)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=200)
    net.load_state_dict(load_file(args.run / 'model.safetensors'))
    looking = timm.create_model('stn_tf_efficientnet_lite0_cub2010', pretrained=True)
    photos, labels = (part[::args.every] for part in load_birds(args.data, 'test'))
    found = measure(net.eval(), looking.eval(), photos, labels)
    line = {'name': BOUND, 'args': {'every': args.every}, 'images': len(labels), 'device': 'cpu', 'accuracies': found,
            'versions': {'torch': torch.__version__, 'timm': timm.__version__}}
    with alone_with(args.root / RECORD):
        replace(args.root / RECORD, [*(each for each in read(args.root / RECORD) if each['name'] != BOUND), line])
    print(json.dumps(line))


if __name__ == '__main__':
    main()
