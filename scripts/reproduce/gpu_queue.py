"""The list of trainings for a GPU, in order; `gpu.py` runs them.

A command is a path in scripts/ with arguments. In these, {mnist}, {learning}, {birds}, {signs}, {lite0} and {lite2}
are the packed data, {run} is the job's folder, {parent} its parent folder, {device} the device, {workers} the number of
loader processes, and {left} the remaining seconds.
"""
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import NamedTuple

from cells import SEEDS, Cell, cells
from pays_cells import pays


class Job(NamedTuple):
    """A job; it resumes from the files in its folder."""
    name: str  # and its folder among the runs
    command: tuple[str, ...]
    seconds: float  # measured or estimated, on a H100, beside others
    parts: tuple[str, ...]  # of the pack, see gpu_pack.py
    result: str = 'result.json'  # the file in its folder that says that it is finished
    keeps: tuple[str, ...] = ('result.json', 'summary.csv')  # the files that come back
    checkpoint: str = 'checkpoint.pt'  # comes back, too, of a job that is not finished
    cores: int = 1
    smoke: tuple[str, ...] = ('--epochs', '1')  # arguments that make it tiny
    returns: bool = True  # whether its checkpoint is small enough to come back
    partly: bool = False  # is of use also where it is cut off, and so starts whatever time is left

    @property
    def kind(self) -> str:
        """The kind of a job: jobs of one kind differ only in arguments. A rehearsal runs the first of each kind."""
        return self.name.partition('-')[0]


ALL = 999  # cores: nothing runs beside it
WEIGHTS = ('result.json', 'summary.csv', 'model.safetensors')
CARD = ('--epochs', '20', '--batch-size', '64', '--lr', '0.0015', '--ema-decay', '0.999', '--channels-last')
RTS = ('--model', 'stn_mnist_cnn_rts', '--model-kwargs', 'stn_size=24', 'channels=[64,128]', 'stn_iterations=2')
TC = ('--model', 'stn_mnist_cnn_tc')
BIRDS = dict(  # runs of train_birds.sh, and their seconds
    plain224=150, zoom192=150, whole2at448=450, plain448=500, plain176=150, one176=150, plain112=150, zoom112=150,
    whole2=150, whole4=150, glimpses2=150, glimpses4=150)
CARDS = ('zoom192', 'whole2at448')  # those whose weights may become a card's
BIRDS2 = dict(plain224=220, zoom192=220, whole2=220)  # those of lite2


def train_mnist(*args: str) -> tuple[str, ...]:
    return ('train/train_task.py', '--data', '{mnist}', '--output', '{run}', '--device', '{device}', *args)


def cards() -> Iterator[Job]:
    """The networks of model_cards, with their recipes."""
    for seed in range(3):
        for kind, model in (('RTS', RTS), ('TC', TC)):
            command = train_mnist(*model, '--set', kind, *CARD, '--seed', str(seed))
            yield Job(f'card-{kind}-{seed}', command, 60, ('mnist',), keeps=WEIGHTS)


def paper(seeds: Iterable[int], *names: str) -> Iterator[Job]:
    """The runs of cells of these names, as 'table1-*', of all of them the first seed first."""
    chosen = [cell for cell in [*cells(), *pays()] if any(fnmatch(cell.name, name) for name in names)]
    for seed in seeds:
        yield from {cell.name: job_of(cell, seed) for cell in chosen}.values()


def job_of(cell: Cell, seed: int) -> Job:
    """The run of a cell with a seed."""
    return Job(f'{cell.name}-{seed}', (*cell.command, '--seed', str(seed)), cell.seconds, cell.parts,
               keeps=WEIGHTS if seed in cell.weights else WEIGHTS[:2], checkpoint=cell.checkpoint,
               returns=cell.returns, smoke=cell.smoke)


def tune() -> Iterator[Job]:
    """Tuning on R and RTS, with 5,000 held-out training digits: one change at a time."""
    base = {'epochs': 40, 'lr': 0.002, 'ema-decay': 0.999}
    recipes = {'long': {'epochs': 120}, 'base': {}, 'small-batch': {'batch-size': 64, 'epochs': 20}}
    st_recipes = {'no-ema': {'ema-decay': 0.}, 'decay': {'weight-decay': 0.1}, 'low-rate': {'lr': 0.001},
                  'high-rate': {'lr': 0.004}}
    st_arguments = {'twice': ('stn_iterations=2',), 'tps': ('stn_transform=tps',), 'slow-theta': ('stn_lr_scale=3.0',)}
    for kind in ('R', 'RTS'):
        cnn, fcn = ('channels=[64,128]',), ('hidden=350' if kind == 'R' else 'hidden=200',)
        small = ('stn_size=24',) if kind == 'RTS' else ()
        networks = {'st-cnn': ('stn_mnist_cnn', cnn + small), 'st-fcn': ('stn_mnist_fcn', fcn + small),
                    'cnn': ('mnist_cnn', cnn), 'fcn': ('mnist_fcn', fcn)}
        for name, (model, kwargs) in networks.items():
            tried = [(change, kwargs, recipe) for change, recipe in recipes.items()]
            if name.startswith('st-'):
                tried += [(change, kwargs, recipe) for change, recipe in st_recipes.items()]
                tried += [(change, kwargs + more, {}) for change, more in st_arguments.items()]
            for change, arguments, recipe in tried:
                options = [word for option, value in {**base, **recipe}.items() for word in (f'--{option}', str(value))]
                command = train_mnist('--model', model, '--model-kwargs', *arguments, '--set', kind, *options,
                                      '--held-back', '5000')
                yield Job(f'tune-{kind}-{name}-{change}', command, 60, ('mnist',),
                          smoke=('--epochs', '1', '--held-back', '20'))


