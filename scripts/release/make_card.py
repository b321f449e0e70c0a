#!/usr/bin/env python
r"""Make the Hub folder (card, config, weights) of a network that is a cell of the tables of reproduce.py.

    python scripts/release/make_card.py stn_mnist_cnn_r --cell table1-R-st-cnn-tps \
        --run .gpu/finished/table1-R-st-cnn-tps-2 --baseline table1-R-cnn table1-R-st-cnn-affine
    python scripts/release/make_card.py stn_gtsrb --cell signs-input --run runs/finished/signs-input-0 \
        --baseline signs-plain --data GTSRB_FOLDER

Errors of all seeds, parameters, hardware, versions, seconds and the command are those of model_cards/results.jsonl, the
paper's figures those of cells.py. The weights are those of the run, whose seed cells.py or pays_cells.py has fixed
beforehand. What the card says of the data is in card_data.py. With --data, the card has a picture of test images.
"""
import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from card_data import DATA, Data
from card_files import CARDS, HALF, HEAD, is_small, write_folder
from safetensors.torch import load_file

from timm_stn.data import TASKS
from timm_stn.geometry.layout import size_that_enters
from timm_stn.names.zoo import set_of
from timm_stn.view.caption import Caption
from timm_stn.view.draw import save_picture
from timm_stn.view.observe import observe
from timm_stn.view.sheet import best_answers, data_config, draw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'reproduce'))

from cells import SEEDS, Cell, cells
from pays_cells import pays
from records import Line, read

NETWORKS = dict(
    mnist_cnn="The paper's MNIST CNN (conv 9x9 - pool - conv 7x7 - pool - classifier)",
    mnist_fcn="The paper's fully connected MNIST network (two hidden layers and a classifier)",
    signs_cnn='A small CNN (seven convolutions with batch norm, three pools, a classifier)')
TRANSFORMS = dict(affine='affine', projective='projective', tps='thin-plate spline')
ELSEWHERE = ('model', 'model_kwargs', 'output', 'data', 'download', 'threads', 'device', 'no_cuda_graph')
CARD = HEAD + '''datasets:
- {data.name}
model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      type: {data.name}
      name: {data.title}
    metrics:
    - type: accuracy
      value: {accuracy:.4f}
---
# {name}

{what}{picture}

```python
import timm, timm_stn
model = timm.create_model('{name}', pretrained=True){where}
```

## Data

{data.text}

## Results

Test error in percent after the last epoch. No epoch, seed or setting was chosen on test images; settings were chosen on
{data.held_back}. The published weights are those of seed {seed}, whose error is {error:.2f}. This seed
was fixed before the runs, in `scripts/reproduce/{source}`, and not chosen by its error.

{rows}{note}

To recompute the error of the published weights, and to train all seeds again:

    timm-stn eval {name} --data {data.folder}
    python scripts/reproduce.py {reproduce} --data {data.folder} --root MY_RECORD

## Recipe

{commands}

{hardware}; PyTorch {torch}, timm {timm}, timm_stn at {revision}. The published run took
{seconds:.0f} seconds.

## Licence

{data.licence}{half}
'''
PICTURE = '''

![Test images: the input with the outline of where the transformer looked, what the network saw, the answer](look.jpg)

*Images of the test set, one per class: the input with the outline of where the transformer looked, what the network
saw, the answer.*'''
SHOWN = 12  # images in the picture


def cell_of(name: str) -> Cell:
    found = [cell for cell in [*cells(), *pays()] if cell.name == name]
    if not found:
        raise SystemExit(f'cells.py has no cell {name}.')
    return found[0]


def lines_of(cell: Cell, record: dict[str, Line]) -> list[Line]:
    """All recorded runs of a cell, which must have the same arguments but for their seeds."""
    lines = [record[name] for seed in range(SEEDS) if (name := f'{cell.name}-{seed}') in record]
    if not lines:
        raise SystemExit(f'There is no record of {cell.name}.')
    for line in lines[1:]:
        check_same(lines[0], line, ('seed', *ELSEWHERE[2:]))
    return lines


def check_same(line: Line, other: Line, but: tuple[str, ...] = ELSEWHERE[2:]) -> None:
    """Refuse two runs with other arguments; older ones may lack some."""
    first, second = line['args'], other['args']
    differ = sorted(key for key in {*first} & {*second} - {*but} if first[key] != second[key])
    if differ:
        raise SystemExit(f'{line["name"]} has other arguments than its like: {", ".join(differ)}.')


