#!/usr/bin/env python
r"""Make the folder of a network trained on birds, as its Hub repository holds it, from the runs of train_birds.sh.

    python scripts/make_birds_card.py stn_tf_efficientnet_lite0_cub2010 --runs RUNS --best whole2 --data DATA

RUNS is the OUTPUT of scripts/train_birds.sh; the card has a row for every finished run in it, and those that it had
before for others. DATA, its data, gives the pictures. Multiply-adds are those of one image: torch's FlopCounterMode
counts convolutions and products, and every value that is sampled or shrunk adds eight.
"""
import argparse
import csv
import re
from pathlib import Path
from typing import Any

import timm
import torch
from card_files import HEAD, write_folder
from timm.models import clean_state_dict
from torch.utils.flop_counter import FlopCounterMode

from timm_stn.card import read_run
from timm_stn.picture import picture_of
from timm_stn.visualize import save_picture

NAMES = dict(
    plain112='plain, 112 x 112', plain176='plain, 176 x 176', plain224='plain, 224 x 224',
    whole2='the whole image and 2 glimpses', whole4='the whole image and 4 glimpses',
    glimpses2='2 glimpses', glimpses4='4 glimpses',
    one176='1 glimpse of 176 x 176, scale 0.85',
    zoom192='1 glimpse of 192 x 192, scale 0.5 to 1')
VARIES = '''; a glimpse is as large as what responds there.
In training it is the whole image, of which the random crop has shown a part already'''
CARD = HEAD.replace('tags:', 'base_model: timm/tf_efficientnet_lite0.in1k\ntags:') + '''model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      type: cub200-2010
      name: Caltech-UCSD Birds 200 (2010), a split of its own
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---
# {name}

tf_efficientnet_lite0, fine-tuned on 200 species of birds, behind a spatial transformer (Jaderberg et al. 2015,
arXiv:1506.02025): {what}. Where to look comes from the backbone's own features of the
whole image, shrunk to {glance} x {glance}: where they respond most (`stn_localization='{localization}'`){how}.

![Held-out birds: the image with the outlines of the glimpses, what was seen, the answer](look.jpg)

*Birds of the test set, one a class: the image with the glimpses' outlines, what the network saw, what it answered.*

```python
import timm, timm_stn
model = timm.create_model('{name}', pretrained=True).eval()
seen, theta = model.look(images)  # what it sees of normalised images (N, 3, 224, 224), and the map that made it
```

## Data

Caltech-UCSD Birds 200, the 2010 edition: 6,033 photographs at 224 x 224, 3,000 to train with (15 a class), 3,033 to
test with. This split is not the official one, so the figures compare with each other only.

## Results

Accuracy in percent on the test images after the last epoch (images shrunk to 256, middle 224), one seed. No epoch was
chosen on the test images, but which of the networks has its weights here was. Multiply-adds of one image, of all:
streams, localization, sampling.

| network | top-1 | top-5 | multiply-adds | of plain 224 | parameters |
| --- | --- | --- | --- | --- | --- |
{rows}

All are trained alike. The standard error of an accuracy is 0.9 points here. {note}

## Recipe

    TIMM_SCRIPTS=PYTORCH_IMAGE_MODELS scripts/train_birds.sh DATA WEIGHTS OUTPUT

{hardware}, PyTorch {torch}, timm {timm}.

## Licence

Weights: Apache-2.0, as those of `timm/tf_efficientnet_lite0.in1k` that they started from. The photographs are for
research use; see the data set's own terms.
'''


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


def row(run: Path, found: dict[str, float], plain: float) -> str:
    """What the table has beside the name of a run with this summary."""
    model = read_run(run / 'last.pth.tar').model
    cost = multiply_adds(model, size_of(model))
    parameters = sum(p.numel() for p in model.parameters())
    return f"{found['eval_top1']:.1f} | {found['eval_top5']:.1f} | {cost:.3f} G | {cost / plain:.0%} | {parameters:,} |"


def rows(runs: Path, best: str, card: Path) -> str:
    """The table: a line for every run that is finished, or is in the card."""
    text = card.read_text().replace('**', '') if card.is_file() else ''
    plain = multiply_adds(timm.create_model('tf_efficientnet_lite0', num_classes=200), (3, 224, 224))
    lines = []
    for run, name in NAMES.items():
        before = re.search(rf'^\| {re.escape(name)} \| (.*)$', text, re.MULTILINE)
        found = summary(runs / run)
        if found or before:
            figures = row(runs / run, found, plain) if found else before[1]
            lines.append(f'| **{name}** | {figures}' if run == best else f'| {name} | {figures}')
    return '\n'.join(lines)


def size_of(model: Any) -> tuple[int, int, int]:
    return tuple(model.pretrained_cfg['input_size'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='registered name of the network')
    parser.add_argument('--runs', required=True, type=Path, help='OUTPUT of scripts/train_birds.sh')
    parser.add_argument('--best', required=True, help='the run whose weights are taken')
    parser.add_argument('--data', required=True, type=Path, help='its DATA, for the pictures')
    parser.add_argument('--hardware', default='2 cores of an AMD EPYC, no GPU')
    parser.add_argument('--note', default='', help='a sentence to add below the table')
    parser.add_argument('--output', default=str(Path(__file__).resolve().parents[1] / 'model_cards'))
    args = parser.parse_args()

    table = rows(args.runs, args.best, Path(args.output) / args.name / 'README.md')
    held = torch.load(args.runs / args.best / 'last.pth.tar', map_location='cpu', weights_only=False)
    model = timm.create_model(args.name)
    model.load_state_dict(clean_state_dict(held['state_dict']))
    classes = sorted(p for p in (args.data / 'test').iterdir() if p.is_dir())
    model.pretrained_cfg['label_names'] = [p.name.partition('.')[2].replace('_', ' ') for p in classes]
    pictures = [sorted(p.iterdir())[0] for p in classes[::33][:6]]

    def add(folder: Path) -> None:
        save_picture(picture_of(model.eval(), pictures, args.name), folder / 'look.jpg')
        (folder / 'README.md').write_text(CARD.format(
            name=args.name, accuracy=summary(args.runs / args.best)['eval_top1'] / 100, what=NAMES[args.best],
            glance=glance(model), localization=model.arguments.localization, note=args.note,
            how=VARIES if isinstance(model.arguments.scale, list) else ', then moved by what is learned',
            rows=table, hardware=args.hardware, torch=torch.__version__, timm=timm.__version__))

    write_folder(args.output, args.name, model, add)


if __name__ == '__main__':
    main()
