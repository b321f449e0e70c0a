"""Does a transformer learn, with the default arguments, on a thousand images? Measures it, and writes docs/training.md.

    python scripts/measure_learning.py --data DIR --weights FILE --jobs 2     # all runs that docs/learning.jsonl lacks
    python scripts/measure_learning.py --write                                # the tables, from docs/learning.jsonl
    python scripts/measure_learning.py --tune --output FILE --only 'alive/*' --data ...     # to choose something by

DIR has `mnist/` (the idx files), `gtsrb32/` and `cub200-2010/` (`train.tar` and `test.tar`, a folder a class); FILE is
the ImageNet checkpoint of tf_efficientnet_lite0. Every run is a line, with all that it was made of; a run that is there
is not made again. One thread a run. Held out are test sets, with `--tune` training images that were kept back.
`--model-kwargs` adds arguments to the transformers'.

`spread` is the standard deviation, over held-out images, of where the look lies: see `timm_stn.dependence`.
"""
import argparse
import json
import math
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.utils import ParseKwargs
from torch import Tensor
from torch.nn import functional as F

import timm_stn  # noqa: F401
from timm_stn import warp
from timm_stn.data import distort, load_mnist
from timm_stn.dependence import witnessing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'training.md'
MOMENTUM = 0.9
Images = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """Images, and how a network learns them."""
    load: Callable[..., tuple[Images, Images]]  # (data folder, tune, seed) -> train, held out
    model: str
    kwargs: dict[str, Any]
    epochs: int
    batch_size: int = 32


class Case(NamedTuple):
    """A run, but for its seed."""
    group: str
    task: str
    transform: str | None  # None: the plain network
    opt: str = 'adamw'
    lr: float = 2e-3
    warmup: int = 0
    dtype: str = ''  # of autocast; default: bfloat16 for the small network of digits, where it is three times as fast

    @property
    def bfloat16(self) -> bool:
        return (self.dtype or ('bfloat16' if TASKS[self.task].model == 'mnist_cnn' else 'float32')) == 'bfloat16'

    @property
    def name(self) -> str:
        who = self.transform or 'plain'
        how = f'{self.opt}-{self.lr:g}{"-warmup" if self.warmup else ""}{"-" * bool(self.dtype)}{self.dtype}'
        return f'{self.group}/{self.task}/{how}/{who}'


# data


