"""Measure whether a transformer learns by default on about a thousand images; writes docs/training.md.

    python scripts/reproduce/measure_learning.py --data DIR --weights FILE --jobs 2    # runs not in docs/learning.jsonl
    python scripts/reproduce/measure_learning.py --write                               # writes the tables
    python scripts/reproduce/measure_learning.py --tune --output FILE --only 'alive/*' --data ...    # for tuning
    python scripts/reproduce/measure_learning.py --device cuda --budget 300 --data ...    # starts no run after 300 s

DIR has `mnist/` (the idx files), `gtsrb32/` and `cub200-2010/` (`train.tar` and `test.tar`, one folder per class).
FILE is the ImageNet checkpoint of tf_efficientnet_lite0. Each run is one line with all its settings; recorded runs are
not repeated. Each run uses one thread. Accuracy is on the test sets, with `--tune` on held-out training images.
`--model-kwargs` adds arguments of the transformers.

`spread` is the standard deviation of the look's position over held-out images: see `timm_stn.view.dependence`.
"""
import argparse
import json
import math
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from checkout import ROOT, place_of_file
from PIL import Image
from records import key, read, replace
from timm.optim import create_optimizer_v2
from timm.utils import ParseKwargs
from torch import Tensor
from torch.nn import functional as F

import timm_stn  # noqa: F401
from timm_stn import warp
from timm_stn.data import distort, load_mnist
from timm_stn.view.dependence import witnessing
from timm_stn.view.images import BadImage, open_image

PAGE = ROOT / 'docs' / 'training.md'
MOMENTUM = 0.9
Images = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """A data set, with its network and recipe."""
    load: Callable[..., tuple[Images, Images]]  # (data folder, tune, seed) -> train, held out
    model: str
    kwargs: dict[str, Any]
    epochs: int
    batch_size: int = 32


