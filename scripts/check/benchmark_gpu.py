"""Measure the time of `timm_stn.warp` and of training steps on a GPU, compared with torch and plain timm.

- copy: a copy of a large tensor within the device, bytes read plus written, for comparison with the rest;
- warp: `F.affine_grid` + `F.grid_sample` (`plain`) and `timm_stn.warp` (`ours`), forward, or forward and backward to
  theta, or to theta and image. `share_of_copy` of a forward pass is the time to read the image and write the
  result once at the speed of the copy, divided by the measured time;
- compiled: the same two, eager and with `torch.compile`;
- training: whole steps (forward, loss, backward, optimizer) of a network and of its `stn_` twin in turn, and the peak
  memory of each alone.

For bfloat16 images there are two baselines. `plain` has coordinates rounded to bfloat16, because `F.grid_sample` needs
one dtype. `plain_float32` converts the image to float32 and back, as autocast does. Ours has float32 coordinates.
`difference` is the relative norm of the difference to `plain_float32`; it shows that both compute the same.

`goals` are what is wanted and what was found, by the medians of all rounds. The first call of `ours` compiles its
kernels (`first_call_seconds`), where the machine has not done so before.

Times are medians in milliseconds, on CUDA measured as by `triton.testing.do_bench`: with events and flushed caches.
Each round measures all sides. A ratio to `plain` is the median over the rounds. The file is rewritten after each case;
a failed case has an `error`, and cases beyond the budget are `skipped`.

    python scripts/check/benchmark_gpu.py --output gpu.json
    python scripts/check/benchmark_gpu.py --device cpu        # a rehearsal: tiny sizes, clock instead of events
"""
import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import timm_stn
from timm_stn.whole_file import place_of_file, write_text

Side = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
Result = dict[str, Any]



class Warp(NamedTuple):
    """Images of a shape, warped to a size; `goals` are how many times as fast as torch, forward and to theta."""
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    goals: tuple[float, ...] = ()
    last: bool = False  # channels last

    def label(self, dtype: torch.dtype) -> str:
        sizes = f'{"x".join(map(str, self.shape))} -> {"x".join(map(str, self.size))}'
        return f'{sizes} {str(dtype)[6:]}{" channels last" if self.last else ""}'


WARPS = (
    Warp((256, 3, 224, 224), (224, 224), (1.6, 1.7)),
    Warp((256, 3, 448, 448), (224, 224), (1.25, 1.3)),
    Warp((256, 64, 56, 56), (56, 56), (1.0, 1.0)),
    Warp((256, 1, 42, 42), (42, 42), (2.5, 3.0)),
    Warp((256, 1, 28, 28), (28, 28), (2.5, 3.0)),
    Warp((256, 3, 224, 224), (224, 224), last=True),
    Warp((256, 64, 56, 56), (56, 56), last=True),
)
HALF_GOAL = 1.8  # times `plain_float32`, forward
SHARE_GOAL = 0.6  # of the copy, forward, for what has more bytes than caches hold
LARGE = 2 ** 28  # bytes
TRAINING_GOALS = {'resnet50': 1.02}  # of the plain step, at most
# up to 256 pixels a side: beyond, torch's bfloat16 kernels for the CPU round coordinates out of the image
SMOKE_WARPS = (Warp((2, 3, 24, 24), (24, 24), (1.6, 1.7)), Warp((2, 3, 48, 48), (24, 24), last=True))
PASSES = ('forward', 'to theta', 'to theta and image')  # by the number of gradients
NETWORKS, SMOKE_NETWORKS = ('resnet50', 'convnext_tiny', 'vit_small_patch16_224'), ('test_resnet', 'test_vit')


@dataclass
class Bench:
    device: torch.device
    smoke: bool
    time: Callable[[Callable[[], Any]], float]  # milliseconds of a call
    bandwidth: float | None = None  # bytes a second

    def synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def tidy(self) -> None:
        gc.collect()
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()


class Case(NamedTuple):
    kind: str
    label: str
    measure: Callable[[Bench], Result]


