#!/usr/bin/env python
"""Train a timm model on one of the tasks of `timm_stn.data.tasks`, whose images are made anew in each epoch.

    python scripts/train/train_task.py --model stn_mnist_cnn --model-kwargs stn_size=28 --set RTS --output runs/rts

The folder `--output` gets `summary.csv` (one line per epoch, with the learning rate at its start), `checkpoint.pt` (a
restarted run resumes from it, with the same result as without interruption), and at the end `model.safetensors` and
`result.json`. The result is that of the last epoch on the fixed test set of `timm_stn.data.test_set`, which influences
nothing during training. With `--held-back` it is measured on held-out training digits instead. It has what the network
computes for an image, and where it looks, if the task knows the true boxes.

With `--device cuda` the steps of an epoch replay one CUDA graph, except a smaller last batch.
"""
import argparse
import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from cuda_step import CapturedStep, capture_arguments, work_on
from looks import where_it_looks
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg_value
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from volume_net import VOLUME_NETS, VolumeNet

import timm_stn  # noqa: F401 (registers mnist_cnn, mnist_fcn and all stn_ twins)
from timm_stn.cli.common import positive
from timm_stn.cli.models import keyword
from timm_stn.data import TASKS, load_mnist
from timm_stn.data.tasks import AT_ONCE, are_wrong, batches_of, boxes_of
from timm_stn.geometry.shrink import shrink
from timm_stn.view.cost import multiply_adds
from timm_stn.whole_file import place_of_folder, write_text, write_whole

MAY_DIFFER = (  # between the starts of one run
    'output', 'data', 'download', 'threads', 'device', 'no_cuda_graph', 'weights')
KEPT = 2 ** 29  # numbers in all test images that are kept
Digits = tuple[Tensor, Tensor]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a timm model on the tasks of timm_stn.data.tasks.')
    add = parser.add_argument
    add('--model', default='mnist_cnn', help='a registered timm model, or of volume_net.py (default: %(default)s)')
    add('--model-kwargs', nargs='*', default=[], type=keyword, metavar='KEY=VALUE', help='arguments of the model')
    add('--set', default='RTS', choices=list(TASKS), help='see timm_stn.data.tasks (default: %(default)s)')
    add('--also', nargs='*', default=[], choices=list(TASKS), metavar='SET',
        help='sets of the same data that the network is tested on, too, in the end')
    add('--img-size', type=positive, metavar='S',
        help="shrink images to S x S, before the network sees them (default: the network takes the set's own)")
    add('--weights', metavar='FILE', help='weights of the backbone to begin with: a checkpoint of timm')
    add('--normalize', action='store_true', help="by mean and standard deviation of the network's own configuration "
                                                 '(default: pixels from 0 to 1)')
    add('--output', required=True, type=lambda text: str(place_of_folder(text)),
        help='folder of the run; resumes where it holds a checkpoint')
    add('--data', help="folder with the set's data (default: the environment variable TIMM_STN_DATA)")
    add('--download', action='store_true', help='download MNIST to the data folder if it is not there')
    add('--epochs', type=positive, default=20)
    add('--batch-size', type=int, default=256)
    add('--opt', default='adamw', help='optimiser, by its name in timm (default: %(default)s)')
    add('--lr', type=float, default=2e-3, help='peak learning rate (default: %(default)s)')
    add('--momentum', type=float, default=0.9)
    add('--weight-decay', type=float, default=0.)
    add('--layer-decay', type=float, help='factor of the learning rate from each layer to the one before')
    add('--smoothing', type=float, default=0., help='of labels (default: %(default)s)')
    add('--schedule', default='cosine', choices=['cosine', 'step'],
        help='of the learning rate; step: a tenth of it after each third of the epochs, as in the paper '
             '(default: %(default)s)')
    add('--warmup-epochs', type=float, default=0.5, help='linear warm-up before that (default: %(default)s)')
    add('--clip-grad', type=float, help='largest norm of the gradient')
    add('--ema-decay', type=float, default=0., help='report averaged weights with this decay (default: no average)')
    add('--held-back', type=int, default=0, metavar='N',
        help='train without the last N training images, and test on these (each made four times), to choose a '
             'recipe by (default: the test set)')
    add('--val-interval', type=positive, default=1, metavar='N', help='test after every N epochs, and in the end')
    add('--seed', type=int, default=0)
    add('--channels-last', action='store_true', help='memory format; often faster, on CPUs too')
    add('--threads', type=int, help='CPU threads')
    add('--device', default='cpu')
    add('--amp', action='store_true', help='compute in bfloat16, by autocast')
    add('--no-cuda-graph', action='store_true', help='launch each operation of a step by itself on a CUDA device, too')
    args = parser.parse_args(argv)
    if args.model not in VOLUME_NETS and not timm.is_model(args.model):
        parser.error(f'argument --model: takes a registered timm model, or one of {", ".join(VOLUME_NETS)}; '
                     f'got {args.model!r}')
    for kind in args.also:
        if comparison(kind) != comparison(args.set):
            same = [name for name in TASKS if name != args.set and comparison(name) == comparison(args.set)]
            parser.error(f'argument --also: {kind} has other data, channels or answers than --set {args.set}; '
                         f'like it are: {", ".join(same) or "none"}')
    args.model_kwargs = dict(args.model_kwargs)
    return args


