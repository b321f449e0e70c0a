"""Makes model_cards/RESULTS.md of the recorded runs: nothing in its tables is typed by hand."""
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from cells import SEEDS, Cell, cells
from records import Line

NOT_RUN = 'not run'
HEAD = """# Results

The experiments on digits of Jaderberg et al. 2015 (arXiv:1506.02025), and two that it lacks, beside its figures. Made
by `python scripts/reproduce.py table` from [results.jsonl](results.jsonl), which has each run's arguments, seed,
revision, device and seconds, and the error after each epoch. Do not edit. The paper's birds (section 4.3) were not run;
for birds of an older edition see the [README](../README.md#trained-networks).

A cell of a table is one network on one set: the mean of its seeds and their standard error, in percent, after the
last epoch. Where there are fewer than {seeds} seeds, their number follows. "not run" has none yet
([what is left](../docs/gpu.md#what-is-left-to-run)). In parentheses is the paper's figure; with ~ it is one that we
have from memory alone. **Bold** are means no worse than a figure that we have read, however small the difference:
that 10,000 digits were drawn for the test alone is a standard error of 0.08 at an error of 0.6. No epoch, seed or
setting was chosen on test digits. Seconds are of runs beside others on one device.

{summary}
"""
TEXTS = {
    'distorted-mnist': (
        'Distorted MNIST (section 4.1, Table 1)',
        """Test error on 10,000 digits. Recipe `modern`: 60,000 digits an epoch, each distorted anew; transformers look
twice and have the localization network `conv`. It was chosen on 5,000 held-back training digits, on R and RTS
([GPU](../docs/gpu.md#training)). Recipe `paper`: 150,000 steps of 256, one look, `fc` before the FCN, theta at the
learning rate of all else. The paper names no momentum; here it is 0.9, by Nesterov. Steps of theta are bounded, as
always in this package. For TC the paper does not name the transform."""),
    'addition': (
        'MNIST addition (appendix A.1)',
        """Test error of the sum of two digits, one in each of two channels, each rotated, scaled and moved by itself.
Each of two transformers sees and warps both channels, and the network sees all four (`stn_join=channels`); all look
twice. The recipe was chosen on 5,000 held-back training digits, for two affine transformers. The plain networks have
it, too, were not tuned, and are behind the paper's, which were trained for ten times as many steps."""),
    'co-localisation': (
        'Co-localisation (appendix A.2)',
        """Percentage of 100 digits of one class on 84 x 84 that are found (overlap above one half), by a triplet loss
on features of a classifier. TC adds 16 pieces of other digits. Higher is better. The transformer's training knows
neither boxes nor classes; the classifier's features were trained on the classes of all training digits, and on crops
around them. The first box is as large as a digit, and its size hardly changes. Settings were chosen by boxes found on
images of seeds 100 and 101. `scripts/train/train_colocalisation.py` lists what is not the paper's."""),
    'sequences': (
        'Digit sequences, in place of SVHN (section 4.2)',
        """Percentage of images of which not every digit was read: one to five digits of MNIST in a row on coloured
texture (`timm_stn.data.sequences`), since SVHN's images are not at hand. They do not compare with the paper's figures.
`svhn_cnn` of half the paper's width, without dropout; nothing was tuned."""),
    'svhn': (
        'SVHN (section 4.2)',
        """Percentage of house numbers of which not every digit was read, by `svhn_cnn`. Networks are the paper's, the
recipe is not: the paper takes 400,000 steps of SGD. Its learning rate of localization networks, a tenth, is that of
theta here (`stn_lr_scale=0.1`). Multi's localization networks see shrinks of 16 x 16."""),
    'placement': (
        'What to warp, and by which features',
        """Test error of `mnist_cnn` with one affine look at full size, trained as in Table 1. Finnveden et al. 2020
(arXiv:2004.11678) show that a warp of features cannot undo a rotation or change of scale of the image, and advise to
warp the image, by features that are shared with the network."""),
    'volumes': (
        'Volumes (appendix A.3)',
        """Test error of digits extruded, turned and moved in 60 x 60 x 60 voxels. The paper reports no figure. Nothing
was tuned."""),
}


class Found(NamedTuple):
    """The runs of a cell."""
    values: list[float]
    parameters: int
    seconds: dict[str, float]  # by device
    runs: list[Line]


def results(lines: Iterable[Line]) -> str:
    """The page, of the lines of the record."""
    recorded = {line['name']: line for line in lines}
    groups = {key: [(cell, runs_of(cell, recorded)) for cell in mine] for key, mine in groups_of(cells()).items()}
    parts = [HEAD.format(seeds=SEEDS, summary=summary(groups))]
    for experiment, (title, text) in TEXTS.items():
        parts.append(f'## {title}\n\n{text}\n')
        parts += [f'{command([cell for cell, _ in found])}\n\n{table(found)}'
                  for (of, _), found in groups.items() if of == experiment]
    return '\n'.join(parts)


