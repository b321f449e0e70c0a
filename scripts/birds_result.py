#!/usr/bin/env python
"""What a finished run of scripts/train_birds.sh is worth: RUN/result.json.

    python scripts/birds_result.py RUN

The optimizer goes from its last checkpoint, which is then a third as large, and as good to read the network from.
Multiply-adds are those of one image: torch's FlopCounterMode counts convolutions and products, and every value that
is sampled or shrunk adds eight.
"""
import argparse
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from whole_file import write_text, write_whole

import timm_stn
from timm_stn.publish.run_record import read_run


def summary(run: Path) -> dict[str, float] | None:
    """The last line of a finished run's summary.csv."""
    if not (run / 'summary.csv').is_file() or not (run / 'last.pth.tar').is_file():
        return None
    epochs = int(re.search(r'^epochs: (\d+)$', (run / 'args.yaml').read_text(), re.MULTILINE)[1])
    rows = list(csv.DictReader((run / 'summary.csv').open(newline='')))
    last = {k: float(v) for k, v in rows[-1].items() if v} if rows else {}
    return last if last.get('epoch') == epochs - 1 else None


def multiply_adds(model: Any, size: tuple[int, int, int]) -> float:
    """Of one image, in billions."""
    image, values = torch.zeros(1, *size), 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    if hasattr(model, 'look'):
        with torch.no_grad():
            values = model.look(image)[0].numel() + size[0] * glance(model) ** 2
    return (counter.get_total_flops() / 2 + 8 * values) / 1e9


def glance(model: Any) -> int:
    """Side of the image whose features say where to look."""
    args = model._model_args
    side = args['stn_localization_size'] or args['stn_size']
    return side if isinstance(side, int) else side[0]


def result(run: Path) -> dict[str, Any]:
    found = summary(run)
    if found is None:
        raise SystemExit(f'{run} is no finished run of scripts/train_birds.sh: no last epoch in its summary.csv.')
    model, args, epoch, *_ = read_run(run / 'last.pth.tar')
    if epoch != found['epoch']:
        raise SystemExit(f'{run}: the checkpoint is of epoch {epoch}, the last figures are of {found["epoch"]:.0f}.')
    device = str(args['device'])
    return {
        'args': {k: v for k, v in args.items() if v not in (None, '', [], {}) and v is not False},
        'top1': found['eval_top1'], 'top5': found['eval_top5'], 'train_loss': found['train_loss'],
        'multiply_adds': multiply_adds(model, tuple(model.pretrained_cfg['input_size'])),
        'parameters': sum(p.numel() for p in model.parameters()),
        'device': torch.cuda.get_device_name(device) if device.startswith('cuda') else device,
        'versions': {'torch': torch.__version__, 'timm': timm.__version__, 'timm_stn': timm_stn.__version__}}


def main() -> None:
    run = Path(sys.argv[1])
    found = json.dumps(result(run), indent=2, default=str)
    with torch.serialization.safe_globals([argparse.Namespace]):
        held = torch.load(run / 'last.pth.tar', map_location='cpu', weights_only=True)
    slim = {k: v for k, v in held.items() if k != 'optimizer'}
    write_whole(run / 'last.pth.tar', lambda path: torch.save(slim, path))
    write_text(run / 'result.json', found + '\n')


if __name__ == '__main__':
    main()
