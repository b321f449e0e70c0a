"""The paper's experiments, and those that it lacks, as a plain list of cells of tables; each is run with three seeds.

`gpu_queue.py` makes jobs of them, `reproduce.py` runs them and makes their tables. Needs no torch, as gpu.py does not.
"""
from collections.abc import Iterator
from typing import Any, NamedTuple

SEEDS = 3
PLAIN, TRANSFORMS = 'none', ('affine', 'projective', 'tps')
SETS = ('R', 'RTS', 'P', 'E', 'TC')


class Cell(NamedTuple):
    """One cell of a table."""
    experiment: str
    name: str  # of its runs, without the seed
    row: str
    column: str
    command: tuple[str, ...]  # of one run, without the seed, as in gpu_queue.py
    seconds: float  # of a run, measured or estimated, on an H100 beside others
    paper: float | None = None  # the paper's figure, in percent
    choice: dict[str, str] = {}  # the options of reproduce.py that select it
    recipe: str = 'modern'
    weights: tuple[int, ...] = ()  # seeds of which the weights are kept
    parts: tuple[str, ...] = ('mnist',)  # of the pack, with its data
    returns: bool = True  # whether the checkpoint of an interrupted run is small enough to travel
    checkpoint: str = 'checkpoint.pt'  # of which an interrupted run resumes
    smoke: tuple[str, ...] = ('--epochs', '1')  # arguments that make a run tiny
    sure: bool = True  # whether the paper's figure was read, and not remembered
    result: tuple[str | int, ...] = ('test_error',)  # where its figure is in result.json
    higher: bool = False  # whether more is better


def train(part: str, *args: str) -> tuple[str, ...]:
    return 'train/train_task.py', '--data', f'{{{part}}}', '--output', '{run}', '--device', '{device}', *args


def options(**values: Any) -> tuple[str, ...]:
    return tuple(word for name, value in values.items() for word in (f'--{name.replace("_", "-")}', str(value)))


# Table 1

MODERN = options(epochs=40, ema_decay=0.999, weight_decay=0.1)
PAPER = options(epochs=638, opt='sgd', lr=0.01, schedule='step', warmup_epochs=0)  # 150,000 steps of 256
TABLE1 = {  # error in percent, of R, RTS, P, E, and TC, whose transform the paper does not name
    'FCN': (2.1, 5.2, 3.1, 3.2, 13.2), 'CNN': (1.2, 0.8, 1.5, 1.4, 3.5),
    'ST-FCN affine': (1.2, 0.8, 1.5, 2.7, 2.0), 'ST-FCN projective': (1.3, 0.9, 1.4, 2.6, 2.0),
    'ST-FCN tps': (1.1, 0.8, 1.4, 2.4, 2.0), 'ST-CNN affine': (0.7, 0.5, 0.8, 1.2, 1.7),
    'ST-CNN projective': (0.8, 0.6, 0.8, 1.3, 1.7), 'ST-CNN tps': (0.7, 0.5, 0.8, 1.1, 1.7)}
SQUARE = (('channels=[64,128]', 'hidden=350'), ('channels=[64,128]', 'hidden=340'), ())
WIDTHS = {  # of plain networks, of those behind a transformer, and what that gives; 330,000 to 440,000 parameters
    'RTS': (('channels=[64,128]', 'hidden=200'), ('channels=[64,128]', 'hidden=370'), ('stn_size=24',)),
    'TC': (('channels=[48,112]', 'hidden=108'), ('channels=[60,120]', 'hidden=270'), ('stn_size=28',))}
PAPERS_WIDTHS = {  # the paper's localization network of an FCN is fully connected
    'R': 'hidden=326', 'RTS': 'hidden=365', 'P': 'hidden=326', 'E': 'hidden=326', 'TC': 'hidden=245'}