def comparison(kind: str) -> tuple[object, ...]:
    """What sets must share for a network to be tested on both."""
    task = TASKS[kind]
    return task.load, task.channels, task.dims, task.classes, task.answers


def digits_of(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits (N, 1, 28, 28) to train on, as bytes, and their classes; then those to test on. Of SVHN, whole images."""
    if args.download:
        load_mnist(args.data, 'train', download=True)
    load = TASKS[args.set].load
    images, labels = load(args.data, 'train')
    if not args.held_back:
        return images, labels, *load(args.data, 'test')
    if not 0 < args.held_back < len(images):
        raise SystemExit(f'--held-back {args.held_back}: there are {len(images)} training digits.')
    images, back = images[:-args.held_back], images[-args.held_back:]
    labels, back_labels = labels[:-args.held_back], labels[-args.held_back:]
    return images, labels, torch.cat([back] * 4), torch.cat([back_labels] * 4)


class TestSet:
    """The images to test on, batch by batch: the same each time; kept, unless there are too many."""

    def __init__(self, args: argparse.Namespace, digits: Tensor, labels: Tensor) -> None:
        task = TASKS[args.set]
        size = task.at_once(500 if torch.device(args.device).type == 'cpu' else 2500, AT_ONCE)
        self.again = partial(batches_of, args.set, digits, labels, batch_size=size, device=args.device)
        self.boxes = partial(boxes_of, args.set, labels, batch_size=size)
        self.kept = list(self.again()) if task.elements * len(digits) <= KEPT else None

    def __iter__(self) -> Iterator[Digits]:
        return iter(self.again() if self.kept is None else self.kept)


class Run:
    """A model in training, with everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, steps_per_epoch: int) -> None:
        torch.manual_seed(args.seed)
        self.args, self.steps_per_epoch = args, steps_per_epoch
        self.model = create_model(args)
        self.task = TASKS[args.set]
        self.scale = scale_of(self.model, args)
        self.ema = ModelEmaV3(self.model, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
        capturing = {} if args.no_cuda_graph else capture_arguments(args.opt, args.device)
        self.optimizer = create_optimizer_v2(
            self.model, args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=args.momentum,
            layer_decay=args.layer_decay, **capturing)
        for group in self.optimizer.param_groups:  # timm's schedulers know of it, torch's do not
            group['lr'] *= group.get('lr_scale', 1.0)
        schedule = warmup_cosine if args.schedule == 'cosine' else warmup_step
        factor = schedule(args.warmup_epochs * steps_per_epoch, args.epochs * steps_per_epoch)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.total = torch.zeros((), device=args.device)  # loss of an epoch's digits so far
        self.history: list[dict[str, Any]] = []
        self.captured = CapturedStep(train_step, eager_step) if capturing else None
        self.place_rates()

    def place_rates(self) -> None:
        """Store learning rates in tensors for a CUDA graph, if there is one, else as Python numbers."""
        for group in self.optimizer.param_groups:
            rate = float(group['lr'])
            group['lr'] = torch.tensor(rate, device=self.args.device) if self.captured else rate

    @property
    def reported(self) -> nn.Module:
        """The model to evaluate and save."""
        return self.ema.module if self.ema else self.model

    def parts(self) -> dict[str, Any]:
        parts = {'model': self.model, 'optimizer': self.optimizer, 'scheduler': self.scheduler}
        return {**parts, 'ema': self.ema} if self.ema else parts

    def state(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self.parts().items()}
        return dict(states, history=self.history, args=comparable(self.args))

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        if state['args'] != comparable(self.args):
            raise ValueError(f'{path} is of a run with other arguments: {state["args"]}, now {comparable(self.args)}.')
        for saved, own in zip(state['optimizer']['param_groups'], self.optimizer.param_groups, strict=True):
            saved.update({key: own[key] for key in ('capturable', 'fused') if key in own})  # of another device, maybe
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.history = state['history']
        self.place_rates()


def create_model(args: argparse.Namespace) -> nn.Module:
    task = TASKS[args.set]
    if (args.model in VOLUME_NETS) != (task.dims == 3):
        raise SystemExit(f'--model {args.model} --set {args.set}: the set VOLUME is for {", ".join(VOLUME_NETS)}, '
                         'and all others are for models of timm.')
    if args.model in VOLUME_NETS:
        return VolumeNet(VOLUME_NETS[args.model], task.size, task.outputs, **args.model_kwargs).to(args.device)
    kwargs = {'in_chans': task.channels, 'num_classes': task.outputs}
    if get_pretrained_cfg_value(args.model, 'fixed_input_size'):
        kwargs['img_size'] = args.img_size or task.size
    if args.weights:
        with torch.random.fork_rng():  # the network itself is drawn as if this one was not
            check_weights(args.weights, timm.create_model(args.model, **{**kwargs, **args.model_kwargs}))
        kwargs.update(pretrained=True, pretrained_cfg_overlay=dict(file=args.weights))
    model = timm.create_model(args.model, **{**kwargs, **args.model_kwargs}).to(args.device)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def check_weights(path: str, model: nn.Module) -> None:
    """End where a file is no checkpoint of a model or of its backbone."""
    try:
        names = timm.models.load_state_dict(path).keys()
    except Exception as error:  # of any reader of a broken file
        raise SystemExit(f'argument --weights: {path} is no checkpoint that can be read: {error}') from None
    if not names & {name.removeprefix('backbone.') for name in model.state_dict()}:
        raise SystemExit(f'argument --weights: {path} has no weight of the network')


def scale_of(model: nn.Module, args: argparse.Namespace) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation (C, 1, 1) of the network's configuration; None where pixels stay as they are."""
    if not args.normalize:
        return None
    mean, std = (torch.tensor(model.pretrained_cfg[name]).to(args.device) for name in ('mean', 'std'))
    return mean[:, None, None], std[:, None, None]


def shown(run: 'Run', images: Tensor) -> Tensor:
    """Images of a task as the network takes them."""
    if run.args.img_size:
        images = shrink(images, (run.args.img_size, run.args.img_size))
    return images if run.scale is None else (images - run.scale[0]) / run.scale[1]


def comparable(args: argparse.Namespace) -> dict[str, Any]:
    return json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in MAY_DIFFER}))