class Case(NamedTuple):
    """A run without its seed."""
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
    """Each image rotated by a random angle."""
    angle = torch.rand(len(images), 1, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    return warp(images, angle, transform='rotation', padding_mode=padding_mode)


def digits(data: str, tune: bool, seed: int, kind: str) -> tuple[Images, Images]:
    """3,000 of MNIST's first 50,000 training digits, and 5,000 of the others (``tune=False``: of the test set)."""
    images, labels = load_mnist(data, 'train')
    chosen = torch.randperm(50_000, generator=torch.Generator().manual_seed(7))[:3000]
    held = (images[50_000:55_000], labels[50_000:55_000]) if tune else [t[:5000] for t in load_mnist(data, 'test')]

    def make(digits: Tensor, seed: int) -> Tensor:
        if kind == 'RTS':
            return distort(digits, 'RTS', torch.Generator().manual_seed(seed))
        return turned(F.pad(digits.float() / 255, (7, 7, 7, 7)), seed, 'zeros')

    return (make(images[chosen], 1000 + seed), labels[chosen]), (make(held[0], 99), held[1])


def members(path: Path) -> dict[str, list[str]]:
    """Members of each class, in order, of a tar with one folder per class."""
    found: dict[str, list[str]] = {}
    with tarfile.open(path) as tar:
        for name in sorted(m.name for m in tar if m.isfile()):
            found.setdefault(name.split('/')[-2], []).append(name)
    return dict(sorted(found.items()))


def picture(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> Image.Image:
    """A member of a tar in RGB; one that cannot be read ends the script, by its name."""
    try:
        return open_image(tar.extractfile(member))[0]
    except BadImage as error:
        raise SystemExit(f'{tar.name}: {getattr(member, "name", member)}: {error}') from error


def pictures(path: Path, side: int, parts: list[list[str]]) -> Images:
    """Images (N, 3, side, side), normalised for lite0, and their classes, from one list of members per class."""
    names = [name for part in parts for name in part]
    images = dict.fromkeys(names, torch.empty(0))
    with tarfile.open(path) as tar:
        for member in tar:  # in its order: a packed one cannot be read backwards
            if member.name in images:
                image = picture(tar, member).resize((side, side), Image.Resampling.BICUBIC)
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(side, side, 3)
                images[member.name] = pixels.permute(2, 0, 1).float() / 127.5 - 1
    return torch.stack([images[name] for name in names]), torch.tensor([i for i, p in enumerate(parts) for _ in p])


def choice_of_signs(data: str, tune: bool) -> list[tuple[Path, list[list[str]]]]:
    """Training and held-out sets: a tar, and the members of each of five speed limits."""
    folder = Path(data) / 'gtsrb32'
    generator = torch.Generator().manual_seed(5)
    train, held = [], []
    trains = members(folder / 'train.tar')
    tests = {} if tune else members(folder / 'test.tar')
    for name in list(trains)[:5]:
        tracks = sorted({track(file) for file in trains[name]})
        order = torch.randperm(len(tracks), generator=generator).tolist()
        kept = {tracks[i] for i in order[:len(tracks) // 5]}
        others = [file for file in trains[name] if track(file) not in kept]
        apart = [file for file in (trains if tune else tests)[name] if not tune or track(file) in kept]
        for part, files, count in ((train, others, 200), (held, apart, 120)):
            part.append([files[i] for i in torch.randperm(len(files), generator=generator)[:count].tolist()])
    return [(folder / 'train.tar', train), (folder / ('train.tar' if tune else 'test.tar'), held)]


def track(file: str) -> str:
    """The track of a sign, which has thirty frames."""
    return file.rpartition('/')[2][:5]


@cache
def chosen(choice: Callable[..., Any], data: str, tune: bool, side: int) -> list[Images]:
    """Training and held-out images of :func:`choice_of_signs` or :func:`choice_of_birds`; decoded once per process."""
    return [pictures(path, side, parts) for path, parts in choice(data, tune)]


def signs(data: str, tune: bool, seed: int, turn: bool, side: int) -> tuple[Images, Images]:
    """Five speed limits, 200 training images each; held-out images are from other tracks or the test set."""
    (x, y), (held_x, held_y) = chosen(choice_of_signs, data, tune, side)
    if turn:
        x, held_x = turned(x, 1000 + seed, 'border'), turned(held_x, 99, 'border')
    return (x, y), (held_x, held_y)


def choice_of_birds(data: str, tune: bool) -> list[tuple[Path, list[list[str]]]]:
    """Training and held-out sets: a tar, and the members of each of ten species; ten others for tuning."""
    paths = [Path(data) / 'cub200-2010' / f'{split}.tar' for split in ('train', 'test')]
    return [(path, list(members(path).values())[7 if tune else 0::20]) for path in paths]


def birds(data: str, tune: bool, seed: int) -> tuple[Images, Images]:
    """Ten species at 64 x 64, 15 training images each, and their test images; ten others for tuning."""
    train, held = chosen(choice_of_birds, data, tune, 64)
    return train, held


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


def cases(seeds: int = 5) -> Iterator[tuple[Case, int]]:
    """All runs, seed by seed."""
    for seed in range(seeds):
        for task in ('turned digits', 'RTS digits', 'turned signs', 'birds'):
            for transform in (None, 'affine', 'rotation', 'translation', 'similarity', 'tps'):
                yield Case('alive', task, transform, lr=2e-3 if 'digits' in task else 1e-3), seed
        for transform in (None, 'affine'):
            for task in ('signs', 'birds'):
                for opt, lr in OPTIMIZERS:
                    yield Case('hurts', task, transform, opt, lr), seed
            for opt, lr in (('nesterov', 0.1), ('adamw', 5e-3)):
                yield Case('hurts', 'signs', transform, opt, lr, warmup=50), seed
            for opt, lr in (('nesterov', 0.1), ('adamw', 1e-3)):
                yield Case('hurts', 'signs', transform, opt, lr, dtype='bfloat16'), seed


OPTIMIZERS = (
    ('nesterov', 0.1), ('nesterov', 0.01), ('adamw', 1e-3), ('adamw', 5e-3), ('lion', 1e-4), ('muon', 1e-3),
    ('lamb', 5e-3))


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
    model, x, y = (t.to(args.device) for t in (model, x, y))
    optimizer = create_optimizer_v2(
        model, case.opt, lr=case.lr, weight_decay=0.0 if task.model == 'mnist_cnn' else 0.05, momentum=MOMENTUM)
    steps = task.epochs * math.ceil(len(x) / task.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(factor, warmup=case.warmup, total=steps))
    order = torch.Generator().manual_seed(seed)
    watch = Watch(model)
    for _ in range(task.epochs):
        model.train()
        for index in torch.randperm(len(x), generator=order).to(args.device).split(task.batch_size):
            with torch.autocast(args.device, torch.bfloat16, enabled=case.bfloat16):
                logits = model(x[index])
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), y[index]).backward()
            watch.step()
            optimizer.step()
            schedule.step()
    line = dict(case._asdict(), name=case.name, seed=seed, tune=args.tune, model_kwargs=args.model_kwargs, steps=steps)
    line.update(evaluate(model, *(t.to(args.device) for t in held)), **watch.found())
    device = torch.cuda.get_device_name() if args.device == 'cuda' else args.device
    line.update(device=device, torch=torch.__version__, timm=timm.__version__)
    return dict(line, seconds=round(time.perf_counter() - start, 1))


def factor(step: int, warmup: int, total: int) -> float:
    return min(1, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / total))


class Watch:
    """theta in the first hundred steps, and its gradient in all; read at the end, so no step synchronises."""

    def __init__(self, model: Any) -> None:
        self.stn = getattr(model, 'stn', None)
        self.blank: list[Tensor] = []
        self.far: list[Tensor] = []

    @torch.no_grad()
    def step(self) -> None:
        """After a backward pass."""
        if self.stn is None:
            return
        self.blank.append(~self.stn.localization.regression.bias.grad.any())
        if len(self.blank) <= 100:
            theta = self.stn.last_theta.detach()
            start = torch.eye(2, 3).to(theta) if self.stn.transform.linear else torch.zeros_like(theta)
            self.far.append((theta - start).flatten(1).norm(dim=1).max())

    def found(self) -> dict[str, Any]:
        if self.stn is None:
            return {}
        return dict(far=round(float(torch.stack(self.far).max()), 4), blank=int(torch.stack(self.blank).sum()))


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


def measure(args: argparse.Namespace) -> None:
    lines = read(args.output)
    replace(args.output, lines)  # without what a run that was killed had begun to write
    done = {key(line) for line in lines}
    mine = dict(tune=args.tune, model_kwargs=args.model_kwargs)
    todo = [(case, seed) for case, seed in cases(args.seeds)
            if fnmatch(case.name, args.only) and key(dict(mine, name=case.name, seed=seed)) not in done]
    stop = time.monotonic() + args.budget
    failed: list[Any] = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        for future in as_completed([pool.submit(run, case, seed, args) for case, seed in todo]):
            if time.monotonic() > stop:
                pool.shutdown(wait=False, cancel_futures=True)
            if future.cancelled():
                continue
            if future.exception() is not None:
                failed.append(future.exception())
                print(f'a run failed: {failed[-1]!r}', flush=True)
                continue
            line = future.result()
            with args.output.open('a') as file:
                file.write(json.dumps(line) + '\n')
            told = {k: line[k] for k in ('accuracy', 'spread', 'dead', 'far', 'blank', 'seconds') if k in line}
            print(line['name'], line['seed'], told, flush=True)
    if failed:
        raise SystemExit(f'{len(failed)} runs failed')


# the tables


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; no error for one value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return statistics.mean(values), error


def shown(values: list[float], sign: str = '') -> str:
    mean, error = mean_and_error(values)
    return f'{mean:{sign}.1f}' + ('' if math.isnan(error) else f' ± {error:.1f}')


def groups(lines: list[dict[str, Any]], group: str) -> Iterator[tuple[tuple[str, str], dict[str, dict[int, Any]]]]:
    """Lines of a group by task and optimizer: network -> seed -> line."""
    found: dict[tuple[str, str], dict[str, dict[int, Any]]] = {}
    for line in lines:
        name, task, how, who = line['name'].split('/')
        if name == group and not line['tune'] and not line['model_kwargs']:
            found.setdefault((task, how), {}).setdefault(who, {})[line['seed']] = line
    yield from found.items()


def rows(lines: list[dict[str, Any]], group: str) -> Iterator[list[str]]:
    """One row per network with a transformer, compared with the plain one of the same seeds."""
    for (task, how), by_who in groups(lines, group):
        plain = by_who.get('plain', {})
        for who, by_seed in by_who.items():
            seeds = [seed for seed, line in by_seed.items() if plain.get(seed, {}).get('device') == line['device']]
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
    add('--output', type=place_of_file, default=str(ROOT / 'docs' / 'learning.jsonl'), metavar='FILE')
    add('--only', default='*', metavar='PATTERN', help='of the names of runs, GROUP/TASK/OPTIMIZER-LR/TRANSFORM')
    add('--seeds', type=int, default=5)
    add('--jobs', type=int, default=1)
    add('--device', default='cpu', choices=('cpu', 'cuda'))
    add('--budget', type=float, default=math.inf, metavar='SECONDS', help='begin no run after so long')
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
