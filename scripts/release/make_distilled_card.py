#!/usr/bin/env python
r"""Make the Hub folder (card, config, weights) of `stn_resnet50_cub` from a finished run of scripts/train/distil.py.

    python scripts/release/make_distilled_card.py --run .gpu/finished/distil-0 --data BIRDS

BIRDS has the folder `test`, of a folder of photographs per class, for the picture. Runs with other seeds, as `--more
.gpu/finished/distil-1`, give the table standard errors; the weights are those of `--run`, whose seed is 0. The card's
first line says what it was trained on, and how it compares with what was trained alike.
"""
import argparse
import json
from pathlib import Path
from typing import Any

import timm
from card_files import BIRDS_HEAD, CARDS, HALF, birds_of, write_folder
from make_birds_card import figure
from safetensors.torch import load_file

from timm_stn.view.cost import multiply_adds
from timm_stn.view.draw import save_picture
from timm_stn.view.sheet import sheet_of

NAME, TEACHER = 'stn_resnet50_cub', 'tf_efficientnet_lite0'
SURE = 3  # standard errors that a difference of two networks, of one seed, has at least
CARD = BIRDS_HEAD + '''\
{first}

It is ResNet-50 with spatial transformers (Jaderberg et al. 2015, arXiv:1506.02025): of a photograph of 448 x 448 it
sees the whole, shrunk to 224 x 224, and two glimpses of 224 x 224, each about half as wide. Glimpses start where its
own features of the whole respond most (`stn_localization='saliency:3'`); a localization network may move and scale
them. The logits of the three are averaged. It has not seen CUB-200-2011: who has that set can train a better one
(`scripts/train_cub.sh`).

![Held-out birds: the photograph with the outlines of the glimpses, what was seen, the answer](look.jpg)

*Birds of the test set, one per class: the photograph with the outlines of the glimpses, what the network saw, the
answer.*

```python
import timm, timm_stn
model = timm.create_model('{name}', pretrained=True).eval()
seen, theta = model.look(images)  # glimpses of normalised images (N, 3, 448, 448), and their transforms
```

## Data

Caltech-UCSD Birds 200, the 2010 edition: 6,033 photographs at 224 x 224, {trained:,} of them to train on, {tested:,} to
test on. This split is not the official one, and others are measured on CUB-200-2011: compare the figures only with
each other. Networks that see 448 x 448 see the same photographs, enlarged.

## Results

Accuracy in percent on the test photographs, after the last epoch; nothing was chosen on them. The number of test
photographs alone gives a standard error of {error:.1f} points. A difference of two networks of one seed is called clear
from three standard errors on, about {sure:.1f} points. Multiply-adds are of one image, of everything: all streams,
where to look, sampling.

| network | top-1 | top-5 | multiply-adds | parameters |
| --- | --- | --- | --- | --- |
{rows}

    timm-stn validate --data-dir BIRDS --split test --model {name} --pretrained

## Recipe

    python scripts/train/distil.py {options}

1. The teacher, {teacher} with ImageNet weights, is fine-tuned on the training photographs and their labels.
2. ResNet-50, from scratch, learns what the teacher says of crops of them, mixed in pairs, and the direction of its
   features: {small} epochs at 128 x 128 pixels, {large} at 224 x 224.
3. This network, and plain ones, begin with its weights, and learn {looking} epochs more, of crops that are not mixed.

{device}, {seconds:.0f} seconds in all; PyTorch {torch}, timm {timm}, timm_stn {timm_stn}.

## Licence

Weights: Apache-2.0, like those of `timm/tf_efficientnet_lite0.in1k`, with which the teacher began. The photographs are
for research use; see the data set's own terms.

{half}
'''


def first_line(result: dict[str, Any]) -> str:
    """What it was trained on, and how it compares with plain networks that were trained alike."""
    count, ours, plain = result['test_images'], result['top1'], result['plain_top1']
    text = (f'Trained on {result["train_images"]:,} photographs of Caltech-UCSD Birds 200 (2010), of 224 x 224 pixels, '
            f'by distillation of a fine-tuned {TEACHER}: {ours:.1f} % of {count:,} test photographs are classified '
            f'correctly. A plain ResNet-50 that was trained alike has {plain:.1f} % at 224 x 224 '
            f'({compared(ours, plain, count)})')
    if 'plain_448_top1' in result:
        other = result['plain_448_top1']
        text += f', and {other:.1f} % at 448 x 448 ({compared(ours, other, count)})'
    return f'{text}; its teacher has {result["teacher_top1"]:.1f} %.'