def warmup_cosine(warmup: float, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))
        return min((step + 1) / (warmup + 1), 1) * cosine
    return factor


def warmup_step(warmup: float, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        return min((step + 1) / (warmup + 1), 1) * 0.1 ** min(3 * step // total, 2)
    return factor


def draw(count: int, kind: str, generator: torch.Generator) -> Digits:
    """The order of an epoch's digits and their uniform random numbers, equal to those drawn batch by batch."""
    order = torch.randperm(count, generator=generator)
    return order, torch.rand(count, TASKS[kind].draws, generator=generator)


def train_epoch(run: Run, digits: Digits, epoch: int) -> float:
    """One pass over the digits; returns the mean loss. Seed and epoch determine all randomness."""
    args, count = run.args, len(digits[0])
    torch.manual_seed(10_000 * (args.seed + 1) + epoch)
    generator = torch.Generator().manual_seed(10_000 * (args.seed + 1) + epoch)
    order, u = (drawn.to(args.device) for drawn in draw(count, args.set, generator))
    run.total.zero_()
    run.model.train()
    step = run.captured or eager_step
    for batch in zip(order.split(args.batch_size), u.split(args.batch_size), strict=True):
        step(run, digits, *batch)
    mean = run.total.item() / count
    if not math.isfinite(mean):
        raise RuntimeError(f'The loss of epoch {epoch} is {mean}.')
    return mean


def train_step(run: Run, digits: Digits, index: Tensor, u: Tensor) -> None:
    """Make images of the digits of `index` with uniform numbers `u`, and train on them.

    A CUDA graph can hold this: nothing waits for the device, and no number in Python changes from step to step.
    """
    x, y = run.task.to_train_on(*digits, index, u)
    with autocast(run.args):
        logits = run.model(shown(run, x))
    logits = logits.float().reshape(-1, run.task.classes)
    loss = F.cross_entropy(logits, y.flatten(), label_smoothing=run.args.smoothing)  # the mean over all answers
    run.optimizer.zero_grad()
    loss.backward()
    if run.args.clip_grad:
        nn.utils.clip_grad_norm_(run.model.parameters(), run.args.clip_grad)
    run.optimizer.step()
    run.total += loss.detach() * len(index)


def eager_step(run: Run, digits: Digits, index: Tensor, u: Tensor) -> None:
    train_step(run, digits, index, u)
    run.scheduler.step()
    if run.ema:
        run.ema.update(run.model, step=run.scheduler.last_epoch)


def autocast(args: argparse.Namespace) -> AbstractContextManager[Any]:
    return torch.autocast(torch.device(args.device).type, torch.bfloat16) if args.amp else nullcontext()


@torch.inference_mode()
def test_error(run: Run, images: Iterable[Digits]) -> float:
    """Percentage of images of which not every answer is right."""
    model = run.reported.eval()
    wrong = torch.cat([are_wrong(model(shown(run, x)), y) for x, y in images])
    return 100 * int(wrong.sum()) / len(wrong)


def told(error: float | None) -> str:
    return '' if error is None else f'error {error:.2f} %  '


def write_epoch(run: Run, output: Path) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(run.history[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(run.history)
    write_whole(output / 'checkpoint.pt', lambda path: torch.save(run.state(), path))
    write_text(output / 'summary.csv', table.getvalue())


def measure(run: Run, held_out: TestSet, digits: list[Tensor]) -> dict[str, Any]:
    """What is told of a trained network beside its error: its cost, errors on other sets, where it looks."""
    found: dict[str, Any] = {'pretrained': bool(run.args.weights)}
    held_out.kept = None  # there may be other sets to keep
    side = run.args.img_size or run.task.size
    if run.task.dims == 2:
        copy = deepcopy(run.reported).cpu()
        found['multiply_adds'] = multiply_adds(copy, (run.task.channels, side, side))
    if run.args.also:
        found['errors_on'] = {}
    for kind in run.args.also:
        args = argparse.Namespace(**{**vars(run.args), 'set': kind})
        found['errors_on'][kind] = test_error(run, TestSet(args, *digits))
    if run.task.boxes and getattr(run.reported, 'stn', None) is not None:
        pairs = zip(held_out, held_out.boxes(), strict=True)
        found['looks'] = where_it_looks(run.reported, ((shown(run, x), boxes) for (x, _), boxes in pairs))
    return found


def write_weights(run: Run, output: Path) -> None:
    state = {k: v.contiguous() for k, v in run.reported.state_dict().items()}
    write_whole(output / 'model.safetensors', lambda path: save_file(state, path))


def write_result(run: Run, output: Path, measured: dict[str, Any]) -> None:
    result = {
        'args': vars(run.args),
        'parameters': sum(p.numel() for p in run.model.parameters()),
        'test_error': run.history[-1]['test_error'],
        'test_errors': [line['test_error'] for line in run.history if line['test_error'] is not None],
        'train_loss': run.history[-1]['train_loss'],
        'seconds': [line['seconds'] for line in run.history],
        'steps_per_epoch': run.steps_per_epoch,
        **measured,
        'device': torch.cuda.get_device_name(run.args.device) if run.total.is_cuda else run.args.device,
        'cuda_graph': run.captured is not None and run.captured.graph is not None,
        'versions': {'torch': torch.__version__, 'timm': timm.__version__},
    }
    write_text(output / 'result.json', json.dumps(result, indent=2) + '\n')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with work_on(args.device):
        train(args)


def train(args: argparse.Namespace) -> None:
    images, labels, *test = (part.to(args.device) for part in digits_of(args))
    held_out = TestSet(args, *test)
    run = Run(args, math.ceil(len(images) / args.batch_size))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    if (output / 'checkpoint.pt').exists():
        run.load(output / 'checkpoint.pt')
    for epoch in range(len(run.history) + 1, args.epochs + 1):
        start, lr = time.perf_counter(), max(float(rate) for rate in run.scheduler.get_last_lr())
        loss = train_epoch(run, (images, labels), epoch)
        seconds = round(time.perf_counter() - start, 2)
        tested = epoch % args.val_interval == 0 or epoch == args.epochs
        error = test_error(run, held_out) if tested else None
        run.history.append({'epoch': epoch, 'lr': lr, 'train_loss': loss, 'test_error': error, 'seconds': seconds})
        write_epoch(run, output)
        print(f'{epoch:3}/{args.epochs}  lr {lr:.2e}  loss {loss:.4f}  {told(error)}{seconds} s', flush=True)
    write_weights(run, output)
    write_result(run, output, measure(run, held_out, test))
    of = 'held-back digits, error' if args.held_back else 'test error'
    print(f'{args.model} on {args.set}: {of} {run.history[-1]["test_error"]:.2f} %, in {output}')


if __name__ == '__main__':
    main()