def tune_addition() -> Iterator[Job]:
    """Tuning of addition with two transformers, on held-out digits: one change at a time, then some together."""
    large, twice = 'stn_localization=conv:channels=32,hidden=64', 'stn_iterations=2'
    many = {'epochs': 128, 'batch-size': 512, 'lr': 0.003}
    tried: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
        'base': ((), {}), 'large': ((large,), {}), 'twice': ((twice,), {}), 'both': ((large, twice), {}),
        'fc': (('stn_localization=fc',), {}), 'high-rate': ((large,), {'lr': 0.005}), 'batch': ((large,), many),
        'batch-both': ((large, twice), many), 'fast-theta': ((large, 'stn_lr_scale=30.0'), {}),
        'slow-theta': ((large, 'stn_lr_scale=3.0'), {}), 'wide': ((large, 'stn_size=32', 'hidden=100'), {}),
        'no-decay': ((large,), {'weight-decay': 0.}), 'tiles': ((large, 'stn_scale=0.6', 'stn_bound=False'), {}),
        'fc-twice': (('stn_localization=fc', twice), {})}
    for name, (kwargs, recipe) in tried.items():
        base = {'epochs': 64, 'batch-size': 256, 'lr': 0.002, 'ema-decay': 0.999, 'weight-decay': 0.1, **recipe}
        options = [word for option, value in base.items() for word in (f'--{option}', str(value))]
        command = train_mnist(
            '--model', 'stn_mnist_fcn', '--model-kwargs', 'hidden=155', 'stn_size=24', 'stn_glimpses=2',
            'stn_join=channels', *kwargs, '--set', 'ADD', *options, '--held-back', '5000')
        yield Job(f'tune-ADD-{name}', command, 150, ('mnist',), smoke=('--epochs', '1', '--held-back', '20'))


def birds() -> Iterator[Job]:
    """The runs of train_birds.sh; the weights of the cards' networks come back for the first seed."""
    parts, keeps = ('timm-scripts', 'birds-train', 'birds-test'), ('result.json', 'summary.csv', 'args.yaml')
    for kind, part, runs in (('birds', 'lite0', BIRDS), ('birds2', 'lite2', BIRDS2)):
        for name, seconds in runs.items():
            for seed in range(3):
                command = ('train/train_birds.sh', '{birds}', f'{{{part}}}/model.safetensors', '{parent}',
                           f'BASE=tf_efficientnet_{part}', f'SEED={seed}', 'EPOCHS=12', 'DEVICE={device}',
                           'WORKERS={workers}', name)
                yield Job(f'{kind}-{seed}/{name}', command, seconds, (part, *parts),
                          keeps=(*keeps, 'last.pth.tar') if name in CARDS and seed == 0 else keeps,
                          checkpoint='last.pth.tar', cores=2, smoke=('EPOCHS=1', 'WORKERS=1'))


def distil(*seeds: int) -> Iterator[Job]:
    """`stn_resnet50_cub`, and plain networks that are trained alike.

    Each has the machine for itself, for one checkpoint has room to come back.
    """
    for seed in seeds:
        command = ('train/distil.py', '--data', '{birds}', '--weights', '{lite0}/model.safetensors', '--output',
                   '{run}', '--device', '{device}', '--seed', str(seed))
        yield Job(f'distil-{seed}', command, 600, ('lite0', 'birds-train', 'birds-test'),
                  keeps=WEIGHTS if seed == 0 else WEIGHTS[:2], cores=ALL, partly=True,
                  smoke=('--epochs', '1', '1', '1', '1', '--sides', '32', '64', '96', '--photos', '16'))


def learning() -> Iterator[Job]:
    """Runs of measure_learning.py."""
    command = ('reproduce/measure_learning.py', '--data', '{learning}', '--weights', '{lite0}/model.safetensors',
               '--output', '{run}/learning.jsonl', '--device', '{device}', '--jobs', '10', '--seeds', '10',
               '--budget', '{left}')
    yield Job('learning', command, 300, ('mnist', 'learning', 'lite0'), 'finished', ('learning.jsonl',), cores=10,
              partly=True, smoke=('--only', 'alive/birds/*/rotation', '--seeds', '1', '--jobs', '1'))


def queue() -> list[Job]:
    every, later = range(SEEDS), range(1, SEEDS)
    where_it_pays = [cell.name for cell in pays()]
    return [
        *cards(), *paper(every, *where_it_pays, 'volumes-*'), *birds(), *distil(0), *tune_addition(),
        *paper([0], 'sequences-*', 'placement-*'), *paper(later, 'placement-*', 'sequences-64-*'),
        *paper(every, 'colocalisation-*'), *paper(every, 'addition-*'), *paper(every, 'table1-*'),
        *paper(later, 'sequences-128-*'), *tune(), *paper(every, 'paper1-*'), *distil(*later),
        *learning()]
