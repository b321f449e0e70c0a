"""What waits to be trained on a GPU, in order; `scripts/gpu.py` runs it.

A command is one of our own scripts with its arguments, in which {data} and {weights} stand for what was packed, {run}
for the folder of the job, {device} for the device and {left} for the seconds that are left.
"""
from collections.abc import Iterator
from typing import NamedTuple


class Job(NamedTuple):
    """A job, which goes on from what it finds in its folder."""
    name: str
    command: tuple[str, ...]
    seconds: float  # measured or estimated, on a H100
    result: str = 'result.json'  # the file in its folder that says that it is finished
    keeps: tuple[str, ...] = ('result.json', 'summary.csv')  # the files that come back
    cores: int = 1
    smoke: tuple[str, ...] = ('--epochs', '1')  # arguments that make it tiny
    partly: bool = False  # is of use also where it is cut off, and so starts whatever time is left


WEIGHTS = ('result.json', 'summary.csv', 'model.safetensors')
CARD = ('--epochs', '20', '--batch-size', '64', '--lr', '0.0015', '--ema-decay', '0.999', '--channels-last')
RTS = ('--model', 'stn_mnist_cnn_rts', '--model-kwargs', 'stn_size=24', 'channels=[64,128]', 'stn_iterations=2')
TC = ('--model', 'stn_mnist_cnn_tc')


def train_mnist(*args: str) -> tuple[str, ...]:
    return ('train_mnist.py', '--data', '{data}', '--output', '{run}', '--device', '{device}', *args)


def cards() -> Iterator[Job]:
    """The networks of model_cards, by their recipe."""
    for seed in range(3):
        for kind, model in (('RTS', RTS), ('TC', TC)):
            command = train_mnist(*model, '--set', kind, *CARD, '--seed', str(seed))
            yield Job(f'card-{kind}-{seed}', command, 60, keeps=WEIGHTS)


def learning() -> Iterator[Job]:
    """Does it learn, by default, on a thousand images?"""
    command = ('measure_learning.py', '--data', '{data}', '--weights', '{weights}', '--output', '{run}/learning.jsonl',
               '--device', '{device}', '--jobs', '10', '--seeds', '10', '--budget', '{left}')
    yield Job('learning', command, 300, 'finished', ('learning.jsonl',), cores=10, partly=True,
              smoke=('--only', 'alive/turned digits/*/rotation', '--seeds', '0'))


def table1() -> Iterator[Job]:
    """The networks of the paper's Table 1, with the arguments that a user gets, and its sets."""
    networks = {name: (f'mnist_{name}', ()) for name in ('fcn', 'cnn')}
    networks |= {f'st-{name}-{transform}': (f'stn_mnist_{name}', ('--model-kwargs', f'stn_transform={transform}'))
                 for name in ('fcn', 'cnn') for transform in ('affine', 'projective', 'tps')}
    for seed in range(3):
        for kind in ('R', 'RTS', 'P', 'E', 'TC'):
            for name, (model, kwargs) in networks.items():
                command = train_mnist('--model', model, *kwargs, '--set', kind, '--seed', str(seed))
                yield Job(f'table1-{kind}-{name}-{seed}', command, 30)


def queue() -> list[Job]:
    return [*learning(), *cards(), *table1()]
