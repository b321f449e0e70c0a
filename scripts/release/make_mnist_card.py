#!/usr/bin/env python
r"""Make the Hub folder (card, config, weights) of a network that is a cell of the tables of reproduce.py.

    python scripts/release/make_mnist_card.py stn_mnist_cnn_r --cell table1-R-st-cnn-tps \
        --run .gpu/finished/table1-R-st-cnn-tps-2 --baseline table1-R-cnn table1-R-st-cnn-affine

Errors of all seeds, parameters, hardware, versions, seconds and the command are those of model_cards/results.jsonl, the
paper's figures those of cells.py. The weights are those of the run, whose seed cells.py has fixed beforehand.
"""
import argparse
import hashlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import timm
from card_files import CARDS, HEAD, write_folder
from safetensors.torch import load_file

from timm_stn.data import TASKS
from timm_stn.geometry.layout import size_that_enters
from timm_stn.names.zoo import set_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'reproduce'))

from cells import SEEDS, Cell, cells
from records import Line, read

DATA = dict(
    R='rotated by up to 90 degrees to either side, on 28 x 28 pixels',
    RTS='rotated by up to 45 degrees, scaled by 0.7 to 1.2, at a random place of a 42 x 42 canvas',
    P='scaled by 0.75 to 1, then in a projective distortion: each corner moved by N(0, 5 pixels), on 28 x 28 pixels',
    E='scaled by 0.75 to 1, then in an elastic distortion: 16 control points of a thin-plate spline moved by '
      'N(0, 1.5 pixels), on 28 x 28 pixels',
    T='at a random place of a 60 x 60 canvas',
    TC='at a random place of a 60 x 60 canvas with six 6 x 6 patches of other digits as clutter',
    ADD='two at a time, one in each of two channels of 42 x 42 pixels, each rotated by up to 45 degrees, scaled by 0.7 '
        'to 1.2 and moved by itself; the class is their sum, 0 to 18')
NETWORKS = dict(
    mnist_cnn='MNIST CNN (conv 9x9 - pool - conv 7x7 - pool - classifier)',
    mnist_fcn='fully connected MNIST network (two hidden layers and a classifier)')
TRANSFORMS = dict(affine='affine', projective='projective', tps='thin-plate spline')
ELSEWHERE = ('model', 'model_kwargs', 'output', 'data', 'download', 'threads', 'device', 'no_cuda_graph')
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

{what}

```python
import timm, timm_stn
model = timm.create_model('{name}', pretrained=True)  # no download: the weights come with timm_stn
```

## Data

MNIST, 60,000 training digits made anew in every epoch: {data}.
Tested on the 10,000 test digits, made once with a fixed seed (`timm_stn.data.test_set('{kind}')`).

## Results

Test error in percent after the last epoch. No epoch, seed or setting was chosen on test images; settings were chosen on
5,000 held-back training digits. The published weights are those of seed {seed}, whose error is {error:.2f}. This seed
was fixed before the runs, in `scripts/reproduce/cells.py`, and not chosen by its error.

| network | parameters | errors by seed | mean | paper |
| --- | --- | --- | --- | --- |
{rows}

The paper's figures are of networks of about 400,000 parameters, trained in its own way.{note}

To recompute the error of the published weights, and to train all seeds again:

    timm-stn eval {name} --data MNIST_FOLDER
    python scripts/reproduce.py {reproduce} --data MNIST_FOLDER --root MY_RECORD

## Recipe

{commands}

{hardware}; PyTorch {torch}, timm {timm}, timm_stn at {revision}. The published run took
{seconds:.0f} seconds.

## Licence

