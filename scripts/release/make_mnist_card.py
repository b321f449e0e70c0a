#!/usr/bin/env python
r"""Make the Hub folder (card, config, weights) of a trained MNIST network from runs of train_mnist.py.

    python scripts/release/make_mnist_card.py stn_mnist_cnn_rts --runs runs/rts_0 runs/rts_1 \
        --baseline 'plain CNN' runs/cnn_0 runs/cnn_1

The weights are those of the first run, independent of its error. The card has the errors of all runs.
"""
import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import timm
from card_files import CARDS, HEAD, write_folder
from safetensors.torch import load_file

import timm_stn  # noqa: F401

SETS = dict(
    RTS='rotated by up to 45 degrees, scaled by 0.7 to 1.2, at a random place of a 42 x 42 canvas (section 4.1: RTS)',
    TC='at a random place of a 60 x 60 canvas with six 6 x 6 patches of other digits as clutter (paper, section 4.1)',
)
PAPER = dict(RTS='0.5 (ST-CNN affine), 0.8 (CNN)', TC='1.7 (ST-CNN), 3.5 (CNN)')
CARD = HEAD + '''datasets:
- mnist
model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      type: mnist
      name: MNIST, {kind}
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---
# {name}

The paper's MNIST CNN (conv 9x9 - pool - conv 7x7 - pool - classifier) behind an affine spatial transformer, which
crops the digit to {side} x {side} pixels (Jaderberg et al. 2015, arXiv:1506.02025).

```python
import timm, timm_stn
model = timm.create_model('{name}', pretrained=True)  # no download: the weights come with timm_stn
```

## Data

MNIST, 60,000 training digits distorted anew in every epoch: {what}.
Tested on the 10,000 test digits, distorted once with a fixed seed (`timm_stn.data.test_set('{kind}')`).

## Results

Test error in percent after the last epoch, without selection on the test set. The published weights are
those of seed {seed}.

| network | parameters | errors by seed | mean |
| --- | --- | --- | --- |
{rows}
| paper (its own training, 150,000 steps of 256) | about 400,000 | | {paper} |

Our rows use the same data, steps, optimizer and schedule. {note}

To reproduce: `timm-stn eval --model {name} --set {kind} --data MNIST_FOLDER`.

## Recipe

    {command}

and the plain CNN:

    {baseline_commands}

{hardware}, PyTorch {torch}, timm {timm}; {minutes:.0f} minutes a seed with {threads} thread(s), with other
runs at the same time.

## Licence

Weights: Apache-2.0. MNIST: Y. LeCun, C. Cortes, C. Burges, public.
'''


def result(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / 'result.json').read_text())


def row(label: str, runs: list[dict[str, Any]]) -> str:
    errors = [r['test_error'] for r in runs]
    listed = ', '.join(f'{e:.2f}' for e in errors)
    return f"| {label} | {runs[0]['parameters']:,} | {listed} | **{statistics.mean(errors):.2f}** |"


def command(args: dict[str, Any]) -> str:
    kwargs = ' '.join(f'"{k}={v}"'.replace(' ', '') for k, v in args['model_kwargs'].items())
    parts = [f"--model {args['model']}", f'--model-kwargs {kwargs}' if kwargs else '', f"--set {args['set']}"]
    parts += [f"--{k.replace('_', '-')} {args[k]}" for k in ('epochs', 'batch_size', 'lr', 'ema_decay', 'seed')]
    flags = ['--channels-last'] if args.get('channels_last') else []
    return ' '.join(['python scripts/train/train_mnist.py', *filter(None, parts), *flags, '--output RUN'])


def card(args: argparse.Namespace, side: int) -> str:
    runs = [result(r) for r in args.runs]
    baselines = {label: [result(r) for r in folders] for label, *folders in args.baseline}
    first = runs[0]
    kind = first['args']['set']
    rows = [row(f'**{args.name}**', runs), *(row(label, group) for label, group in baselines.items())]
    return CARD.format(
        name=args.name, accuracy=1 - first['test_error'] / 100, side=side,
        what=SETS[kind], kind=kind, seed=first['args']['seed'], rows='\n'.join(rows),
        paper=PAPER[kind], note=args.note, command=command(first['args']),
        baseline_commands='\n\n    '.join(command(group[0]['args']) for group in baselines.values()),
        hardware=args.hardware, minutes=sum(first['seconds']) / 60, threads=first['args']['threads'] or 'all',
        **first['versions'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='registered name of the network')
    parser.add_argument('--runs', nargs='+', required=True, help='folders of its runs; the first gives the weights')
    parser.add_argument('--baseline', nargs='+', action='append', default=[], metavar=('LABEL', 'RUN'),
                        help='what to compare with: its name in the table, then the folders of its runs')
    parser.add_argument('--hardware', default='2 cores of an Intel Xeon, no GPU')
    parser.add_argument('--note', default='', help='a sentence to add below the table')
    parser.add_argument('--output', default=CARDS)
    args = parser.parse_args()
    model = timm.create_model(args.name)
    model.load_state_dict(load_file(Path(args.runs[0]) / 'model.safetensors'))
    text = card(args, model.stn.size[0])
    write_folder(args.output, args.name, model, lambda folder: (folder / 'README.md').write_text(text))


if __name__ == '__main__':
    main()