def table1(recipe: str = 'modern') -> Iterator[Cell]:
    """Distorted digits (section 4.1). The modern recipe is that of `tune` in gpu_queue.py, and looks twice."""
    is_paper = recipe == 'paper'
    for i, kind in enumerate(SETS):
        plain, behind, size = WIDTHS.get(kind, SQUARE)
        for transform in (PLAIN, *TRANSFORMS):
            for j, model in enumerate(('cnn', 'fcn')):
                name, row, args = f'mnist_{model}', model.upper(), [plain[j]]
                full = model
                if transform != PLAIN:
                    name, row, full = f'stn_{name}', f'ST-{row} {transform}', f'st-{model}'
                    args = [behind[j], *size, f'stn_transform={transform}']
                    if is_paper:
                        args += ['stn_lr_scale=1.0']
                        args = [PAPERS_WIDTHS[kind], *args[1:], 'stn_localization=fc'] if model == 'fcn' else args
                    else:
                        args += ['stn_iterations=2']
                of_name = full if transform == PLAIN else f'{full}-{transform}'
                command = train('mnist', '--model', name, '--model-kwargs', *args, '--set', kind,
                                *(PAPER if is_paper else MODERN))
                seconds = (45 if transform == PLAIN else 150) * (16 if is_paper else 1)
                table = 'paper1' if is_paper else 'table1'
                yield Cell(
                    'distorted-mnist', f'{table}-{kind}-{of_name}', row, kind, command, seconds, TABLE1[row][i],
                    dict(distortion=kind, model=full, transform=transform), recipe,
                    weights=(2,) if of_name == 'st-cnn-tps' and not is_paper else ())


# what the paper lacks

PLACES = {  # how the transformer sees and what it warps; all look once
    'none': ('no transformer', 'mnist_cnn', ()),
    'input': ('warps the image, by a network of its own', 'stn_mnist_cnn', ()),
    'features': ('warps the features of layer 1', 'stn_mnist_cnn', ('stn_stages=[0]',)),
    'shared-0': ('warps the image, by features of layer 1', 'stn_mnist_cnn', ('stn_stages=[0]', 'stn_target=input')),
    'shared-1': ('warps the image, by features of layer 2', 'stn_mnist_cnn', ('stn_stages=[1]', 'stn_target=input')),
}


def placement() -> Iterator[Cell]:
    """What to warp, and by which features (Finnveden et al. 2020, arXiv:2004.11678)."""
    for kind in ('R', 'RTS'):
        for place, (row, model, args) in PLACES.items():
            command = train('mnist', '--model', model, '--model-kwargs', 'channels=[64,128]', *args, '--set', kind,
                            *MODERN)
            name = f'table1-{kind}-cnn' if place == 'none' else f'placement-{kind}-{place}'
            yield Cell('placement', name, row, kind, command, 45 if place == 'none' else 240,
                       choice=dict(distortion=kind, place=place))


# addition

ADDITION = {  # error in percent: plain networks, then those behind one transformer, or two
    'FCN': 47.7, 'CNN': 14.7, 'ST-FCN affine': 22.6, 'ST-FCN projective': 18.5, 'ST-FCN tps': 19.1,
    '2 x ST-FCN affine': 9.0, '2 x ST-FCN projective': 5.9, '2 x ST-FCN tps': 5.8}


def addition() -> Iterator[Cell]:
    """Addition of two digits (appendix A.1), about 400,000 parameters; both of two transformers see both channels."""
    recipe = options(epochs=64, batch_size=256, lr=0.002, ema_decay=0.999, weight_decay=0.1)
    networks = [('FCN', PLAIN, 'mnist_fcn', ['hidden=110']), ('CNN', PLAIN, 'mnist_cnn', ['channels=[64,112]'])]
    for transform in TRANSFORMS:
        size = ['stn_size=24', f'stn_transform={transform}', 'stn_iterations=2',
                'stn_localization=conv:channels=32,hidden=64']
        networks += [(f'ST-FCN {transform}', transform, 'stn_mnist_fcn', ['hidden=270', *size]),
                     (f'2 x ST-FCN {transform}', transform, 'stn_mnist_fcn',
                      ['hidden=155', *size, 'stn_glimpses=2', 'stn_join=channels'])]
    for row, transform, model, kwargs in networks:
        name = row.split()[0].lower() if row[0] != '2' else '2-st-fcn'
        full = name if transform == PLAIN else f'{name}-{transform}'
        command = train('mnist', '--model', model, '--model-kwargs', *kwargs, '--set', 'ADD', *recipe)
        yield Cell('addition', f'addition-{full}', row, 'error', command, 60 if transform == PLAIN else 200,
                   ADDITION[row], dict(model=name, transform=transform), sure=row != 'ST-FCN tps',
                   weights=(0,) if full == '2-st-fcn-tps' else ())


