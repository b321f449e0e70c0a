"""Seconds of a training step and of an image in evaluation, of all networks of an experiment, measured side by side.

Networks are made as train_task.py makes them, of the cells' own commands, but with random weights, and see random
images, made before and of the size that enters the network: neither changes the time. Those of train_birds.sh are made
as their recorded runs say.
"""
import argparse
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import train_task
from cells import SEEDS, Cell
from checkout import ROOT
from gpu import describe
from pays_page import all_cells
from pays_texts import TEXTS
from records import Line, read, replace
from results_table import run_name
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

import timm_stn
from timm_stn.data import TASKS
from timm_stn.publish.run_record import network_of

RECORD = ('model_cards', 'costs.jsonl')


class Timed(NamedTuple):
    """A network in training, its images (N, ...) and their classes (N,) or (N, answers)."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    classes: Tensor
    args: argparse.Namespace  # of train_task.py: smoothing, clip_grad, amp, device


def measure(args: argparse.Namespace) -> None:
    """Times of all experiments, or of one, into the record: new ones replace those of the same device and threads."""
    torch.set_num_threads(args.threads)
    recorded = {line['name']: line for line in read(args.root / 'model_cards' / 'results.jsonl')}
    for experiment in [args.only] if args.only else TEXTS:
        found = {cell.name: timed for cell in all_cells() if cell.experiment == experiment
                 if (timed := network(cell, recorded, args.device, args.batch_size))}
        if not found:
            print(f'{experiment}: there is no network to be timed')
            continue
        made = where(args)  # once: lines of one process have one time
        lines = [dict(line, experiment=experiment, **made) for line in times(found, args.repeats)]
        path = args.root.joinpath(*RECORD)
        own = (experiment, lines[0]['device'], args.threads)
        others = [line for line in read(path) if (line['experiment'], line['device'], line['threads']) != own]
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, [*others, *lines])
        for line in lines:
            print(f'{line["name"]}: a training step {line["step"]:.4f} s, an image {line["image"]:.5f} s', flush=True)


def where(args: argparse.Namespace) -> Line:
    """What times depend on."""
    cuda = torch.device(args.device).type == 'cuda'
    versions = {'torch': torch.__version__, 'timm': timm.__version__, 'timm_stn': timm_stn.__version__}
    return dict(
        batch_size=args.batch_size, repeats=args.repeats, threads=args.threads, versions=versions,
        device=torch.cuda.get_device_name(args.device) if cuda else args.device, cores=os.cpu_count(),
        processor=platform.processor() or platform.machine(), revision=describe() if (ROOT / '.git').exists() else None,
        time=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()))


def network(cell: Cell, recorded: dict[str, Line], device: str, batch: int) -> Timed | None:
    """A cell's network; None if neither the cell nor a run says how it is made."""
    if cell.command:
        return of_task(cell, device, batch)
    runs = [recorded[name] for seed in range(SEEDS) if (name := run_name(cell, seed)) in recorded]
    return of_timm(runs[0]['args'], device, batch) if runs else None


def of_task(cell: Cell, device: str, batch: int) -> Timed:
    """As train_task.py makes it."""
    words = defaultdict(str, device=device)  # folders with data are not needed
    command = [word.format_map(words) if '{' in word else word for word in cell.command[1:]]
    args = train_task.parse_args([*command, '--output', 'none', '--no-cuda-graph'])
    args.weights, args.ema_decay = None, 0.  # neither is in a step
    run, task = train_task.Run(args, 1), TASKS[args.set]
    images = torch.rand(batch, task.channels, *[task.size] * task.dims, device=device)
    classes = torch.randint(task.classes, (batch, task.answers), device=device)
    return Timed(run.model, run.optimizer, train_task.shown(run, images), classes, args)


def of_timm(given: dict[str, Any], device: str, batch: int) -> Timed:
    """As timm's train.py makes it, of its recorded arguments."""
    model = network_of(given).to(device)
    size = model.pretrained_cfg['input_size']
    if given.get('channels_last'):
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, given['opt'], lr=given['lr'], weight_decay=given['weight_decay'],
                                    layer_decay=given.get('layer_decay'))
    args = argparse.Namespace(smoothing=given.get('smoothing', 0.0), clip_grad=given.get('clip_grad'),
                              amp=bool(given.get('amp')), device=device)
    classes = torch.randint(given['num_classes'], (batch, 1), device=device)
    return Timed(model, optimizer, torch.rand(batch, *size, device=device), classes, args)


def times(found: dict[str, Timed], repeats: int) -> list[Line]:
    """Medians of `repeats`, after one that does not count; each network once, then each again."""
    seconds: dict[tuple[str, str], list[float]] = {(name, key): [] for name in found for key in ('step', 'image')}
    for _ in range(repeats + 1):
        for name, timed in found.items():
            seconds[name, 'step'].append(took(lambda timed=timed: step(timed), timed))
            seconds[name, 'image'].append(took(lambda timed=timed: answer(timed), timed) / len(timed.images))
    return [{'name': name, **{key: statistics.median(seconds[name, key][1:]) for key in ('step', 'image')}}
            for name in found]


def took(work: Callable[[], Any], timed: Timed) -> float:
    start = time.perf_counter()
    work()
    if timed.images.is_cuda:
        torch.cuda.synchronize(timed.images.device)
    return time.perf_counter() - start


def step(timed: Timed) -> None:
    """Forward, backward, optimizer, as train_step of train_task.py has them."""
    model = timed.model.train()
    with train_task.autocast(timed.args):
        logits = model(timed.images)
    classes = timed.classes.flatten()
    loss = F.cross_entropy(logits.float().reshape(len(classes), -1), classes, label_smoothing=timed.args.smoothing)
    timed.optimizer.zero_grad()
    loss.backward()
    if timed.args.clip_grad:
        nn.utils.clip_grad_norm_(model.parameters(), timed.args.clip_grad)
    timed.optimizer.step()


@torch.inference_mode()
def answer(timed: Timed) -> Tensor:
    return timed.model.eval()(timed.images)
