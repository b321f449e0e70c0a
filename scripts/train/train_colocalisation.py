#!/usr/bin/env python
"""The paper's co-localisation (appendix A.2): find the object that 100 images share, without labels or boxes.

    python scripts/train/train_colocalisation.py --set TC --output runs/colocalisation-tc

For each digit class, a spatial transformer (attention) learns where in its 100 images the digit is, from the loss

    sum over n != m of max(0, |e(I_n) - e(I_m)|^2 - |e(I_n) - e(rand_n)|^2 + margin)

where I_n is what it sees of image n, rand_n a random patch of the same image, and e a frozen classifier's hidden layers
and class scores. A box counts as correct if its IoU with the digit's is above 0.5. No box enters training, and no step,
start or seed is chosen by one. The digit's box is its square of 28 x 28 pixels, not the extent of its ink.

The paper names the loss, the localisation network and the images. Our choices where it is silent or differs:

- The encoder is `mnist_cnn`, trained here on all training digits as crops of 28 x 28 from the paper's TC canvases of
  60 x 60, around the digit with random errors: moved by up to 30 % of half the digit's side, 0.75 to 1.5 times as
  large. Each layer is divided by its spread over digits, so that a digit's mean squared distance from the mean of all
  is 1. The 100 images' places play no part in this, but their digits are among the training digits.
- The paper's margin is 1, for distances of unknown size. Ours are small, and its equivalent is 2 (`--margin`).
- Each step takes all images, all pairs and one new random patch per image (the paper: random pairs), with Adam.
- Boxes start in the middle, at the image's own resolution (a third of its side), and stay inside the image. Their side
  learns at 1/250 of the centre's rate: at equal rates, boxes shrink to a piece of a stroke, which all images share,
  too, and which has a lower loss for class 1 than the digit.
- Schedules, linear in the step: the distance between two images counts nothing in the first 20 %, and fully after 70 %
  (with full weight from the start, all boxes flee to the black); images are blurred for the encoder in the first 50 %;
  boxes are moved by normal random noise in the first 60 %.

`--output` gets `encoder.pt`, `summary.csv` (a line per class), `boxes/CLASS.pt` (boxes found and true, with the
transformer's weights), and `result.json`. A restarted run goes on with the first class that is missing.
"""
import argparse
import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

from timm_stn import SpatialTransformer, warp
from timm_stn.data import DISTORTIONS, load_mnist
from timm_stn.data.distortions import as_float
from timm_stn.whole_file import place_of_folder, write_text, write_whole

MAY_DIFFER = ('output', 'data', 'threads', 'device', 'classes')  # between the starts of one run
CANVAS, DIGIT, PATCH = 84, 28, 6  # sides in pixels
PATCHES = {'T': 0, 'TC': 16}  # of clutter, per image
UNBLURRED, UNMOVED = 0.5, 0.6  # shares of the steps after which blur and noise have ended
WEIGHTED = 0.2, 0.7  # between which the weight of the distance between two images rises from 0 to 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Co-localise digits with spatial transformers.')
    add = parser.add_argument
    add('--set', default='TC', choices=list(PATCHES), help='images: with clutter or without (default: %(default)s)')
    add('--output', required=True, type=lambda text: str(place_of_folder(text)),
        help='folder of the run; goes on with the classes that are missing')
    add('--data', help='folder with MNIST (default: the environment variable TIMM_STN_DATA)')
    add('--classes', type=int, nargs='+', default=list(range(10)), choices=range(10), metavar='DIGIT')
    add('--images', type=int, default=100, help='images per class (default: %(default)s)')
    add('--steps', type=int, default=400, help='steps per class (default: %(default)s)')
    add('--lr', type=float, default=5e-3, help='peak learning rate of Adam (default: %(default)s)')
    add('--margin', type=float, default=2., help='margin of the loss (default: %(default)s)')
    add('--scale', type=float, default=1 / 3, help='side of the first box, of the image\'s (default: %(default)s)')
    add('--noise', type=float, default=0.3, help='first standard deviation of noise of a box, in half image sides '
        '(default: %(default)s)')
    add('--blur', type=float, default=2., help='first standard deviation of the blur, in pixels (default: %(default)s)')
    add('--encoder', type=Path,
        help='state dict of a trained mnist_cnn, or the encoder.pt of another run (default: train one)')
    add('--encoder-epochs', type=int, default=3)
    add('--seed', type=int, default=0)
    add('--threads', type=int, help='CPU threads')
    add('--device', default='cpu')
    args = parser.parse_args(argv)
    for name, least in (('images', 2), ('steps', 1), ('encoder_epochs', 0)):
        if getattr(args, name) < least:
            parser.error(f'--{name.replace("_", "-")} must be at least {least}')
    return args


