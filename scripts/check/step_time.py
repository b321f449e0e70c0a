"""Measure where the time of a training step goes on a CPU: of plain networks, and of their twins with transformers.

    python scripts/check/step_time.py                                        # four networks, batches of 8 and 64
    python scripts/check/step_time.py --networks resnet18 --batches 8 --rounds 20
    python scripts/check/step_time.py --start-up                             # how long creating them takes

A step is forward, cross-entropy, backward, AdamW; images are random, of the size that the network was made for. One
process, one thread. A round times everything once, in alternating order, so a slow phase of the machine affects all.
Times are CPU times, so waiting for other programs does not count. The first rounds warm up. The table has medians; the
parts are medians of the shares within rounds, in percent of the plain step:

- localization: the twin's transformer regresses theta, its shrinking included, and a gradient goes back from theta;
- warp: images are warped at that theta, and a gradient goes back to theta;
- first convolution: its gradient to its input. A plain network needs none; a transformer's comes through it.
- rest: the twin's step less the plain one and these parts. The optimizer's part is there, and what is noise.

All but the rest are timed alone, outside of the step, with the modules of the twin and of its backbone. What they read
may be in the cache then, so that the rest can be too large. The transformer is localization and warp together.

Start-up is `timm.create_model` without weights, in a process that has made both networks before, and in a new one, with
imports.
"""
import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_stn

NETWORKS = ('resnet18', 'resnet50', 'mobilenetv3_large_100', 'mnist_cnn')
PARTS = ('localization', 'warp', 'first convolution')
WARM_UP = 1  # rounds that do not count
Step = Callable[[], object]