def turned(images: Tensor, seed: int, padding_mode: str) -> Tensor:
    """Each image turned by any angle."""
    angle = torch.rand(len(images), 1, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    return warp(images, angle, transform='rotation', padding_mode=padding_mode)


def digits(data: str, tune: bool, seed: int, kind: str) -> tuple[Images, Images]:
    """3,000 of MNIST's first 50,000 training digits; 5,000 of the others, or with ``tune=False`` of the test set."""
    images, labels = load_mnist(data, 'train')
    chosen = torch.randperm(50_000, generator=torch.Generator().manual_seed(7))[:3000]
    held = (images[50_000:55_000], labels[50_000:55_000]) if tune else [t[:5000] for t in load_mnist(data, 'test')]

    def make(digits: Tensor, seed: int) -> Tensor:
        if kind == 'RTS':
            return distort(digits, 'RTS', torch.Generator().manual_seed(seed))
        return turned(F.pad(digits.float() / 255, (7, 7, 7, 7)), seed, 'zeros')

    return (make(images[chosen], 1000 + seed), labels[chosen]), (make(held[0], 99), held[1])


def pictures(path: Path, side: int, classes: Iterable[str]) -> dict[str, list[tuple[str, Tensor]]]:
    """By class: names and images (3, side, side), normalised as lite0 wants them."""
    found: dict[str, list[tuple[str, Tensor]]] = {c: [] for c in classes}
    with tarfile.open(path) as tar:
        for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
            *_, folder, name = member.name.split('/')
            if folder in found:
                image = Image.open(tar.extractfile(member)).convert('RGB')
                image = image.resize((side, side), Image.Resampling.BICUBIC)
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(side, side, 3)
                found[folder].append((name, pixels.permute(2, 0, 1).float() / 127.5 - 1))
    return found


def class_names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return sorted({m.name.split('/')[-2] for m in tar if m.isfile()})


def stacked(parts: list[list[Tensor]]) -> Images:
    labels = [i for i, part in enumerate(parts) for _ in part]
    return torch.stack([image for part in parts for image in part]), torch.tensor(labels)


@cache
def signs(data: str, tune: bool, seed: int, turn: bool, side: int) -> tuple[Images, Images]:
    """Five speed limits, 200 training images each; held out are other tracks, or the test set's."""
    folder = Path(data) / 'gtsrb32'
    classes = class_names(folder / 'train.tar')[:5]
    generator = torch.Generator().manual_seed(5)
    train, held = [], []
    tests = {} if tune else pictures(folder / 'test.tar', side, classes)
    for name, found in pictures(folder / 'train.tar', side, classes).items():
        tracks = sorted({file[:5] for file, _ in found})
        order = torch.randperm(len(tracks), generator=generator).tolist()
        kept = {tracks[i] for i in order[:len(tracks) // 5]}
        others = [image for file, image in found if file[:5] not in kept]
        apart = [image for file, image in (found if tune else tests[name]) if not tune or file[:5] in kept]
        for part, images, count in ((train, others, 200), (held, apart, 120)):
            part.append([images[i] for i in torch.randperm(len(images), generator=generator)[:count].tolist()])
    (x, y), (held_x, held_y) = stacked(train), stacked(held)
    if turn:
        x, held_x = turned(x, 1000 + seed, 'border'), turned(held_x, 99, 'border')
    return (x, y), (held_x, held_y)


@cache
def birds(data: str, tune: bool, seed: int) -> tuple[Images, Images]:
    """Ten species, 15 training images each, at 64 x 64, and their test images; to tune, ten others."""
    folder = Path(data) / 'cub200-2010'
    classes = class_names(folder / 'train.tar')[7 if tune else 0::20]
    parts = [pictures(folder / f'{split}.tar', 64, classes) for split in ('train', 'test')]
    return tuple(stacked([[image for _, image in found] for found in part.values()]) for part in parts)


MNIST = dict(in_chans=1, img_size=42, channels=(32, 64), num_classes=10)
LITE0 = 'tf_efficientnet_lite0'
TASKS = {
    'turned digits': Task(partial(digits, kind='turned'), 'mnist_cnn', MNIST, 10),
    'RTS digits': Task(partial(digits, kind='RTS'), 'mnist_cnn', MNIST, 10),
    'turned signs': Task(partial(signs, turn=True, side=64), LITE0, dict(num_classes=5), 6),
    'signs': Task(partial(signs, turn=False, side=48), LITE0, dict(num_classes=5), 6),
    'birds': Task(birds, LITE0, dict(num_classes=10), 16, 16),
}


# what is measured


def cases() -> list[tuple[Case, int]]:
    """All runs, those that say most first: five seeds where a run takes less than half a minute, else three."""
    found: list[tuple[Case, int]] = []
    for task in ('turned digits', 'RTS digits', 'turned signs', 'birds'):
        seeds, lr = (5, 2e-3) if 'digits' in task else (3, 1e-3)
        found += [(Case('alive', task, transform, lr=lr), seed) for seed in range(seeds)
                  for transform in (None, 'affine', 'rotation', 'translation', 'similarity', 'tps')]
    for task in ('signs', 'birds'):
        for opt, lr in OPTIMIZERS:
            found += both(task, opt, lr)
    for opt, lr in (('nesterov', 0.1), ('adamw', 5e-3)):
        found += both('signs', opt, lr, warmup=50)
    for opt, lr in (('nesterov', 0.1), ('adamw', 1e-3)):
        found += both('signs', opt, lr, dtype='bfloat16')
    return found


OPTIMIZERS = (
    ('nesterov', 0.1), ('nesterov', 0.01), ('adamw', 1e-3), ('adamw', 5e-3), ('lion', 1e-4), ('muon', 1e-3),
    ('lamb', 5e-3))


def both(*args: Any, **kwargs: Any) -> list[tuple[Case, int]]:
    """Plain and with the default transformer."""
    task, *rest = args
    return [(Case('hurts', task, who, *rest, **kwargs), seed) for seed in range(3) for who in (None, 'affine')]


def create(task: Task, case: Case, weights: str | None, kwargs: dict[str, Any]) -> Any:
    pretrained = {}
    if task.model == LITE0:
        pretrained = dict(pretrained=True, pretrained_cfg_overlay=dict(file=weights, hf_hub_id=None, url=None))
    if case.transform is None:
        return timm.create_model(task.model, **task.kwargs, **pretrained)
    stn = dict(stn_transform=case.transform, **kwargs)
    return timm.create_model(f'stn_{task.model}', **task.kwargs, **stn, **pretrained)


def run(case: Case, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training, as a line of the record."""
    torch.set_num_threads(1)
    start, task = time.perf_counter(), TASKS[case.task]
    (x, y), held = task.load(args.data, args.tune, seed)
    torch.manual_seed(seed)
    model = create(task, case, args.weights, args.model_kwargs)
    if task.model == LITE0:
        model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    optimizer = create_optimizer_v2(
        model, case.opt, lr=case.lr, weight_decay=0.0 if task.model == 'mnist_cnn' else 0.05, momentum=MOMENTUM)
    steps = task.epochs * math.ceil(len(x) / task.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(factor, warmup=case.warmup, total=steps))
    order = torch.Generator().manual_seed(seed)
    watch = Watch(model)
    for _ in range(task.epochs):
        model.train()
        for index in torch.randperm(len(x), generator=order).split(task.batch_size):
            with torch.autocast('cpu', torch.bfloat16, enabled=case.bfloat16):
                logits = model(x[index])
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), y[index]).backward()
            watch.step()
            optimizer.step()
            schedule.step()
    line = dict(case._asdict(), name=case.name, seed=seed, tune=args.tune, model_kwargs=args.model_kwargs, steps=steps)
    line.update(evaluate(model, *held), **watch.found(), torch=torch.__version__, timm=timm.__version__)
    return dict(line, seconds=round(time.perf_counter() - start, 1))


def factor(step: int, warmup: int, total: int) -> float:
    return min(1, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / total))


class Watch:
    """theta in the first hundred steps, and its gradient in all."""

    def __init__(self, model: Any) -> None:
        self.stn = getattr(model, 'stn', None)
        self.steps, self.blank, self.far = 0, 0, 0.0

    def step(self) -> None:
        """After a backward pass."""
        if self.stn is None:
            return
        self.steps += 1
        self.blank += not self.stn.localization.regression.bias.grad.any()
        if self.steps <= 100:
            theta = self.stn.last_theta
            start = torch.eye(2, 3) if self.stn.transform.linear else torch.zeros(theta.shape[1:])
            self.far = max(self.far, float((theta - start).flatten(1).norm(dim=1).max()))

    def found(self) -> dict[str, Any]:
        return {} if self.stn is None else dict(far=round(self.far, 4), blank=self.blank)


@torch.inference_mode()
def evaluate(model: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
    model.eval()
    with witnessing() as witness:
        answers = torch.cat([model(batch) for batch in images.split(250)]).argmax(1)
    line: dict[str, Any] = dict(accuracy=round(100 * float((answers == labels).float().mean()), 2))
    for _, found in witness.found():
        line.update(spread=round(found.spread, 4), dead=found.dead, features=found.features)
    return line


# the record


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measure(args: argparse.Namespace) -> None:
    done = {(line['name'], line['seed'], line['tune']) for line in read(args.output)}
    todo = [(case, seed) for case, seed in cases()
            if fnmatch(case.name, args.only) and (args.seeds is None or seed < args.seeds)
            and (case.name, seed, args.tune) not in done]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        for future in [pool.submit(run, case, seed, args) for case, seed in todo]:
            line = future.result()
            with args.output.open('a') as file:
                file.write(json.dumps(line) + '\n')
            told = {k: line[k] for k in ('accuracy', 'spread', 'dead', 'far', 'blank', 'seconds') if k in line}
            print(line['name'], line['seed'], told, flush=True)


# the tables


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; of one value, none."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return statistics.mean(values), error


def shown(values: list[float], sign: str = '') -> str:
    mean, error = mean_and_error(values)
    return f'{mean:{sign}.1f}' + ('' if math.isnan(error) else f' ± {error:.1f}')


def groups(lines: list[dict[str, Any]], group: str) -> Iterator[tuple[tuple[str, str], dict[str, dict[int, Any]]]]:
    """Of a group, by task and optimizer: who -> seed -> line."""
    found: dict[tuple[str, str], dict[str, dict[int, Any]]] = {}
    for line in lines:
        name, task, how, who = line['name'].split('/')
        if name == group and not line['tune'] and not line['model_kwargs']:
            found.setdefault((task, how), {}).setdefault(who, {})[line['seed']] = line
    yield from found.items()


def rows(lines: list[dict[str, Any]], group: str) -> Iterator[list[str]]:
    """A row a network with a transformer, beside the plain one of the same seeds."""
    for (task, how), by_who in groups(lines, group):
        plain = by_who.get('plain', {})
        for who, by_seed in by_who.items():
            seeds = [seed for seed in by_seed if seed in plain]
            if who != 'plain' and seeds:
                of = [by_seed[seed] for seed in seeds]
                ours, theirs = [line['accuracy'] for line in of], [plain[seed]['accuracy'] for seed in seeds]
                spread = f'{min(line["spread"] for line in of):.3f}'
                yield [
                    task, how if group == 'hurts' else who, str(len(seeds)), shown(theirs), shown(ours),
                    shown([a - b for a, b in zip(ours, theirs)], '+'), spread,
                    f'{max(line["dead"] for line in of)} of {of[0]["features"]}',
                    f'{max(line["far"] for line in of):.2f}', str(sum(line['blank'] for line in of))]


def table(lines: list[dict[str, Any]], group: str) -> str:
    what = 'optimizer, learning rate' if group == 'hurts' else 'transform'
    head = ['images', what, 'seeds', 'plain, %', 'with transformer, %', 'difference', 'spread, least',
            'dead features, most', 'distance from the identity in 100 steps, most', 'steps without a gradient']
    every = [head, ['---'] * len(head), *rows(lines, group)]
    return ''.join(f'| {" | ".join(row)} |\n' for row in every)


def write_tables(lines: list[dict[str, Any]]) -> None:
    page = PAGE.read_text()
    for group in ('alive', 'hurts'):
        begin, end = (f'<!-- measure_learning {group}: {word} -->\n' for word in ('begin', 'end'))
        if begin not in page or end not in page:
            raise SystemExit(f'{PAGE} has no {begin.strip()} and {end.strip()} around a table.')
        before, rest = page.split(begin)
        page = before + begin + table(lines, group) + end + rest.split(end)[1]
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', metavar='DIR')
    add('--weights', metavar='FILE')
    add('--output', type=Path, default=ROOT / 'docs' / 'learning.jsonl', metavar='FILE')
    add('--only', default='*', metavar='PATTERN', help='of the names of runs, GROUP/TASK/OPTIMIZER-LR/TRANSFORM')
    add('--seeds', type=int, help='at most so many')
    add('--jobs', type=int, default=1)
    add('--tune', action='store_true')
    add('--model-kwargs', nargs='+', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    add('--write', action='store_true')
    args = parser.parse_args()
    if args.data:
        measure(args)
    if args.write:
        write_tables(read(args.output))


if __name__ == '__main__':
    main()