def compared(ours: float, other: float, count: int) -> str:
    """The first of two accuracies, in percent of so many images, beside the second."""
    difference, error = ours - other, (deviation(ours, count) ** 2 + deviation(other, count) ** 2) ** 0.5
    if abs(difference) <= SURE * error:
        return f'no clear difference: {difference:+.1f} ± {error:.1f} points'
    return f'this network is {"better" if difference > 0 else "worse"}: {difference:+.1f} ± {error:.1f} points'


def deviation(accuracy: float, count: int) -> float:
    """Standard error of an accuracy, all in percent, that the number of images alone gives."""
    return (accuracy * (100 - accuracy) / count) ** 0.5


def rows(results: list[dict[str, Any]]) -> str:
    """The table, of one result for each seed."""
    first = results[0]
    large, full = (timm.create_model('resnet50', num_classes=200).eval(), (3, 448, 448))
    lines = [(f'**{NAME}**', '', first['multiply_adds'], first['parameters']),
             ('plain ResNet-50, 224 x 224', 'plain_', first['plain_multiply_adds'], count(large))]
    if 'plain_448_top1' in first:
        lines.append(('plain ResNet-50, 448 x 448', 'plain_448_', multiply_adds(large, full), count(large)))
    teacher = timm.create_model(TEACHER, num_classes=200).eval()
    cost = multiply_adds(teacher, (3, 224, 224))
    lines.append((f'the teacher, {TEACHER}, 224 x 224', 'teacher_', cost, count(teacher)))
    return '\n'.join(f'| {name} | {figure(results, f"{key}top1")} | {figure(results, f"{key}top5")} | {cost:.2f} G | '
                     f'{parameters:,} |' for name, key, cost, parameters in lines)


def count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def read(run: Path) -> dict[str, Any]:
    file = run / 'result.json'
    if not file.is_file():
        raise SystemExit(f'{run} is no finished run of scripts/train/distil.py: there is no {file}.')
    return json.loads(file.read_text())


def check(results: list[dict[str, Any]]) -> None:
    """Refuse what no card is made of."""
    first = results[0]['args']
    if first['seed'] != 0:
        raise SystemExit(f'--run is of seed {first["seed"]}: the weights are those of seed 0, whatever they come to.')
    if first['held_back'] or first['photos'] or first['sides'] != [128, 224, 448]:
        raise SystemExit('--run was a trial: on part of the photographs, or of other sizes.')
    but = {'seed', 'output', 'data', 'weights', 'device', 'until'}
    for result in results[1:]:
        differ = sorted(key for key in first if key not in but and first[key] != result['args'][key])
        if differ or result['args']['seed'] in (first['seed'], None):
            raise SystemExit(f'--more takes runs with other seeds and the same arguments, got seed '
                             f'{result["args"]["seed"]}; others: {", ".join(differ) or "none"}.')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', required=True, type=Path, help='OUTPUT of distil.py, whose weights are taken')
    parser.add_argument('--more', nargs='*', default=[], type=Path, metavar='RUN', help='runs with other seeds')
    parser.add_argument('--data', required=True, type=Path, help='has test/, with a folder of photographs per class')
    parser.add_argument('--output', default=CARDS)
    args = parser.parse_args(argv)

    results = [read(run) for run in (args.run, *args.more)]
    check(results)
    result = results[0]
    model = timm.create_model(NAME).eval()
    model.load_state_dict(load_file(args.run / 'model.safetensors'))
    names, pictures = birds_of(args.data)
    model.pretrained_cfg.update(label_names=names, license='apache-2.0')
    given = {key: result['args'][key] for key in ('epochs', 'sides', 'lr', 'batch_size', 'temperature')}
    options = ' '.join(f'--{key.replace("_", "-")} {" ".join(map(str, value)) if isinstance(value, list) else value}'
                       for key, value in given.items())
    error = deviation(result['top1'], result['test_images'])

    def add(folder: Path) -> None:
        picture, _ = sheet_of(model, pictures, NAME)
        save_picture(picture, folder / 'look.jpg')
        (folder / 'README.md').write_text(CARD.format(
            name=NAME, accuracy=result['top1'] / 100, first=first_line(result), teacher=TEACHER, half=HALF,
            trained=result['train_images'], tested=result['test_images'], error=error, sure=SURE * 2 ** 0.5 * error,
            rows=rows(results), options=f'--data DATA --weights FILE --output OUTPUT --device cuda {options} --seed 0',
            device=result['device'], seconds=sum(result['seconds'].values()), **result['versions'],
            **{key: result['epochs'][key] for key in ('small', 'large', 'looking')}))

    write_folder(args.output, NAME, model, add)
    print("license='apache-2.0' belongs there, too, and README.md and config.json into the wheel (pyproject.toml)")


if __name__ == '__main__':
    main()