def timed(sides: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each side in each round, after a warm-up."""
    order = list(sides)
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(WARM_UP + rounds):
        for name in order:
            start = time.process_time()
            sides[name]()
            times[name].append(1000 * (time.process_time() - start))
        order.reverse()
    return {name: values[WARM_UP:] for name, values in times.items()}


def training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def parts(network: Any, images: Tensor) -> dict[str, Step]:
    """What a twin does beside its backbone, each alone."""
    transformer = network.stn
    conv, seen = first_convolution(network, images)
    output = conv(seen)
    to_output, to_images = torch.randn_like(output), torch.randn_like(images)
    theta = transformer.regress(images).detach()
    to_theta = torch.randn_like(theta)
    leaf = theta.clone().requires_grad_()

    def localization() -> None:
        transformer.regress(images).backward(to_theta)
        transformer.zero_grad()

    def warp() -> None:
        torch.autograd.grad(timm_stn.warp(images, leaf), leaf, to_images)

    def convolution() -> None:
        torch.autograd.grad(output, seen, to_output, retain_graph=True)

    return dict(zip(PARTS, (localization, warp, convolution)))


def first_convolution(network: Any, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the backbone's first convolution, which no optimizer changes, and its input in a step, as a leaf."""
    found: list[tuple[nn.Module, Tensor]] = []
    handles = [module.register_forward_hook(lambda module, args, _: found.append((module, args[0])))
               for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    conv, seen = found[0]
    return copy.deepcopy(conv), seen.detach().clone().requires_grad_()


def measure(name: str, batch: int, rounds: int) -> dict[str, float]:
    """Medians: milliseconds of both steps, and the parts in percent of the plain one."""
    torch.manual_seed(0)
    plain, twin = timm.create_model(name).train(), timm.create_model(f'stn_{name}').train()
    images = torch.randn(batch, *plain.default_cfg['input_size'])
    labels = torch.randint(0, plain.num_classes, (batch,))
    sides = {'plain': training_step(plain, images, labels), 'twin': training_step(twin, images, labels)}
    times = timed({**sides, **parts(twin, images)}, rounds)
    found = {name: statistics.median(times[name]) for name in sides}
    times['rest'] = [twin - sum(of) for twin, *of in zip(*(times[k] for k in ('twin', 'plain', *PARTS)))]
    times['transformer'] = [sum(of) for of in zip(times['localization'], times['warp'])]
    for part in (*PARTS, 'rest', 'transformer'):
        found[part] = statistics.median(100 * ms / plain for ms, plain in zip(times[part], times['plain']))
    return found


def start_up(name: str, rounds: int) -> dict[str, float]:
    """Medians: milliseconds of creating the plain network and the twin, and ratios, also in new processes."""
    networks = {'plain': name, 'twin': f'stn_{name}'}
    ours = not type(timm.create_model(name)).__module__.startswith('timm.')
    imports = {'plain': 'timm, timm_stn' if ours else 'timm', 'twin': 'timm, timm_stn'}
    running = timed({kind: partial(timm.create_model, of) for kind, of in networks.items()}, rounds)
    new: dict[str, list[float]] = {kind: [] for kind in networks}
    for i in range(WARM_UP + rounds):
        for kind, of in networks.items():
            before = of_children()
            code = f'import {imports[kind]}; timm.create_model({of!r})'
            subprocess.run([sys.executable, '-c', code], check=True)
            if i >= WARM_UP:
                new[kind].append(1000 * (of_children() - before))
    found: dict[str, float] = {}
    for where, times in (('running', running), ('new', new)):
        found |= {f'{where} {kind}': statistics.median(values) for kind, values in times.items()}
        found[f'{where} ratio'] = statistics.median(b / a for a, b in zip(times['plain'], times['twin']))
    return found


def of_children() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--networks', nargs='+', default=NETWORKS, metavar='NAME', help='names without stn_')
    parser.add_argument('--batches', nargs='+', type=int, default=(8, 64), metavar='N')
    parser.add_argument('--rounds', nargs='+', type=int, default=(10,), metavar='N', help='for all, or for each batch')
    parser.add_argument('--start-up', action='store_true', help='time creating the networks instead')
    args = parser.parse_args(arguments)
    if len(args.rounds) not in (1, len(args.batches)) or min(*args.rounds, *args.batches) < 1:
        parser.error('--rounds takes one positive number, or one for each of --batches')
    unknown = [name for name in args.networks if not (timm.is_model(name) and timm.is_model(f'stn_{name}'))]
    if unknown:
        parser.error(f'--networks takes plain models that have a stn_ twin, got {" ".join(unknown)}')
    torch.set_num_threads(1)
    if args.start_up:
        print_start_up(args.networks, args.rounds[0])
    else:
        rounds = args.rounds if len(args.rounds) > 1 else [args.rounds[0]] * len(args.batches)
        print_steps(args.networks, dict(zip(args.batches, rounds)))


def print_steps(networks: Sequence[str], rounds: dict[int, int]) -> None:
    print_row('network', 'batch', 'plain, ms', 'stn_, ms', 'localization', 'warp', 'first convolution', 'rest',
              'transformer')
    print_row(*['---'] * 9)
    for name in networks:
        for batch, number in rounds.items():
            found = measure(name, batch, number)
            shares = [f'{found[part]:.1f} %' for part in (*PARTS, 'rest', 'transformer')]
            print_row(name, batch, f'{found["plain"]:.1f}', f'{found["twin"]:.1f}', *shares)


def print_start_up(networks: Sequence[str], rounds: int) -> None:
    print_row('network', 'plain, ms', 'stn_, ms', 'ratio', 'new process: plain, ms', 'stn_, ms', 'ratio')
    print_row(*['---'] * 7)
    for name in networks:
        found = start_up(name, rounds)
        print_row(name, *(f'{found[f"{where} {what}"]:.{2 if what == "ratio" else 0}f}'
                          for where in ('running', 'new') for what in ('plain', 'twin', 'ratio')))


def print_row(*cells: object) -> None:
    print(f'| {" | ".join(map(str, cells))} |', flush=True)


if __name__ == '__main__':
    main()