# --- images ---

def make_images(digits: Tensor, labels: Tensor, digit: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Canvases (N, 1, 84, 84) in [0, 1] of one class, and the true boxes (N, 3): half-side, centre x and y in [-1, 1].

    Digits and clutter are placed uniformly, at whole pixels; clutter is added, and the sum clamped to 1.
    """
    generator = torch.Generator().manual_seed(1000 * args.seed + digit)

    def draw(count: int, *shape: int) -> Tensor:
        return torch.randint(count, shape, generator=generator)

    own = (labels == digit).nonzero()[:, 0]
    if len(own) < args.images:
        raise SystemExit(f'--images {args.images}: there are {len(own)} digits of class {digit}.')
    own = own[torch.randperm(len(own), generator=generator)[:args.images]]
    corners = draw(CANVAS - DIGIT + 1, args.images, 2)
    canvases = torch.zeros(args.images, 1, CANVAS, CANVAS)
    for canvas, index, (x, y) in zip(canvases, own, corners.tolist()):
        canvas[:, y:y + DIGIT, x:x + DIGIT] = as_float(digits[index])
        for _ in range(PATCHES[args.set]):
            (u, v), (a, b) = draw(DIGIT - PATCH + 1, 2).tolist(), draw(CANVAS - PATCH + 1, 2).tolist()
            patch = digits[int(draw(len(digits)))][:, u:u + PATCH, v:v + PATCH]
            canvas[:, a:a + PATCH, b:b + PATCH] += as_float(patch)
    centers = (corners + DIGIT / 2) * 2 / CANVAS - 1
    return canvases.clamp_(max=1), torch.cat([torch.full((args.images, 1), DIGIT / CANVAS), centers], 1)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (N,) of squares (N, 3): half-side, centre x and y."""
    half, other = boxes[:, :1].abs(), others[:, :1].abs()
    low = torch.maximum(boxes[:, 1:] - half, others[:, 1:] - other)
    high = torch.minimum(boxes[:, 1:] + half, others[:, 1:] + other)
    both = (high - low).clamp(min=0).prod(1)
    return both / (4 * half.square() + 4 * other.square())[:, 0].sub(both)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, 1, H, W) under a Gaussian of standard deviation `sigma` pixels, zero outside."""
    if sigma <= 0:
        return images
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, device=images.device).square() / (2 * sigma ** 2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    return F.conv2d(F.conv2d(images, kernel, padding=(0, radius)), kernel.mT, padding=(radius, 0))


# --- encoder ---

class Encoder(nn.Module):
    """Both hidden layers and the class scores of a frozen classifier, each divided by its spread over digits."""

    def __init__(self, net: nn.Module, digits: Tensor) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        with torch.no_grad():
            spread = [(f - f.mean(0)).square().sum(1).mean() for f in self.layers(digits)]
        self.factors = [(len(spread) * s).clamp(min=1e-12).rsqrt() for s in spread]

    def layers(self, x: Tensor) -> list[Tensor]:
        last, hidden = self.net.forward_intermediates(x)
        return [*(h.flatten(1) for h in hidden), self.net.forward_head(last)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) to (N, F)."""
        return torch.cat([layer * factor for layer, factor in zip(self.layers(x), self.factors)], 1)


