#!/usr/bin/env python
"""Train `stn_resnet50_cub` from scratch, where neither CUB-200-2011 nor ImageNet weights of ResNet-50 are at hand.

    python scripts/train/distil.py --data DATA --weights FILE --output OUTPUT --device cuda

DATA has the photographs of Caltech-UCSD Birds 200 (2010) that `timm_stn.data.birds.load_birds` reads, of 224 x 224.
FILE is the ImageNet checkpoint of tf_efficientnet_lite0. Stages, one after another:

- `teacher`: tf_efficientnet_lite0 is fine-tuned on the training photographs and their labels, which nothing else sees.
- `student`: ResNet-50 learns from scratch what the teacher says of crops of these photographs, mixed with one another:
  first at 128 x 128 pixels, then at 224 x 224. Of the teacher's features it learns the direction.
- `plain`, `plain_448`: the plain ResNet-50 goes on, on crops that are not mixed, at 224 x 224 and at 448 x 448.
- `looking`: so does `stn_resnet50_cub`, for as many epochs, at 448 x 448.

Test photographs influence nothing. An interrupted run goes on where it was: exactly so from `state.pt`, which stays on
its machine, or from `checkpoint.pt`, which is small enough to travel (half precision, no averages of the optimizer).
At the end the folder has `model.safetensors`, `summary.csv` (a line an epoch) and `result.json`.
"""
import argparse
import csv
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from distil_lessons import Lesson, Pace, Photos, divergence, epoch, normalized, precision, steps_of
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import accuracy
from torch import Tensor, nn

import timm_stn
from timm_stn.cli.common import positive
from timm_stn.data.birds import load_birds
from timm_stn.data.distortions import as_float
from timm_stn.publish.half import halved
from timm_stn.view.cost import multiply_adds
from timm_stn.whole_file import place_of_folder, write_text, write_whole

TEACHER, STUDENT, LOOKING = 'tf_efficientnet_lite0', 'resnet50', 'stn_resnet50_cub'
STAGES = ('teacher', 'student', 'plain', 'plain_448', 'looking')
COUNTS = ('teacher', 'small', 'large', 'looking')  # parts of stages whose epochs are given
CROP = timm.get_pretrained_cfg(LOOKING).crop_pct  # share of a photograph's side that is tested
WHOLE = ('teacher', 'plain', 'plain_448')  # stages that begin anew where they were interrupted
SAVED = 30.0  # seconds between checkpoints
WARMUP = 400  # steps, and at most a tenth of all
MAY_DIFFER = ('output', 'data', 'weights', 'device', 'until')  # between the starts of one run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', help='folder with the birds, or with cub200-2010 (default: the variable TIMM_STN_DATA)')
    add('--weights', required=True, metavar='FILE', help='ImageNet weights of tf_efficientnet_lite0')
    add('--output', required=True, type=lambda text: str(place_of_folder(text)), help='folder of the run')
    add('--epochs', nargs=4, type=positive, default=[12, 300, 60, 20], metavar=tuple(name.upper() for name in COUNTS),
        help='of the teacher, of the student at SMALL and at LARGE pixels, of each stage after it '
             '(default: 12 300 60 20)')
    add('--sides', nargs=3, type=positive, default=[128, 224, 448], metavar=('SMALL', 'LARGE', 'FULL'),
        help='pixels that the student sees, at last FULL; glimpses have half of FULL (default: 128 224 448)')
    add('--lr', type=float, default=1e-3, help='highest, of the student; a fifth of it after it (default: %(default)s)')
    add('--batch-size', type=positive, default=256, help='of the student (default: %(default)s)')
    add('--temperature', type=float, default=5.0,
        help="of teacher's and student's answers, for the student; 1 after it (default: %(default)s)")
    add('--until', choices=STAGES, default=STAGES[-1], help='the last stage to run (default: all of them)')
    add('--held-back', type=int, default=0, metavar='N', help='train without the last N photographs, and test on these')
    add('--photos', type=positive, metavar='N', help='take only N to train on, and N to test on')
    add('--seed', type=int, default=0)
    add('--device', default='cpu')
    return parser.parse_args(argv)