def published(cell: Cell, run: Path, lines: list[Line]) -> Line:
    """The record of the run whose weights are published."""
    result = json.loads((run / 'result.json').read_text())
    seed = result['args']['seed']
    if seed not in cell.weights:
        raise SystemExit(f'{run} is of seed {seed}; cells.py has fixed the published seed of {cell.name}: '
                         f'{", ".join(map(str, cell.weights)) or "none"}.')
    line = next((line for line in lines if line['args']['seed'] == seed), None)
    if line is None:
        raise SystemExit(f'There is no record of {cell.name}-{seed}: collect {run} first.')
    check_same(line, result)
    if any(line[key] != result[key] for key in ('test_error', 'train_loss', 'parameters')):
        raise SystemExit(f'{run} is not the run that is recorded as {line["name"]}.')
    return line


def as_trained(args: dict[str, Any]) -> Any:
    """The network of a run's arguments, as train_task.py makes it, untrained."""
    task = TASKS[args['set']]
    size = {'img_size': task.size} if timm.get_pretrained_cfg(args['model']).fixed_input_size else {}
    size = {} if set_of(args['model']) else size
    given = {'in_chans': task.channels, 'num_classes': task.outputs, **size}
    return timm.create_model(args['model'], **{**given, **args['model_kwargs']})


def differences(model: Any, other: Any) -> list[str]:
    """Arguments in which two networks differ."""
    first, second = (json.loads(json.dumps({
        **m._model_args, 'num_classes': m.num_classes, 'in_chans': m.in_chans, 'img_size': size_that_enters(m)[1:],
    })) for m in (model, other))
    return sorted(key for key in {*first} | {*second} if first.get(key) != second.get(key))


def described(model: Any, base: str) -> str:
    """What the network is, in words."""
    args = model._model_args
    kind, (height, width) = TRANSFORMS[args['stn_transform']], model.stn.size or model.pretrained_cfg['input_size'][1:]
    where, size = '(Jaderberg et al. 2015, arXiv:1506.02025)', f'{height} x {width} pixels'
    looks = f', in {args["stn_iterations"]} looks: each continues from the one before'
    looks = looks if args['stn_iterations'] > 1 else ''
    head = f'{NETWORKS[base]} behind'
    if args['stn_glimpses'] == 1:
        article = 'an' if kind[0] in 'aeiou' else 'a'
        return f'{head} {article} {kind} spatial transformer\n{where}, which warps the image to {size}{looks}.'
    return (f'{head} {args["stn_glimpses"]} {kind} spatial\ntransformers {where}. Each sees all channels, and warps '
            f'them alike to {size}{looks}.\nThe network sees all results (`stn_join={args["stn_join"]!r}`).')


def table(groups: list[tuple[str, Cell, list[Line]]]) -> str:
    """The networks and their errors, beside the paper's where it has any."""
    has_paper = any(cell.paper is not None for _, cell, _ in groups)
    names = ['network', 'parameters', 'errors by seed', 'mean', *(['paper'] if has_paper else [])]
    lines = [names, ['---'] * len(names)]
    for label, cell, runs in groups:
        errors = [line['test_error'] for line in runs]
        paper = '' if cell.paper is None else f'{cell.paper:g} ({cell.row})'
        lines.append([label, f'{runs[0]["parameters"]:,}', ', '.join(f'{e:.2f}' for e in errors),
                      f'**{statistics.mean(errors):.2f}**', *([paper] if has_paper else [])])
    told = "\n\nThe paper's figures are of networks of about 400,000 parameters, trained in its own way."
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + (told if has_paper else '')


def command(args: dict[str, Any], folder: str) -> str:
    """The command of a run, with all arguments that it was recorded with."""
    kwargs = ' '.join(f'"{k}={v}"'.replace(' ', '') for k, v in args['model_kwargs'].items())
    parts = [f'--model {args["model"]}', *([f'--model-kwargs {kwargs}'] if kwargs else [])]
    for key, value in args.items():
        if key not in ELSEWHERE and value is not None and value is not False and value != []:
            words = value if isinstance(value, list) else [] if value is True else [value]
            parts.append(' '.join([f'--{key.replace("_", "-")}', *map(str, words)]))
    return ' '.join(['python scripts/train/train_task.py', *parts, f'--data {folder}', '--output RUN'])


def found(lines: list[Line], key: str) -> str:
    """What the records say of where they were made, each value once."""
    return ', '.join(dict.fromkeys(str(line['environment'][key]) for line in lines))