def encoder_of(args: argparse.Namespace, digits: Tensor, labels: Tensor) -> Encoder:
    """The classifier of `--encoder`, or that of the run's folder, trained before its first class."""
    path, made_with = Path(args.output) / 'encoder.pt', dict(seed=args.seed, encoder_epochs=args.encoder_epochs)
    torch.manual_seed(args.seed)
    net = timm.create_model('mnist_cnn', img_size=DIGIT).to(args.device)
    if not args.encoder and not path.exists():
        train_encoder(net, digits, labels, args)
        write_whole(path, lambda beside: torch.save(dict(args=made_with, model=net.state_dict()), beside))
    found = torch.load(args.encoder or path, map_location=args.device, weights_only=True)
    if not args.encoder and found['args'] != made_with:
        raise ValueError(f'{path} is of a run with other arguments: {found["args"]}, now {made_with}.')
    net.load_state_dict(found.get('model', found))
    return Encoder(net, as_float(digits[:2000]))


def train_encoder(net: nn.Module, digits: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    size, draws, apply = DISTORTIONS['TC']
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = create_optimizer_v2(net, 'adamw', lr=2e-3, weight_decay=0.01)
    total = args.encoder_epochs * math.ceil(len(digits) / 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(total, 1))
    for _ in range(args.encoder_epochs):
        for index in torch.randperm(len(digits), generator=generator).split(256):
            index = index.to(args.device)
            u = torch.rand(len(index), draws + 3, generator=generator).to(args.device)
            canvases = apply(as_float(digits[index]), u[:, :draws], size, digits)
            corners = (u[:, :2] * (size - DIGIT + 1)).floor()
            half = (0.75 + 0.75 * u[:, draws:draws + 1]) * DIGIT / size
            centers = (corners + DIGIT / 2) * 2 / size - 1 + 0.3 * (2 * u[:, draws + 1:] - 1) * DIGIT / size
            crops = crop(canvases, torch.cat([half, centers], 1))
            loss = F.cross_entropy(net(crops), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


# --- transformer ---

def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """What images (N, 1, H, W) show in squares (N, 3): (N, 1, 28, 28), zero outside."""
    params = torch.cat([boxes[:, :1] - 1, boxes[:, 1:]], 1)  # increments on the identity
    return warp(images, params, 'attention', DIGIT, padding_mode='zeros')


def boxes_of(theta: Tensor) -> Tensor:
    """Squares (N, 3), half-side and centre, of matrices (N, 2, 3) of the attention family."""
    return torch.cat([theta[:, 0, :1], theta[:, :, 2]], 1)


class Localization(nn.Sequential):
    """The paper's localisation network of (N, 1, 84, 84) to (N, 3): side at 1/250 of the rate, then the centre."""

    rates: Tensor

    def __init__(self) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(1, 8, 9, stride=4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(8 * 9 * 9, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(layers[-1].weight)
        super().__init__(*layers)
        self.register_buffer('rates', torch.tensor([0.004, 1., 1.]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.rates


def transformer(scale: float) -> SpatialTransformer:
    return SpatialTransformer(
        1, CANVAS, 'attention', Localization(), size=DIGIT, scale=scale, bound=True, padding_mode='zeros')


def triplet_loss(seen: Tensor, random: Tensor, margin: float, weight: float = 1.) -> Tensor:
    """The mean over all n != m of max(0, weight |e_n - e_m|^2 - |e_n - r_n|^2 + margin), of (N, F) and (N, F)."""
    square = seen.square().sum(1)
    apart = square[:, None] + square - 2 * seen @ seen.T
    loss = (weight * apart - (seen - random).square().sum(1, keepdim=True) + margin).clamp(min=0)
    return (loss.sum() - loss.diagonal().sum()) / (len(seen) * (len(seen) - 1))


def fading(first: float, step: int, end: float) -> float:
    return first * max(0., 1 - step / end)


def rising(share: float, start: float, end: float) -> float:
    return min(1., max(0., (share - start) / (end - start)))


def localise(images: Tensor, encoder: Encoder, digit: int, args: argparse.Namespace) -> tuple[nn.Module, Tensor, float]:
    """The trained transformer, the boxes that it finds, and the mean loss of the last tenth of the steps."""
    torch.manual_seed(1000 * args.seed + digit)
    generator = torch.Generator().manual_seed(1000 * args.seed + 10 + digit)
    model, count = transformer(args.scale).to(args.device), len(images)
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    losses = []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group['lr'] = args.lr * min((step + 1) / 20, 1) * (1 + math.cos(math.pi * step / args.steps)) / 2
        noise, u = torch.randn(count, 2, generator=generator), torch.rand(count, 2, generator=generator)
        x = blurred(images, fading(args.blur, step, UNBLURRED * args.steps))
        boxes = boxes_of(model.regress(images))
        moved = fading(args.noise, step, UNMOVED * args.steps) * noise.to(args.device)
        seen = encoder(crop(x, torch.cat([boxes[:, :1], boxes[:, 1:] + moved], 1)))
        corners = (u * (CANVAS - DIGIT + 1)).floor().to(args.device)
        places = (corners + DIGIT / 2) * 2 / CANVAS - 1
        random = encoder(crop(x, torch.cat([torch.full_like(places[:, :1], DIGIT / CANVAS), places], 1)))
        loss = triplet_loss(seen, random, args.margin, rising(step / args.steps, *WEIGHTED))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    with torch.no_grad():
        boxes = boxes_of(model.regress(images))
    mean = float(torch.stack(losses[-max(1, args.steps // 10):]).mean())
    if not math.isfinite(mean):
        raise RuntimeError(f'The loss of class {digit} is {mean}.')
    return model, boxes, mean


# --- the run ---

def comparable(args: argparse.Namespace) -> dict[str, Any]:
    found = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in MAY_DIFFER}
    return json.loads(json.dumps(found))


def run_class(digit: int, args: argparse.Namespace, data: tuple[Tensor, Tensor], encoder: Encoder) -> dict[str, Any]:
    """The line of a class in summary.csv, from its file if there is one."""
    path = Path(args.output) / 'boxes' / f'{digit}.pt'
    if path.exists():
        state = torch.load(path, map_location='cpu', weights_only=True)
        if state['args'] != comparable(args):
            raise ValueError(f'{path} is of a run with other arguments: {state["args"]}, now {comparable(args)}.')
        return state['line']
    images, truth = make_images(data[0].cpu(), data[1].cpu(), digit, args)
    start = time.perf_counter()
    model, boxes, loss = localise(images.to(args.device), encoder, digit, args)
    seconds = round(time.perf_counter() - start, 2)
    overlap = iou(boxes.cpu(), truth)
    line = {'class': digit, 'accuracy': 100 * int((overlap > 0.5).sum()) / len(overlap),
            'mean_iou': overlap.mean().item(), 'loss': loss, 'seconds': seconds}
    state = {'args': comparable(args), 'line': line, 'boxes': boxes.cpu(), 'truth': truth,
             'model': {k: v.cpu() for k, v in model.state_dict().items()}}
    write_whole(path, lambda beside: torch.save(state, beside))
    return line


def write_results(args: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    write_text(Path(args.output) / 'summary.csv', table.getvalue())
    if len(lines) < len(args.classes):
        return
    accuracy = [line['accuracy'] for line in lines]
    mean = sum(accuracy) / len(accuracy)
    result = {
        'args': dict(vars(args), encoder=args.encoder and str(args.encoder)),
        'parameters': sum(p.numel() for p in transformer(args.scale).parameters()),
        'accuracy': accuracy,
        'mean_accuracy': mean,
        'test_error': 100 - mean,
        'seconds': [line['seconds'] for line in lines],
        'steps': args.steps,
        'device': torch.cuda.get_device_name(args.device) if args.device.startswith('cuda') else args.device,
        'versions': {'torch': torch.__version__, 'timm': timm.__version__},
    }
    write_text(Path(args.output) / 'result.json', json.dumps(result, indent=2) + '\n')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    digits, labels = (part.to(args.device) for part in load_mnist(args.data, 'train'))
    encoder = encoder_of(args, digits, labels)
    lines = []
    for digit in args.classes:
        lines.append(run_class(digit, args, (digits, labels), encoder))
        write_results(args, lines)
        print('class {class}: {accuracy:.0f} % found, mean IoU {mean_iou:.2f}, loss {loss:.3f}, {seconds} s'.format(
            **lines[-1]), flush=True)
    print(f'{args.set}: {sum(line["accuracy"] for line in lines) / len(lines):.1f} % found, in {args.output}')


if __name__ == '__main__':
    main()