def groups_of(all_cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each table, by experiment and recipe, in the order of TEXTS."""
    found: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in sorted(all_cells, key=lambda cell: list(TEXTS).index(cell.experiment)):
        found[cell.experiment, cell.recipe].append(cell)
    return found


def summary(groups: dict[tuple[str, str], list[tuple[Cell, Found | None]]]) -> str:
    """How much was run, and how much of it is no worse than the paper."""
    lines = ['| experiment | cells run | their seeds | no worse than the paper |', '| --- | --- | --- | --- |']
    for (experiment, recipe), mine in groups.items():
        ran = [(cell, found) for cell, found in mine if found]
        known = [(cell, found) for cell, found in ran if cell.paper is not None and cell.sure]
        good = sum(is_no_worse(cell, found) for cell, found in known)
        name = TEXTS[experiment][0] + ('' if recipe == 'modern' else f', recipe `{recipe}`')
        verdict = f'{good} of {len(known)}' if known else ''
        seeds = span([len(found.values) for _, found in ran])
        lines.append(f'| {name} | {len(ran)} of {len(mine)} | {seeds} | {verdict} |')
    return '\n'.join(lines)


def is_no_worse(cell: Cell, found: Found) -> bool:
    """Whether the mean is no worse than the paper's figure, which must be one that was read."""
    mean = statistics.mean(found.values)
    return cell.paper is not None and cell.sure and (mean >= cell.paper if cell.higher else mean <= cell.paper)


def run_name(cell: Cell, seed: int) -> str:
    """Of a run in the record: the cell's name with the seed for its `*`, or else at its end."""
    return cell.name.replace('*', str(seed)) if '*' in cell.name else f'{cell.name}-{seed}'


def runs_of(cell: Cell, recorded: dict[str, Line]) -> Found | None:
    runs = [recorded[name] for seed in range(SEEDS) if (name := run_name(cell, seed)) in recorded]
    if not runs:
        return None
    values = [value_of(cell, run) for run in runs]
    seconds = defaultdict(list)
    for run in runs:
        seconds[short(run['device'])].append(sum(run.get('seconds', ())))
    medians = {device: statistics.median(found) for device, found in seconds.items()}
    return Found(values, runs[0]['parameters'], medians, runs)


def value_of(cell: Cell, run: Line) -> float:
    value = run
    for key in cell.result:
        value = value[key]
    return float(value)


def short(device: str) -> str:
    return device.removeprefix('NVIDIA ').split()[0] if device != 'cpu' else 'CPU'


def command(chosen: list[Cell]) -> str:
    """How to run cells, and the arguments that all of them are trained with."""
    first = chosen[0]
    values = {name: dict.fromkeys(cell.choice[name] for cell in chosen) for name in first.choice}
    names = ' '.join(f'[--{name} {" ".join(found)}]' for name, found in values.items())
    recipe = f' --recipe {first.recipe}' if first.recipe != 'modern' else ''
    weights = ' --weights FILE' if any('lite0' in cell.parts for cell in chosen) else ''
    text = f'    python scripts/reproduce.py {first.experiment}{recipe} {names} --data DIR{weights}'
    common = [f'`{option}`' for option in trained_with(first) if all(option in trained_with(cell) for cell in chosen)]
    return text + (f'\n\nAll with {", ".join(common)}.' if common else '')


def trained_with(cell: Cell) -> list[str]:
    """A cell's options, but for what is its own: `--epochs 40`, `--amp`."""
    own = ('--data', '--output', '--device', '--weights', '--model', '--model-kwargs', '--set', '--also')
    return [' '.join([option, *values]) for option, values in options_of(cell).items() if option not in own]


def options_of(cell: Cell) -> dict[str, list[str]]:
    """A cell's options with their values."""
    found: dict[str, list[str]] = {}
    for word in cell.command[1:]:
        if word.startswith('--'):
            values = found[word] = []
        else:
            values.append(word)
    return found


def table(found: list[tuple[Cell, Found | None]]) -> str:
    """Rows and columns as the cells name them, then the number of parameters in each column."""
    columns, rows = (list(dict.fromkeys(getattr(cell, name) for cell, _ in found)) for name in ('column', 'row'))
    lines = [f'| | {" | ".join(columns)} | parameters | seconds a run |', '| --- ' * (len(columns) + 3) + '|']
    for row in rows:
        mine = {cell.column: (cell, runs) for cell, runs in found if cell.row == row}
        texts = [shown(*mine[column]) if column in mine else '' for column in columns]
        ran = [runs for _, runs in mine.values() if runs]
        lines.append(f'| {row} | {" | ".join(texts)} | {span([f.parameters for f in ran])} | {times(ran)} |')
    counts = [span([runs.parameters for cell, runs in found if runs and cell.column == column]) for column in columns]
    if len(rows) > 1 and len(columns) > 1 and any(counts):
        lines.append(f'| parameters | {" | ".join(counts)} | | |')
    return '\n'.join(lines) + '\n'


def shown(cell: Cell, found: Found | None) -> str:
    paper = '' if cell.paper is None else f' ({"" if cell.sure else "~"}{cell.paper:g})'
    if found is None:
        return NOT_RUN + paper
    text = figure(found.values)
    if is_no_worse(cell, found):
        text = f'**{text}**'
    return text + few(found.values) + paper


def figure(values: list[float]) -> str:
    """The mean, and its standard error if there is more than one value."""
    text = f'{statistics.mean(values):.2f}'
    return text if len(values) == 1 else f'{text} ± {standard_error(values):.2f}'


def standard_error(values: list[float]) -> float:
    """Of the mean of two values or more."""
    return statistics.stdev(values) / len(values) ** 0.5


def few(values: list[float]) -> str:
    """The number of seeds, where it is not that of all."""
    n = len(values)
    return '' if n == SEEDS else f', {n} seed{"s" if n > 1 else ""}'


def span(numbers: list[int]) -> str:
    ends = sorted({min(numbers), max(numbers)}) if numbers else []
    return ' to '.join(f'{number:,}' for number in ends)


def times(ran: list[Found]) -> str:
    devices = dict.fromkeys(device for f in ran for device in f.seconds)
    return ', '.join(
        f'{span([round(f.seconds[device]) for f in ran if device in f.seconds])} ({device})' for device in devices)


def shown_lines(chosen: list[Cell], lines: Iterable[Line]) -> str:
    """The table of some cells, with what was measured on now."""
    recorded = {line['name']: line for line in lines}
    return table([(cell, runs_of(cell, recorded)) for cell in chosen])