Weights: Apache-2.0. MNIST: Y. LeCun, C. Cortes, C. Burges, public.
'''


def cell_of(name: str) -> Cell:
    found = [cell for cell in cells() if cell.name == name]
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
    head = f"The paper's {NETWORKS[base]} behind"
    if args['stn_glimpses'] == 1:
        article = 'an' if kind[0] in 'aeiou' else 'a'
        return f'{head} {article} {kind} spatial transformer\n{where}, which warps the image to {size}{looks}.'
    return (f'{head} {args["stn_glimpses"]} {kind} spatial\ntransformers {where}. Each sees all channels, and warps '
            f'them alike to {size}{looks}.\nThe network sees all results (`stn_join={args["stn_join"]!r}`).')


def row(label: str, cell: Cell, lines: list[Line]) -> str:
    errors = [line['test_error'] for line in lines]
    listed = ', '.join(f'{e:.2f}' for e in errors)
    paper = '' if cell.paper is None else f'{cell.paper:g} ({cell.row})'
    return f'| {label} | {lines[0]["parameters"]:,} | {listed} | **{statistics.mean(errors):.2f}** | {paper} |'


def command(args: dict[str, Any]) -> str:
    """The command of a run, with all arguments that it was recorded with."""
    kwargs = ' '.join(f'"{k}={v}"'.replace(' ', '') for k, v in args['model_kwargs'].items())
    parts = [f'--model {args["model"]}', *([f'--model-kwargs {kwargs}'] if kwargs else [])]
    for key, value in args.items():
        if key not in ELSEWHERE and value is not None and value is not False:
            parts.append(f'--{key.replace("_", "-")}' + ('' if value is True else f' {value}'))
    return ' '.join(['python scripts/train/train_task.py', *parts, '--data MNIST_FOLDER', '--output RUN'])


def found(lines: list[Line], key: str) -> str:
    """What the records say of where they were made, each value once."""
    return ', '.join(dict.fromkeys(str(line['environment'][key]) for line in lines))


def hardware(lines: list[Line]) -> str:
    """Each device once, as recorded; of a CPU its kind and cores."""
    made = [line['environment'] for line in lines]
    return ', '.join(dict.fromkeys(
        f'{e["cores"]} cores of a CPU ({e["processor"]})' if e['device'] == 'cpu' else e['device'] for e in made))


def card(args: argparse.Namespace, model: Any, record: dict[str, Line]) -> str:
    cell = cell_of(args.cell)
    lines = lines_of(cell, record)
    line, kind = published(cell, args.run, lines), set_of(args.name)
    if kind != line['args']['set']:
        raise SystemExit(f'{args.name} is for {kind}, {args.cell} for {line["args"]["set"]}.')
    differ = differences(model, as_trained(line['args']))
    if differ:
        raise SystemExit(f'{args.name} is not the network of {args.cell}: {", ".join(differ)} differ.')
    others = [(other, lines_of(other, record)) for other in map(cell_of, args.baseline)]
    choice = ' '.join(f'--{name} {value}' for name, value in cell.choice.items())
    commands = [(args.name, line), *((other.row, group[0]) for other, group in others)]
    everything = [*lines, *(entry for _, group in others for entry in group)]
    return CARD.format(
        name=args.name, kind=kind, accuracy=1 - line['test_error'] / 100, error=line['test_error'],
        what=described(model, model.backbone.pretrained_cfg['architecture']), data=DATA[str(kind)],
        seed=line['args']['seed'], note=f' {args.note}' if args.note else '',
        rows='\n'.join([row(f'**{args.name}**', cell, lines), *(row(o.row, o, group) for o, group in others)]),
        reproduce=f'{cell.experiment}' + (f' --recipe {cell.recipe}' * (cell.recipe != 'modern')) + f' {choice}',
        commands='\n\n'.join(f'{label}:\n\n    {command(entry["args"])}' for label, entry in commands),
        hardware=hardware(everything), torch=found(everything, 'torch'), timm=found(everything, 'timm'),
        revision=found(everything, 'revision'), seconds=statistics.median(sum(entry['seconds']) for entry in lines))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='registered name of the network')
    parser.add_argument('--cell', required=True, help='its cell in scripts/reproduce/cells.py')
    parser.add_argument('--run', type=Path, required=True, help='folder of the run that gives the weights')
    parser.add_argument('--baseline', nargs='+', default=[], metavar='CELL', help='cells to compare with')
    parser.add_argument('--note', default='', help='a sentence to add below the table')
    parser.add_argument('--record', type=Path, default=Path(CARDS) / 'results.jsonl', help='(default: %(default)s)')
    parser.add_argument('--output', default=CARDS, help='(default: %(default)s)')
    args = parser.parse_args(argv)
    model = timm.create_model(args.name)
    text = card(args, model, {line['name']: line for line in read(args.record)})
    model.load_state_dict(load_file(args.run / 'model.safetensors'))
    write_folder(args.output, args.name, model, lambda folder: (folder / 'README.md').write_text(text))
    digest = hashlib.sha256((Path(args.output) / args.name / 'model.safetensors').read_bytes()).hexdigest()
    print(f'For timm_stn/names/zoo.py: its SHA-256 is {digest}')


if __name__ == '__main__':
    main()