def photos_of(args: argparse.Namespace) -> tuple[Photos, Photos]:
    """Photographs and classes to learn from, and those to test on."""
    images, classes = load_birds(args.data, 'train')
    if not 0 <= args.held_back < len(images):
        raise SystemExit(f'argument --held-back: takes less than the {len(images)} training photographs, '
                         f'got {args.held_back}')
    end = len(images) - args.held_back
    test = (images[end:], classes[end:]) if args.held_back else load_birds(args.data, 'test')
    chosen = slice(args.photos)
    return (images[:end][chosen], classes[:end][chosen]), (test[0][chosen], test[1][chosen])


class Stage:
    """What a stage does, by the arguments of the run."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.is_whole = name, name in WHOLE
        counts, (small, large, full) = dict(zip(COUNTS, args.epochs, strict=True)), args.sides
        self.changes = counts['small'] if name == 'student' else 0  # epochs, then it sees more pixels
        self.epochs = {'teacher': counts['teacher'], 'student': counts['small'] + counts['large']}.get(
            name, counts['looking'])
        self.side = {'teacher': 224, 'student': large, 'plain': large}.get(name, full)
        self.lr = {'teacher': 1e-3, 'student': args.lr}.get(name, args.lr / 5)
        self.small, self.batch_size = small, {'teacher': 32, 'student': args.batch_size}.get(name, 64)
        self.temperature = args.temperature

    def part(self, number: int) -> str:
        """The name of the part to which an epoch belongs."""
        return ('small' if number < self.changes else 'large') if self.name == 'student' else self.name

    def lesson(self, number: int) -> Lesson:
        side = self.small if number < self.changes else self.side
        if self.name == 'student':
            return Lesson(side, self.batch_size, least=0.08, mixed=True, features=True, temperature=self.temperature)
        return Lesson(side, self.batch_size, smoothing=0.1 if self.name == 'teacher' else 0.0)


class Run:
    """A run in its folder: its networks, where it is, what it has found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder, self.device = args, Path(args.output), args.device
        photos, self.test = photos_of(args)
        self.photos: Photos = (photos[0].to(args.device), photos[1].to(args.device))
        self.stage, self.epoch = STAGES[0], 0  # so many epochs of this stage are done
        self.found: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.teacher: nn.Module | None = None
        self.network: nn.Module | None = None  # the student, in the last stage the one that looks
        self.optimizer: torch.optim.Optimizer | None = None  # the network's
        self.renewed = 0  # step of the stage at which the optimizer was made
        self.saved = time.monotonic()
        self.said: Tensor | None = None  # the teacher's answers to the test photographs
        self.reads: dict[tuple[Any, ...], Tensor] = {}

    # networks

    def made(self, name: str, **kwargs: Any) -> nn.Module:
        torch.manual_seed(self.args.seed)
        if name == LOOKING:
            kwargs.update(img_size=self.args.sides[2], stn_size=self.args.sides[2] // 2)
        model = timm.create_model(name, num_classes=200, **kwargs)
        return model.to(self.device, memory_format=torch.channels_last)

    def optimizer_of(self, network: nn.Module, stage: Stage) -> torch.optim.Optimizer:
        decay = 0.85 if stage.name == 'teacher' else None
        return create_optimizer_v2(network, 'adamw', lr=stage.lr, weight_decay=0.05, layer_decay=decay)

    def beginning(self, stage: Stage) -> nn.Module:
        """The network with which a stage begins."""
        if stage.name == 'teacher':
            return self.made(TEACHER, pretrained=True, pretrained_cfg_overlay=dict(file=self.args.weights))
        if stage.name == 'student':
            return self.made(STUDENT)
        network = self.made(LOOKING if stage.name == 'looking' else STUDENT)
        (network.backbone if stage.name == 'looking' else network).load_state_dict(self.network.state_dict())
        return network

    # stages

    def run(self) -> None:
        """Run the stages that are left."""
        for name in STAGES[STAGES.index(self.stage):STAGES.index(self.args.until) + 1]:
            if name != self.stage:
                self.stage, self.epoch, self.optimizer = name, 0, None
            if name not in self.found:  # it may have learned, and not been measured
                self.learn(Stage(name, self.args))

    def learn(self, stage: Stage) -> None:
        """Run a stage to its end, and measure what has come of it."""
        if stage.is_whole:
            self.history = [line for line in self.history if line['stage'] != stage.name]
            network = self.beginning(stage)
        else:
            network = self.network = self.network if self.epoch else self.beginning(stage)
            if stage.name == 'student' and not self.epoch:
                self.found['untrained'] = self.figures(network, stage.side)
        steps = steps_of(len(self.photos[0]), stage.batch_size)
        optimizer = None if stage.is_whole else self.optimizer
        if optimizer is None:
            optimizer, self.renewed = self.optimizer_of(network, stage), self.epoch * steps
        if not stage.is_whole:
            self.optimizer = optimizer
        total = stage.epochs * steps
        pace = Pace(optimizer, stage.lr, min(WARMUP, total // 10), total, self.renewed)
        for number in range(self.epoch, stage.epochs):
            start = time.perf_counter()
            seed = 100_000 * self.args.seed + 10_000 * STAGES.index(stage.name) + number
            losses = epoch(network, self.teacher, pace, number * steps, self.photos, stage.lesson(number), seed,
                           self.device)
            self.note(stage, number, losses, time.perf_counter() - start)
        if stage.name == 'teacher':
            self.teacher = network.eval().requires_grad_(False)
        self.found[stage.name] = self.figures(network, stage.side)
        self.epoch = stage.epochs
        self.save()
        print(stage.name, json.dumps(self.found[stage.name]), flush=True)

    def note(self, stage: Stage, number: int, losses: dict[str, float], seconds: float) -> None:
        line = dict(stage=stage.part(number), epoch=number + 1, **losses, seconds=round(seconds, 2))
        self.history.append(line)
        print(' '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in line.items()), flush=True)
        if not stage.is_whole:
            self.epoch = number + 1
            if time.monotonic() - self.saved > SAVED:
                self.save()

    def figures(self, network: nn.Module, side: int) -> dict[str, float]:
        """What a network makes of the test photographs: shares in percent, the divergence from the teacher in nats."""
        logits = self.answers(network, side)
        if network is self.teacher:
            self.said = logits
        elif self.said is None:  # the run goes on after the teacher's stage
            self.said = self.answers(self.teacher, 224)
        top1, top5 = accuracy(logits, self.test[1], (1, 5))
        agreement, = accuracy(logits, self.said.argmax(1))
        return dict(top1=top1.item(), top5=top5.item(), agreement=agreement.item(),
                    divergence=divergence(logits, self.said).item())

    @torch.inference_mode()
    def answers(self, network: nn.Module, side: int) -> Tensor:
        """Logits (N, 200) of the test photographs, read as timm's validate.py reads them."""
        network.eval()
        photos = self.read(network, side).split(64)
        with precision(self.device):
            return torch.cat([network(normalized(network, as_float(x.to(self.device)))).float().cpu() for x in photos])

    def read(self, network: nn.Module, side: int) -> Tensor:
        """The test photographs (N, 3, side, side) of bytes, as the network's configuration has them read; kept.

        The share of a photograph that the middle takes is that of `stn_resnet50_cub` for all networks.
        """
        config = resolve_model_data_config(network) | {'input_size': (3, side, side), 'crop_pct': CROP}
        way = side, config['crop_mode'], config['interpolation']
        if way not in self.reads:
            transform = create_transform(**config, normalize=False)
            with ThreadPoolExecutor() as pool:
                found = pool.map(lambda x: transform(Image.fromarray(x.permute(1, 2, 0).numpy())), self.test[0])
                self.reads[way] = torch.stack([*found])
        return self.reads[way]

    # checkpoints

    def state(self, exact: bool) -> dict[str, Any]:
        """All of it, or what is small enough to travel."""
        def weights(network: nn.Module | None) -> dict[str, Tensor] | None:
            state = None if network is None else network.state_dict()
            return state if exact or state is None else halved(state)

        kept = dict(args=comparable(self.args), stage=self.stage, epoch=self.epoch, found=self.found,
                    history=self.history, teacher=weights(self.teacher), network=weights(self.network))
        if exact and self.optimizer is not None:
            kept.update(optimizer=self.optimizer.state_dict(), renewed=self.renewed)
        return kept

    def save(self) -> None:
        for name, exact in (('state.pt', True), ('checkpoint.pt', False)):
            write_whole(self.folder / name, lambda path, exact=exact: torch.save(self.state(exact), path))
        write_text(self.folder / 'summary.csv', table(self.history))
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the state or the checkpoint, whichever is further."""
        found = [torch.load(path, map_location=self.device, weights_only=True)
                 for path in (self.folder / 'state.pt', self.folder / 'checkpoint.pt') if path.is_file()]
        if not found:
            return
        state = max(found, key=lambda state: (STAGES.index(state['stage']), state['epoch']))  # the first of equals
        before = vars(parse_args(['--weights', '', '--output', str(self.folder)]))  # options that there were not then
        state['args'] = comparable(argparse.Namespace(**{**before, **state['args']}))
        if state['args'] != comparable(self.args):
            raise SystemExit(f'argument --output: {self.folder} is of a run with other arguments: {state["args"]}, '
                             f'now {comparable(self.args)}')
        self.stage, self.epoch = state['stage'], state['epoch']
        self.found, self.history = state['found'], state['history']
        self.teacher = self.restored(TEACHER, state['teacher'])
        self.network = self.restored(LOOKING if self.stage == 'looking' else STUDENT, state['network'])
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
        if 'optimizer' in state:
            self.optimizer = self.optimizer_of(self.network, Stage(self.stage, self.args))
            self.optimizer.load_state_dict(state['optimizer'])
            self.renewed = state['renewed']

    def restored(self, name: str, weights: dict[str, Tensor] | None) -> nn.Module | None:
        if weights is None:
            return None
        network = self.made(name)
        network.load_state_dict(weights)
        return network

    def write_result(self) -> None:
        """`model.safetensors`, in half precision, and `result.json`, which says that the run is finished."""
        network, found = self.network.cpu().eval(), self.found
        weights = {key: value.contiguous() for key, value in halved(network.state_dict()).items()}
        write_whole(self.folder / 'model.safetensors', lambda path: save_file(weights, path))
        plain, (_, large, full) = self.made(STUDENT).cpu().eval(), self.args.sides
        seconds: dict[str, float] = {}
        for line in self.history:
            seconds[line['stage']] = round(seconds.get(line['stage'], 0.0) + line['seconds'], 1)
        of = {'': 'looking', 'plain_': 'plain', 'plain_448_': 'plain_448', 'teacher_': 'teacher'}
        result = dict(
            args=vars(self.args), **{f'{name}{key}': found[stage][key] for name, stage in of.items()
                                     for key in ('top1', 'top5')},
            stages=found, train_images=len(self.photos[1]), test_images=len(self.test[1]),
            parameters=sum(p.numel() for p in network.parameters()),
            multiply_adds=multiply_adds(network, (3, full, full)),
            plain_multiply_adds=multiply_adds(plain, (3, large, large)),
            epochs=dict(zip(COUNTS, self.args.epochs, strict=True)), seconds=seconds,
            device=torch.cuda.get_device_name(self.device) if self.photos[0].is_cuda else self.device,
            versions={'torch': torch.__version__, 'timm': timm.__version__, 'timm_stn': timm_stn.__version__})
        write_text(self.folder / 'result.json', json.dumps(result, indent=2) + '\n')


def comparable(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in MAY_DIFFER}


def table(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if (Path(args.output) / 'result.json').is_file():
        print(f'{args.output} is finished')
        return
    torch.backends.cudnn.benchmark = True  # the shapes of most steps are the same
    run = Run(args)
    run.resume()
    run.run()
    if args.until == STAGES[-1]:
        run.write_result()


if __name__ == '__main__':
    main()
