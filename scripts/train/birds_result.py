#!/usr/bin/env python
"""Write the results of a finished run of scripts/train/train_birds.sh or scripts/train_cub.sh: RUN/result.json.

    python scripts/train/birds_result.py RUN

It names no folders of this machine. Removes the optimizer state from the last checkpoint, which makes it a third as
large. Multiply-adds are those of one image, counted by `timm_stn.view.cost`.
"""
import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

import timm
import torch

import timm_stn
from timm_stn.publish.run_record import read_run
from timm_stn.view.cost import multiply_adds
from timm_stn.whole_file import write_text, write_whole

PLACES = ('data_dir', 'output', 'experiment', 'resume', 'pretrained_path')  # options of train.py that name folders


def summary(run: Path) -> dict[str, float] | None:
    """The last line of a finished run's summary.csv."""
    if not (run / 'summary.csv').is_file() or not (run / 'last.pth.tar').is_file():
        return None
    epochs = int(re.search(r'^epochs: (\d+)$', (run / 'args.yaml').read_text(), re.MULTILINE)[1])
    rows = list(csv.DictReader((run / 'summary.csv').open(newline='')))
    last = {k: float(v) for k, v in rows[-1].items() if v} if rows else {}
    return last if last.get('epoch') == epochs - 1 else None


def result(run: Path, **more: Any) -> dict[str, Any]:
    """What goes into the file; ``more`` is what the caller knows, where it is known."""
    found = summary(run)
    if found is None:
        raise SystemExit(f"{run} is no finished run of timm's train.py: no last epoch in its summary.csv.")
    model, args, epoch, *_ = read_run(run / 'last.pth.tar')
    if epoch != found['epoch']:
        raise SystemExit(f'{run}: the checkpoint is of epoch {epoch}, the last figures are of {found["epoch"]:.0f}.')
    device = str(args['device'])
    empty = (None, '', [], {})
    return {
        'args': {k: v for k, v in args.items() if v not in empty and v is not False and k not in PLACES},
        'top1': found['eval_top1'], 'top5': found['eval_top5'], 'train_loss': found['train_loss'],
        'multiply_adds': multiply_adds(model, tuple(model.pretrained_cfg['input_size'])),
        'parameters': sum(p.numel() for p in model.parameters()),
        'device': torch.cuda.get_device_name(device) if device.startswith('cuda') else device,
        'versions': {'torch': torch.__version__, 'timm': timm.__version__, 'timm_stn': timm_stn.__version__},
        **{k: v for k, v in more.items() if v is not None}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, metavar='RUN', help='its folder')
    parser.add_argument('--weights', metavar='NAME', help='what it started from')
    parser.add_argument('--seconds-per-epoch', type=float, metavar='S', help='as measured, validation included')
    given = vars(parser.parse_args())
    run = given.pop('run')
    found = json.dumps(result(run, **given), indent=2, default=str)
    with torch.serialization.safe_globals([argparse.Namespace]):
        held = torch.load(run / 'last.pth.tar', map_location='cpu', weights_only=True)
    slim = {k: v for k, v in held.items() if k != 'optimizer'}
    write_whole(run / 'last.pth.tar', lambda path: torch.save(slim, path))
    write_text(run / 'result.json', found + '\n')


if __name__ == '__main__':
    main()