def cases(smoke: bool) -> Iterator[Case]:
    """The most important cases first. Compiled cases take long and come last."""
    warps = SMOKE_WARPS if smoke else WARPS
    inputs = [(warp, dtype) for dtype in (torch.float32, torch.bfloat16) for warp in warps]
    yield Case('copy', 'copy', measure_copy)
    yield from warp_cases('warp', inputs[:1])
    for name in SMOKE_NETWORKS if smoke else NETWORKS:
        yield Case('training', f'training {name}', partial(measure_training, name=name))
    yield from warp_cases('warp', inputs[1:])
    for gradients in (1, 0, 2):
        yield from warp_cases('compiled', inputs[:1] if smoke else inputs, [gradients])


def warp_cases(
        kind: str, inputs: Iterable[tuple[Warp, torch.dtype]], passes: Sequence[int] = range(3)) -> Iterator[Case]:
    for warp, dtype in inputs:
        for gradients in passes:
            label = f'{kind} {warp.label(dtype)} {PASSES[gradients]}'
            yield Case(kind, label, partial(
                measure_warp, warp=warp, dtype=dtype, gradients=gradients, compiled=kind == 'compiled'))


def plain(image: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    grid = F.affine_grid(theta, [*image.shape[:2], *size], align_corners=False)
    return F.grid_sample(image, grid.to(image.dtype), padding_mode='border', align_corners=False)


def plain_float32(image: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    return plain(image.float(), theta, size).to(image.dtype)


def ours(image: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    return timm_stn.warp(image, theta, size=size)


def measure_copy(bench: Bench) -> Result:
    source = torch.ones(2 ** (22 if bench.smoke else 30), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.time(lambda: target.copy_(source))  # wakes the device up
    ms = statistics.median(bench.time(lambda: target.copy_(source)) for _ in range(5))
    bench.bandwidth = 2 * source.nbytes / ms * 1000
    return {'ms': {'copy': ms}, 'gigabytes_per_second': bench.bandwidth / 1e9}


def measure_warp(
        bench: Bench,
        warp: Warp,
        dtype: torch.dtype,
        gradients: int,
        compiled: bool,
) -> Result:
    torch.manual_seed(0)
    (shape, size), form = warp[:2], torch.channels_last if warp.last else torch.contiguous_format
    image = torch.randn(shape, dtype=dtype, device=bench.device).contiguous(memory_format=form)
    theta = torch.eye(2, 3, device=bench.device) + 0.1 * torch.randn(shape[0], 2, 3, device=bench.device)
    grad = torch.randn(*shape[:2], *size, dtype=dtype, device=bench.device).contiguous(memory_format=form)
    wanted = [x.requires_grad_() for x in (theta, image)[:gradients]]

    def call(side: Side) -> Sequence[Tensor]:
        if wanted:
            return torch.autograd.grad(side(image, theta, size), wanted, grad)
        with torch.no_grad():
            return [side(image, theta, size)]

    sides: dict[str, Side] = {'plain': plain, 'ours': ours}
    if dtype != torch.float32:
        sides['plain_float32'] = plain_float32
    if compiled:
        torch.compiler.reset()  # or the limit of recompilations would leave the later ones eager
        translate = partial(
            torch.compile, fullgraph=True, dynamic=False, backend='aot_eager' if bench.smoke else 'inductor')
        sides |= {'plain_compiled': translate(plain), 'ours_compiled': translate(ours)}
    reference = call(plain_float32)
    result: Result = {'difference': {}, 'first_call_seconds': {}, 'errors': {}}
    for name, side in list(sides.items()):
        start = time.perf_counter()
        try:
            values = call(side)
            bench.synchronize()
        except Exception as error:
            result['errors'][name] = describe(error)
            del sides[name]
            continue
        result['first_call_seconds'][name] = time.perf_counter() - start
        result['difference'][name] = max(
            float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(values, reference))
    values = reference = ()  # sets their memory free
    result |= compare({name: partial(bench.time, partial(call, side)) for name, side in sides.items()}, rounds=5)
    if bench.bandwidth and not gradients:
        least = 1000 * (image.nbytes + grad.nbytes) / bench.bandwidth
        result['share_of_copy'] = {name: least / ms for name, ms in result['ms'].items()}
    if not compiled and 'ours' in result['ms']:
        result['goals'] = goals_of(warp, dtype, gradients, result, image.nbytes + grad.nbytes)
    return result


def goals_of(warp: Warp, dtype: torch.dtype, gradients: int, result: Result, size: int) -> dict[str, list[float]]:
    """What is wanted at least, and what was found."""
    ms, goals = result['ms'], {}
    if dtype == torch.float32 and gradients < len(warp.goals) and 'plain' in ms:
        goals['times as fast'] = [warp.goals[gradients], ms['plain'] / ms['ours']]
    elif 'plain_float32' in ms and gradients == 0:
        goals['times as fast as in float32'] = [HALF_GOAL, ms['plain_float32'] / ms['ours']]
    if 'share_of_copy' in result and size > LARGE:
        goals['of the copy'] = [SHARE_GOAL, result['share_of_copy']['ours']]
    return goals


def compare(sides: Mapping[str, Callable[[], float]], rounds: int, seconds: float = 2.) -> Result:
    """Median milliseconds and ratios to `plain` over at least 2 rounds, until the time limit."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    stop = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 2 and time.perf_counter() > stop:
            break
        for name in names:
            times[name].append(sides[name]())
        names.reverse()
    result: Result = {'ms': {name: statistics.median(values) for name, values in times.items()}}
    if 'plain' in times:
        result['ratio'] = {name: statistics.median(b / a for a, b in zip(times['plain'], values))
                           for name, values in times.items() if name != 'plain'}
    return result


class Training:
    """A network that trains on one batch, as timm's train.py with `--amp --amp-dtype bfloat16`."""

    def __init__(self, name: str, images: Tensor, labels: Tensor) -> None:
        torch.manual_seed(0)
        self.images, self.labels = images, labels
        self.model = timm.create_model(name).to(images.device).train()
        if images.is_contiguous(memory_format=torch.channels_last):
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def step(self) -> None:
        with torch.autocast(self.images.device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def held(self) -> int:
        """Bytes kept between steps."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return sum(x.nbytes for x in tensors if x.device == self.images.device)


def measure_training(bench: Bench, name: str) -> Result:
    count, side = (4, 160) if bench.smoke else (128, 224)
    images = torch.randn(count, 3, side, side, device=bench.device)
    if 'vit' not in name:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (count,), device=bench.device)
    trainings = {key: Training(arch, images, labels) for key, arch in (('plain', name), ('ours', f'stn_{name}'))}
    for training in trainings.values():
        for _ in range(1 if bench.smoke else 4):
            training.step()
    peak = {}
    if bench.device.type == 'cuda':
        for (key, training), other in zip(trainings.items(), reversed(trainings.values())):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            training.step()
            torch.cuda.synchronize()
            peak[key] = torch.cuda.max_memory_allocated() - other.held()

    def steps(training: Training, number: int = 1 if bench.smoke else 3) -> float:
        bench.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            training.step()
        bench.synchronize()
        return 1000 * (time.perf_counter() - start) / number

    sides = {key: partial(steps, training) for key, training in trainings.items()}
    result = compare(sides, rounds=2 if bench.smoke else 5, seconds=6)
    goals = {'of the step, at most': [TRAINING_GOALS[name], result['ratio']['ours']]} if name in TRAINING_GOALS else {}
    return result | {'peak_bytes': peak, 'batch': list(images.shape), 'goals': goals}


def choose_timer(device: torch.device) -> tuple[str, Callable[[Callable[[], Any]], float]]:
    if device.type != 'cuda':
        return 'clock', by_clock
    try:  # triton wants a C compiler for its driver, so that it can be there and not work
        from triton.testing import do_bench
        timer = partial(do_bench, warmup=3, rep=12, return_mode='median')
        timer(torch.empty(2 ** 20, device=device).zero_)
        return 'triton.testing.do_bench', timer
    except Exception as error:
        return f'events, for triton failed: {describe(error)}', by_events


def by_clock(function: Callable[[], Any]) -> float:
    function()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def by_events(function: Callable[[], Any]) -> float:
    """Median milliseconds, measured as triton does: caches are overwritten before each call."""
    cache = torch.empty(2 ** 28, dtype=torch.int8, device='cuda')

    def run(number: int) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(number)]
        for start, end in events:
            cache.zero_()
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events)

    function()
    return run(max(3, min(100, int(12 / max(run(3), 0.01)))))


def describe(error: Exception) -> str:
    """Type, message and place of an error, because it may not occur on another machine."""
    places = [f'{Path(place.filename).name}:{place.lineno}' for place in traceback.extract_tb(error.__traceback__)[-8:]]
    return f'{type(error).__name__}: {str(error)[:2000]}\n({" > ".join(places)})'


def environment(device: torch.device) -> Result:
    cuda = device.type == 'cuda'
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'timm')}
    return {
        'device': torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        'driver': output_of('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader') if cuda else None,
        'revision': output_of('git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty'),
        'versions': versions | {
            'python': platform.python_version(), 'cuda': torch.version.cuda, 'timm_stn': timm_stn.__version__},
    }


def output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def summary(result: Result) -> str:
    words = [result['error'].split('\n')[0]] if 'error' in result else []
    for name, ms in result.get('ms', {}).items():
        ratio = result.get('ratio', {}).get(name)
        words.append(f'{name} {ms:.3f}' + (f' ({ratio:.2f})' if ratio else ''))
    words += [f'{name} failed' for name in result.get('errors', ())]
    for name, (wanted, found) in result.get('goals', {}).items():
        met = found <= wanted if name.endswith('most') else found >= wanted
        words.append(f'goal {wanted} {name}: {"met" if met else "MISSED"}, {found:.2f}')
    if 'share_of_copy' in result:
        words.append('share of copy ' + ' '.join(f'{share:.2f}' for share in result['share_of_copy'].values()))
    if result.get('peak_bytes'):
        words.append('peak GiB ' + ' '.join(f'{peak / 2 ** 30:.2f}' for peak in result['peak_bytes'].values()))
    if 'gigabytes_per_second' in result:
        words.append(f'{result["gigabytes_per_second"]:.0f} GB/s')
    return ', '.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='cpu implies --smoke')
    parser.add_argument('--output', type=place_of_file, help='JSON file')
    parser.add_argument('--smoke', action='store_true', help='tiny sizes: does it run?')
    parser.add_argument('--only', nargs='+', default=['*'], metavar='PATTERN', help="cases, as 'warp *float32*'")
    parser.add_argument('--after', type=Path, metavar='FILE', help='a record; what it has is measured last')
    parser.add_argument('--budget', type=float, default=50., help='seconds for all cases, imports not counted')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('there is no CUDA device; --device cpu is a rehearsal')
    begin = time.perf_counter()
    device, smoke = torch.device(args.device), args.smoke or args.device == 'cpu'
    if args.device == 'cpu':
        torch.set_num_threads(1)
    else:
        torch.backends.cudnn.benchmark = True  # as timm's training script sets it
        torch.backends.cudnn.benchmark_limit = 3  # algorithms to try: of ten, the search takes longer than all else
    timer, function = choose_timer(device)
    bench = Bench(device, smoke, function)
    todo = [case for case in cases(smoke) if any(fnmatch(case.label, pattern) for pattern in args.only)]
    if args.after is not None:
        known = {result['case'] for result in json.loads(args.after.read_text())['results'] if 'ms' in result}
        todo.sort(key=lambda case: case.kind != 'copy' and case.label in known)
    results: list[Result] = [{'case': case.label, 'kind': case.kind, 'skipped': 'not reached'} for case in todo]
    report = environment(device) | {
        'arguments': {k: v for k, v in vars(args).items() if k not in ('output', 'after')},
        'timer': timer, 'seconds': 0., 'results': results}
    # seconds that the last case of each kind took, at first a guess: what does not fit any more is not begun
    took = {} if smoke else {'copy': 1., 'warp': 1., 'training': 8., 'compiled': 15.}
    for index, case in enumerate(todo):
        start = time.perf_counter()
        if start - begin + took.get(case.kind, 0) < args.budget:
            result: Result = {'case': case.label, 'kind': case.kind}
            try:
                bench.tidy()
                result |= case.measure(bench)
            except Exception as error:
                result['error'] = describe(error)
            took[case.kind] = result['seconds'] = time.perf_counter() - start
            results[index] = result
        report['seconds'] = time.perf_counter() - begin
        if args.output is not None:
            write_text(args.output, json.dumps(report, indent=1, default=str) + '\n')
    print(report['device'], report['driver'], report['versions'], report['revision'], timer)
    print('milliseconds (ratio to plain)' + ', of tiny sizes: a rehearsal, no measurement' * smoke)
    for result in results:
        if 'skipped' not in result:
            print(f'{result["case"]:<66}{summary(result)}')
    print(f'{report["seconds"]:.0f} s, {sum("skipped" in result for result in results)} of {len(todo)} cases skipped')
    return 0


if __name__ == '__main__':
    sys.exit(main())