# sequences of digits

SEQUENCES = {
    'CNN': ('cnn', 'svhn_cnn', ()),
    'ST-CNN Single': ('st-cnn-single', 'stn_svhn_cnn', (
        'stn_localization=conv:channels=32,hidden=32,depth=2',)),
    'ST-CNN Multi': ('st-cnn-multi', 'stn_svhn_cnn', (
        "stn_stages=['input',0,1,2]", 'stn_localization=fc:hidden=32,depth=2', 'stn_localization_size=16'))}
SVHN = {(64, 'CNN'): 4.0, (64, 'ST-CNN Single'): 3.7, (64, 'ST-CNN Multi'): 3.6,
        (128, 'CNN'): 5.6, (128, 'ST-CNN Single'): 3.9, (128, 'ST-CNN Multi'): 3.9}


def sequences() -> Iterator[Cell]:
    """Digit sequences, which stand for SVHN (section 4.2), read by a network of half the paper's width."""
    for size, epochs, seconds in ((64, 20, 420), (128, 12, 600)):
        recipe = options(epochs=epochs, batch_size=128, lr=0.001, weight_decay=0.05, ema_decay=0.999)
        for row, (name, model, kwargs) in SEQUENCES.items():
            command = train('mnist', '--model', model, '--model-kwargs', 'width=0.5', 'drop_rate=0.0', *kwargs, '--set',
                            f'SEQ{size}', *recipe, '--amp', '--channels-last')
            yield Cell('sequences', f'sequences-{size}-{name}', row, str(size), command, seconds, None,
                       dict(size=str(size), model=name), returns=False)


def svhn() -> Iterator[Cell]:
    """SVHN (section 4.2, appendix A.5), whose images are not part of the pack; 30 epochs, the paper 218."""
    recipe = options(epochs=30, batch_size=128, lr=0.001, weight_decay=0.05, ema_decay=0.999)
    for size in (64, 128):
        for row, (name, model, kwargs) in SEQUENCES.items():
            args = [*kwargs, 'stn_lr_scale=0.1'] if kwargs else []
            args += [f'stn_localization_size={size}'] if name == 'st-cnn-single' else []
            given = ('--model-kwargs', *args) if args else ()
            command = train(
                'svhn', '--model', model, *given, '--set', f'SVHN{size}', *recipe, '--amp', '--channels-last')
            yield Cell('svhn', f'svhn-{size}-{name}', row, str(size), command, 3600, SVHN[size, row],
                       dict(size=str(size), model=name), parts=('svhn',), returns=False)


# volumes

def volumes() -> Iterator[Cell]:
    """Extruded digits (appendix A.3), flattened along the depth."""
    recipe = options(epochs=4, batch_size=64, lr=0.002, ema_decay=0.999)
    for row, model, kwargs in (('CNN', 'volume_cnn', ('channels=[48,112]',)),
                               ('ST-CNN affine', 'stn_volume_cnn', ('channels=[60,112]', 'localization_size=20'))):
        command = train('mnist', '--model', model, '--model-kwargs', *kwargs, '--set', 'VOLUME', *recipe)
        name = row.split()[0].lower()
        yield Cell('volumes', f'volumes-{name}', row, 'error', command, 120, choice=dict(model=name))


# co-localisation

FOUND = {'T': (100,) * 10, 'TC': (81, 82, 88, 75, 94, 84, 93, 85, 89, 87)}  # percent of each class


def colocalisation() -> Iterator[Cell]:
    """Co-localisation (appendix A.2): one run for all ten classes of a set."""
    for kind, papers in FOUND.items():
        command = ('train/train_colocalisation.py', '--set', kind, '--data', '{mnist}', '--output', '{run}',
                   '--device', '{device}')
        for digit, paper in enumerate(papers):
            yield Cell(
                'co-localisation', f'colocalisation-{kind}', kind, str(digit), command, 300, paper, dict(set=kind),
                result=('accuracy', digit), higher=True, checkpoint='encoder.pt', sure=kind == 'T',
                smoke=('--classes', '3', '--images', '8', '--steps', '2', '--encoder-epochs', '1'))


def cells() -> list[Cell]:
    """All of them."""
    return [*table1(), *table1('paper'), *addition(), *colocalisation(), *sequences(), *svhn(), *placement(),
            *volumes()]
