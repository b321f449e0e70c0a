#!/usr/bin/env python
r"""Make the Hub folder (card, config, weights) of a network trained on birds from the runs of train_birds.sh.

    python scripts/release/make_birds_card.py stn_tf_efficientnet_lite0_cub2010 --runs RUNS [RUNS...] --best whole2 \
        --data DATA

RUNS are OUTPUTs of scripts/train/train_birds.sh, one per seed. The weights are those of the first, independent of their
accuracy. The card has a row for every finished run, and keeps its rows of other runs. The pictures are from DATA.
"""
import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import timm
import torch
from card_files import BIRDS_HEAD, CARDS, HALF, birds_of, write_folder
from timm.models import clean_state_dict

from timm_stn.view.cost import glance, multiply_adds
from timm_stn.view.draw import save_picture
from timm_stn.view.sheet import sheet_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'reproduce'))

from birds_cells import NAMES

VARIES = '''. The glimpse
is as large as the area that responds. In training it is the whole image, because the random crop has already enlarged
the bird'''
LEARNED = '; the localization network moves them from there'
CARD = BIRDS_HEAD.replace('tags:', 'base_model: timm/tf_efficientnet_lite0.in1k\ntags:') + '''\
tf_efficientnet_lite0, fine-tuned on 200 species of birds, behind a spatial transformer (Jaderberg et al. 2015,
arXiv:1506.02025): {what}. Glimpses start where the backbone's own features of
the whole image, shrunk to {glance} x {glance}, respond most (`stn_localization='{localization}'`){how}.

![Held-out birds: the image with the outlines of the glimpses, what was seen, the answer](look.jpg)

*Birds of the test set, one per class: the image with the outlines of the glimpses, what the network saw, the answer.*

```python
import timm, timm_stn
model = timm.create_model('{name}', pretrained=True).eval()
seen, theta = model.look(images)  # glimpses of normalised images (N, 3, 224, 224), and their transforms
```

## Data

Caltech-UCSD Birds 200, the 2010 edition: 6,033 photographs at 224 x 224, 3,000 for training (15 per class), 3,033
for testing. This split is not the official one, so compare the figures only with each other.

## Results

Accuracy in percent on the test images after the last epoch (images shrunk to 256, centre crop of 224). For several
seeds: mean and standard error. The published weights are those of the first seed. No epoch was selected on the test
images, but the published network was. Multiply-adds are for one image, all streams, localization and sampling.

| network | top-1 | top-5 | multiply-adds | of plain 224 | parameters |
| --- | --- | --- | --- | --- | --- |
{rows}

All networks have the same training recipe. The number of test images alone gives a standard error of 0.9 points. {note}

## Recipe

    TIMM_SCRIPTS=PYTORCH_IMAGE_MODELS scripts/train/train_birds.sh DATA WEIGHTS OUTPUT SEED=0

{hardware}, PyTorch {torch}, timm {timm}.

## Licence

Weights: Apache-2.0, like their initial weights `timm/tf_efficientnet_lite0.in1k`. The photographs are for
research use; see the data set's own terms.

''' + HALF + '\n'


def results(runs: list[Path], name: str) -> list[dict]:
    """Results of the finished runs of a network, one per seed."""
    files = (folder / name / 'result.json' for folder in runs)
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def figure(found: list[dict], key: str) -> str:
    """The mean, with its standard error if there are several seeds."""
    values = [line[key] for line in found]
    if len(values) == 1:
        return f'{values[0]:.1f}'
    error = statistics.stdev(values) / len(values) ** 0.5
    return f'{statistics.mean(values):.1f} ± {error:.1f} ({len(values)} seeds)'


def row(found: list[dict], plain: float) -> str:
    """The cells of a table row after the name of the network."""
    cost = found[0]['multiply_adds']
    return (f"{figure(found, 'top1')} | {figure(found, 'top5')} | {cost:.3f} G | {cost / plain:.0%} | "
            f"{found[0]['parameters']:,} |")


def rows(runs: list[Path], best: str, card: Path) -> str:
    """The table: a row for every network with finished runs or with a row in the existing card."""
    text = card.read_text().replace('**', '') if card.is_file() else ''
    plain = multiply_adds(timm.create_model('tf_efficientnet_lite0', num_classes=200), (3, 224, 224))
    lines = []
    for run, name in NAMES.items():
        before = re.search(rf'^\| {re.escape(name)} \| (.*)$', text, re.MULTILINE)
        found = results(runs, run)
        if found or before:
            figures = row(found, plain) if found else before[1]
            lines.append(f'| **{name}** | {figures}' if run == best else f'| {name} | {figures}')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='registered name of the network')
    parser.add_argument('--runs', required=True, type=Path, nargs='+', help='OUTPUTs of scripts/train/train_birds.sh')
    parser.add_argument('--best', required=True, help='the run whose weights are taken')
    parser.add_argument('--data', required=True, type=Path, help='its DATA, for the pictures')
    parser.add_argument('--hardware', default='2 cores of an AMD EPYC, no GPU')
    parser.add_argument('--note', default='', help='a sentence to add below the table')
    parser.add_argument('--output', default=CARDS)
    args = parser.parse_args()

    table = rows(args.runs, args.best, Path(args.output) / args.name / 'README.md')
    trained = results(args.runs[:1], args.best)
    held = torch.load(args.runs[0] / args.best / 'last.pth.tar', map_location='cpu', weights_only=False)
    model = timm.create_model(args.name)
    model.load_state_dict(clean_state_dict(held['state_dict']))
    arguments = model.arguments.json
    model.pretrained_cfg['label_names'], pictures = birds_of(args.data)

    def add(folder: Path) -> None:
        picture, _ = sheet_of(model.eval(), pictures, args.name)
        save_picture(picture, folder / 'look.jpg')
        (folder / 'README.md').write_text(CARD.format(
            name=args.name, accuracy=trained[0]['top1'] / 100, what=NAMES[args.best],
            glance=glance(model), localization=arguments['stn_localization'], note=args.note,
            how=VARIES if isinstance(arguments['stn_scale'], list) else LEARNED,
            rows=table, hardware=args.hardware, **{key: trained[0]['versions'][key] for key in ('torch', 'timm')}))

    write_folder(args.output, args.name, model, add)


if __name__ == '__main__':
    main()
