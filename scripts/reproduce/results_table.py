"""Makes model_cards/RESULTS.md of the recorded runs: nothing in its tables is typed by hand."""
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from cells import SEEDS, Cell, cells
from records import Line

NOT_RUN = 'not run'
HEAD = """# Results

The experiments on digits of Jaderberg et al. 2015 (arXiv:1506.02025), and one that it lacks, run with this package.
(Birds, section 4.3, are in [training](../docs/training.md).) Made by `python scripts/reproduce.py table` from
[results.jsonl](results.jsonl), which has each run's arguments, seed, revision, device, seconds and error after each
epoch. Do not edit.

A cell is the mean of {seeds} seeds and its standard error, in percent, after the last epoch; with fewer seeds, their
number follows. In parentheses is the paper's figure; **bold** are the means that are no worse. No epoch, seed or
setting was chosen on test images, but on 5,000 held-back training digits ([GPU](../docs/gpu.md#training)).
"""
TEXTS = {
    'distorted-mnist': (
        'Distorted MNIST (section 4.1, Table 1)',
        """Test error on 10,000 digits. Recipe `modern`: AdamW, 40 epochs of 60,000 digits, each distorted anew,
averaged weights, weight decay 0.1, two looks (`stn_iterations=2`), localization network `conv`. Recipe `paper`: SGD,
150,000 steps of 256, one look, `fc` before the FCN, theta at the learning rate of all else. For TC the paper does not
name the transform."""),
    'addition': (
        'MNIST addition (appendix A.1)',
        """Test error of the sum of two digits, one in each of two channels, each rotated, scaled and moved by itself.
Each of two transformers sees and warps both channels, and the network sees all four (`stn_join=channels`)."""),
    'co-localisation': (
        'Co-localisation (appendix A.2)',
        """Percentage of 100 digits of one class on 84 x 84 that are found (overlap above one half), by a triplet loss
without any box or class. TC adds 16 pieces of other digits. Higher is better."""),
    'sequences': (
        'Digit sequences, in place of SVHN (section 4.2)',
        """Percentage of images of which not every digit was read: one to five digits of MNIST in a row on coloured
texture (`timm_stn.data.sequences`), since SVHN's images are not at hand. They do not compare with the paper's figures.
`svhn_cnn` of half the paper's width."""),
    'svhn': (
        'SVHN (section 4.2)',
        """Percentage of house numbers of which not every digit was read. `svhn_cnn` as in the paper."""),
    'placement': (
        'What to warp, and by which features',
        """Test error of `mnist_cnn` with one affine look, recipe and size as in Table 1. Finnveden et al. 2020
(arXiv:2004.11678) show that a warp of features cannot undo a rotation or change of scale of the image, and advise to
warp the image, by features that are shared with the network."""),
    'volumes': (
        'Volumes (appendix A.3)',
        """Test error of digits extruded, turned and moved in 60 x 60 x 60 voxels. The paper reports no figure."""),
}


class Found(NamedTuple):
    """The runs of a cell."""
    values: list[float]
    parameters: int
    seconds: float
    device: str


def results(lines: Iterable[Line]) -> str:
    """The page, of the lines of the record."""
    recorded = {line['name']: line for line in lines}
    parts = [HEAD.format(seeds=SEEDS)]
    for experiment, (title, text) in TEXTS.items():
        mine = [cell for cell in cells() if cell.experiment == experiment]
        if not mine:
            continue
        parts.append(f'## {title}\n\n{text}\n')
        for recipe in dict.fromkeys(cell.recipe for cell in mine):
            chosen = [cell for cell in mine if cell.recipe == recipe]
            found = [(cell, runs_of(cell, recorded)) for cell in chosen]
            parts.append(f'{command(chosen)}\n\n{table(found)}')
    return '\n'.join(parts)


def runs_of(cell: Cell, recorded: dict[str, Line]) -> Found | None:
    runs = [recorded[name] for seed in range(SEEDS) if (name := f'{cell.name}-{seed}') in recorded]
    if not runs:
        return None
    values = [value_of(cell, run) for run in runs]
    return Found(values, runs[0]['parameters'], statistics.median(sum(run['seconds']) for run in runs),
                 short(runs[-1]['device']))


def value_of(cell: Cell, run: Line) -> float:
    value = run
    for key in cell.result:
        value = value[key]
    return float(value)


def short(device: str) -> str:
    return device.removeprefix('NVIDIA ').split()[0] if device != 'cpu' else 'CPU'


def command(chosen: list[Cell]) -> str:
    first = chosen[0]
    values = {name: dict.fromkeys(cell.choice[name] for cell in chosen) for name in first.choice}
    names = ' '.join(f'[--{name} {" ".join(found)}]' for name, found in values.items())
    recipe = f' --recipe {first.recipe}' if first.recipe != 'modern' else ''
    return f'    python scripts/reproduce.py {first.experiment}{recipe} {names} --data DIR'


def table(found: list[tuple[Cell, Found | None]]) -> str:
    """Rows and columns as the cells name them."""
    columns, rows = (list(dict.fromkeys(getattr(cell, name) for cell, _ in found)) for name in ('column', 'row'))
    lines = [f'| | {" | ".join(columns)} | parameters | seconds a run |', '| --- ' * (len(columns) + 3) + '|']
    for row in rows:
        mine = {cell.column: (cell, runs) for cell, runs in found if cell.row == row}
        texts = [shown(*mine[column]) if column in mine else '' for column in columns]
        ran = [runs for _, runs in mine.values() if runs]
        lines.append(f'| {row} | {" | ".join(texts)} | {span([f.parameters for f in ran])} | {times(ran)} |')
    return '\n'.join(lines) + '\n'


def shown(cell: Cell, found: Found | None) -> str:
    paper = '' if cell.paper is None else f' ({cell.paper:g})'
    if found is None:
        return NOT_RUN + paper
    n, mean = len(found.values), statistics.mean(found.values)
    text = f'{mean:.2f}'
    if n > 1:
        text += f' ± {statistics.stdev(found.values) / n ** 0.5:.2f}'
    beats = cell.paper is not None and (mean >= cell.paper if cell.higher else mean <= cell.paper)
    if beats:
        text = f'**{text}**'
    return text + ('' if n == SEEDS else f', {n} seed{"s" if n > 1 else ""}') + paper


def span(numbers: list[int]) -> str:
    ends = sorted({min(numbers), max(numbers)}) if numbers else []
    return ' to '.join(f'{number:,}' for number in ends)


def times(ran: list[Found]) -> str:
    devices = dict.fromkeys(f.device for f in ran)
    return ', '.join(f'{span([round(f.seconds) for f in ran if f.device == device])} ({device})' for device in devices)


def missing(lines: Iterable[Line], chosen: Iterable[Cell]) -> list[str]:
    """Names of the runs of cells that are not recorded."""
    recorded = {line['name'] for line in lines}
    return [f'{cell.name}-{seed}' for seed in range(SEEDS) for cell in chosen if f'{cell.name}-{seed}' not in recorded]


def shown_lines(chosen: list[Cell], lines: Iterable[Line]) -> str:
    """The table of some cells, with what was measured on now."""
    recorded = {line['name']: line for line in lines}
    return table([(cell, runs_of(cell, recorded)) for cell in chosen])