def hardware(lines: list[Line]) -> str:
    """Each device once, as recorded; of a CPU its kind and cores."""
    made = [line['environment'] for line in lines]
    return ', '.join(dict.fromkeys(
        f'{e["cores"]} cores of a CPU ({e["processor"]})' if e['device'] == 'cpu' else e['device'] for e in made))


def picture_of(model: Any, kind: str, data: str) -> Any:
    """Test images, the first of each of some classes, with where the network looks."""
    images, known = TASKS[kind].load(data, 'test')
    classes = known.reshape(len(known), -1)[:, 0]
    answers = range(0, TASKS[kind].classes, -(-TASKS[kind].classes // SHOWN))
    first = torch.tensor([int((classes == answer).nonzero()[0]) for answer in answers])
    u = torch.rand(len(first), TASKS[kind].draws, generator=torch.Generator().manual_seed(0))
    x, truth = TASKS[kind].make(images, known, first, u)
    look, names = observe(model.eval(), x), model.pretrained_cfg.get('label_names') or list(map(str, range(1000)))
    captions = [
        Caption(best, '', right, '' if right else f'is {names[answer]}')
        for best, answer in zip(best_answers(look.logits, names), truth.tolist(), strict=True)
        for right in [best[0][0] == names[answer]]]
    return draw(x, look, captions, data_config(model), model.pretrained_cfg['architecture'])


def card(args: argparse.Namespace, model: Any, record: dict[str, Line]) -> str:
    cell = cell_of(args.cell)
    lines = lines_of(cell, record)
    line, kind = published(cell, args.run, lines), set_of(args.name)
    if kind != line['args']['set']:
        raise SystemExit(f'{args.name} is for {kind}, {args.cell} for {line["args"]["set"]}.')
    differ = differences(model, as_trained(line['args']))
    if differ:
        raise SystemExit(f'{args.name} is not the network of {args.cell}: {", ".join(differ)} differ.')
    data: Data = DATA[str(kind)]
    others = [(other, lines_of(other, record)) for other in map(cell_of, args.baseline)]
    choice = ' '.join(f'--{name} {value}' for name, value in cell.choice.items())
    commands = [(args.name, line), *((other.row, group[0]) for other, group in others)]
    everything = [*lines, *(entry for _, group in others for entry in group)]
    small = is_small(model)
    return CARD.format(
        name=args.name, data=data, accuracy=1 - line['test_error'] / 100, error=line['test_error'],
        what=described(model, model.backbone.pretrained_cfg['architecture']), seed=line['args']['seed'],
        picture=PICTURE if args.data else '', note=f' {args.note}' if args.note else '',
        half='' if small else f'\n\n{HALF}',
        where='  # no download: the weights come with timm_stn' if small else '',
        source='pays_cells.py' if cell in pays() else 'cells.py',
        rows=table([(f'**{args.name}**', cell, lines), *((o.row, o, group) for o, group in others)]),
        reproduce=f'{cell.experiment}' + (f' --recipe {cell.recipe}' * (cell.recipe != 'modern')) + f' {choice}',
        commands='\n\n'.join(f'{label}:\n\n    {command(entry["args"], data.folder)}' for label, entry in commands),
        hardware=hardware(everything), torch=found(everything, 'torch'), timm=found(everything, 'timm'),
        revision=found(everything, 'revision'), seconds=sum(line['seconds']))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='registered name of the network')
    parser.add_argument('--cell', required=True, help='its cell in scripts/reproduce/')
    parser.add_argument('--run', type=Path, required=True, help='folder of the run that gives the weights')
    parser.add_argument('--baseline', nargs='+', default=[], metavar='CELL', help='cells to compare with')
    parser.add_argument('--data', metavar='DIR', help='the data, for a picture (default: no picture)')
    parser.add_argument('--note', default='', help='a sentence to add below the table')
    parser.add_argument('--record', type=Path, default=Path(CARDS) / 'results.jsonl', help='(default: %(default)s)')
    parser.add_argument('--output', default=CARDS, help='(default: %(default)s)')
    args = parser.parse_args(argv)
    model = timm.create_model(args.name)
    text = card(args, model, {line['name']: line for line in read(args.record)})
    model.load_state_dict(load_file(args.run / 'model.safetensors'))
    kind = str(set_of(args.name))
    if DATA[kind].classes:
        model.pretrained_cfg['label_names'] = list(DATA[kind].classes)

    def add(folder: Path) -> None:
        (folder / 'README.md').write_text(text)
        if args.data:
            save_picture(picture_of(model, kind, args.data), folder / 'look.jpg')

    write_folder(args.output, args.name, model, add)


if __name__ == '__main__':
    main()
