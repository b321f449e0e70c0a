#!/usr/bin/env python
"""Measures what looking gives: finding scattered birds, surviving turns. Nothing is trained but small digit networks.

    python scripts/reproduce/measure_looking.py split --data DIR --output FOLDER
    python scripts/reproduce/measure_looking.py find --birds FOLDER [--checkpoint FILE]
    python scripts/reproduce/measure_looking.py pairs --birds FOLDER [--checkpoint FILE]
    python scripts/reproduce/measure_looking.py turn --birds FOLDER [--checkpoint FILE]
    python scripts/reproduce/measure_looking.py digits --data DIR [--held-back 5000]

`split` unpacks DIR/cub200-2010/train.tar: every fifth image of each class is held back, in FOLDER/test, all others are
in FOLDER/train. Choices are made on these; DIR's own test.tar is for the last figure. `find` pastes birds onto canvases
of twice their side, at several scales, and looks for them; `pairs` pastes two, for two glimpses. `turn` turns birds,
`digits` MNIST digits, by any angle; corners show the reflected image, or black. FOLDER has a folder of images per
class. Without `--checkpoint`, the network is `stn_tf_efficientnet_lite0_cub2010`; with it, a checkpoint of timm's
train.py for tf_efficientnet_lite0. Each prints a table in Markdown; its standard errors are those of the number of
images, of `digits` those over seeds.
"""
import argparse
import math
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import timm_stn
from timm_stn.data import load_mnist
from timm_stn.geometry.shrink import shrink
from timm_stn.geometry.transforms import get_transform

ARCHITECTURE = 'tf_efficientnet_lite0'
SIDE = 224  # of the birds' pictures
SCALES = (0.25, 0.5, 0.75, 1.0)


def split(args: argparse.Namespace) -> None:
    """Unpack the training birds: every fifth image of a class, in the order of names, is held back."""
    seen: Counter[str] = Counter()
    with tarfile.open(Path(args.data) / 'cub200-2010' / 'train.tar') as tar:
        for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
            label, name = member.name.split('/')[-2:]
            part = 'test' if seen[label] % 5 == 4 else 'train'
            seen[label] += 1
            path = Path(args.output) / part / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            found = tar.extractfile(member)
            assert found is not None
            path.write_bytes(found.read())


def load_birds(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 224, 224) in [-1, 1] and their classes, in an order that a seed has drawn."""
    files = sorted(folder.rglob('*.jpg'))
    classes = sorted({f.parent.name for f in files})
    random.Random(0).shuffle(files)
    files = files[:count]
    pixels = [np.array(Image.open(f).convert('RGB').resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for f in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([classes.index(f.parent.name) for f in files])


def resized(images: Tensor, side: int) -> Tensor:
    if side <= images.shape[2]:
        return shrink(images, (side, side))
    return F.interpolate(images, (side, side), mode='bicubic', align_corners=False).clamp(-1, 1)


def blurred(images: Tensor) -> Tensor:
    """Canvases of twice the side, each of another image."""
    return resized(F.interpolate(images.roll(1, 0), (7, 7), mode='area'), 2 * SIDE)


def scatter(images: Tensor, scale: float, canvas: str) -> Tensor:
    """Birds at a scale, somewhere on a canvas of twice their side: grey, or another bird, blurred."""
    side = round(2 * SIDE * scale)
    shown = blurred(images) if canvas == 'blurred' else torch.zeros(len(images), 3, 2 * SIDE, 2 * SIDE)
    for canvas_of_one, bird, (top, left) in zip(shown, resized(images, side), corners_of(len(images), side)):
        canvas_of_one[:, top:top + side, left:left + side] = bird
    return shown


def corners_of(count: int, side: int) -> list[tuple[int, int]]:
    """Where scattered birds of a side have their corners, (top, left)."""
    place, room = random.Random(0), 2 * SIDE - side
    return [(place.randint(0, room), place.randint(0, room)) for _ in range(count)]


def birds_network(checkpoint: str | None, **arguments: Any) -> Any:
    """tf_efficientnet_lite0 for birds behind a transformer, in evaluation mode."""
    net = timm.create_model(f'stn_{ARCHITECTURE}', num_classes=200, **arguments)
    if checkpoint is None:
        trained = timm.create_model(f'stn_{ARCHITECTURE}_cub2010', pretrained=True)
        state = {k.removeprefix('backbone.'): v for k, v in trained.state_dict().items() if k.startswith('backbone.')}
    else:
        state = timm.models.load_state_dict(checkpoint)
    net.backbone.load_state_dict(state)
    return net.eval()


def answers(net: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(x) for x in images.split(16)])


def percent(right: Tensor) -> str:
    share = right.double().mean()
    error = (share * (1 - share) / len(right)).sqrt()
    return f'{100 * share:.1f} ± {100 * error:.1f}'


def show_row(*cells: object) -> None:
    print('|', *(f'{cell} |' for cell in cells), flush=True)


def find(args: argparse.Namespace) -> None:
    images, labels = load_birds(Path(args.birds), args.count)
    of_looks = ('estimated / true scale', 'inside, %', 'top-1, %')
    heads = [f'{looks} looks: {what}' for looks in args.looks for what in of_looks]
    show_row('canvas', 'true scale', 'the whole image: top-1, %', *heads)
    show_row(*['---'] * (3 + len(heads)))
    common = dict(img_size=2 * SIDE, stn_size=args.side, stn_transform='translation')
    plain = birds_network(args.checkpoint, **common, stn_localization='fc', stn_localization_size=8)
    finding = [
        birds_network(
            args.checkpoint, **common, stn_scale=[args.least, 1.0], stn_localization=f'saliency:{args.stage}',
            stn_iterations=looks)
        for looks in args.looks]
    for canvas, scale in [(c, s) for c in ('grey', 'blurred') for s in SCALES if c == 'grey' or s < 1]:
        scattered = scatter(images, scale, canvas)
        cells = [percent(answers(plain, scattered).argmax(1) == labels)]
        for net in finding:
            thetas, right = [], []
            with torch.inference_mode():
                for x, y in zip(scattered.split(16), labels.split(16)):
                    seen, theta = net.look(x)
                    thetas.append(theta)
                    right.append(net.backbone(seen).argmax(1) == y)
            theta = torch.cat(thetas)
            ratio = theta[:, 0, 0] / scale
            cells += [f'{ratio.mean():.2f} ± {ratio.std():.2f}',
                      f'{100 * within(theta, scattered, images, scale):.0f}', percent(torch.cat(right))]
        show_row(canvas, scale, *cells)


def pairs(args: argparse.Namespace) -> None:
    images, _ = load_birds(Path(args.birds), args.count)
    scattered, middles = two_each(images, args.scale)
    net = birds_network(
        args.checkpoint, img_size=2 * SIDE, stn_size=args.side, stn_transform='translation', stn_scale=0.5,
        stn_glimpses=2, stn_localization=f'saliency:{args.stage}')
    with torch.inference_mode():
        theta = torch.cat([net.look(x)[1] for x in scattered.split(16)])  # (N, 2, 2, 3)
    near = ((theta[:, :, None, :, 2] - middles[:, None]).abs() < args.scale).all(3)  # (N, glimpses, birds)
    show_row('birds in the picture of some glimpse, %', 'both birds, %')
    show_row('---', '---')
    show_row(f'{100 * near.any(1).double().mean():.0f}', percent(near.any(1).all(1)))


def two_each(images: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Two birds side by side or one above the other, apart, on a blurred canvas, and their middles (N, 2, 2), xy."""
    side, whole, place = round(2 * SIDE * scale), 2 * SIDE, random.Random(0)
    shown, small, middles = blurred(images), resized(images, side), []
    for i in range(len(images)):
        corners = [(0, 0), (0, 0)]  # (top, left)
        while max(abs(a - b) for a, b in zip(*corners)) < side:
            corners = [(place.randint(0, whole - side), place.randint(0, whole - side)) for _ in range(2)]
        for (top, left), bird in zip(corners, (small[i], small[i - 2])):
            shown[i, :, top:top + side, left:left + side] = bird
        middles.append([[(2 * left + side) / whole - 1, (2 * top + side) / whole - 1] for top, left in corners])
    return shown, torch.tensor(middles)


def within(theta: Tensor, scattered: Tensor, images: Tensor, scale: float) -> float:
    """The share of glimpses whose centre is within the bird's picture."""
    side, whole = round(2 * SIDE * scale), 2 * SIDE
    corners = corners_of(len(images), side)
    middle = torch.tensor([[(2 * left + side) / whole - 1, (2 * top + side) / whole - 1] for top, left in corners])
    return float(((theta[:, :, 2] - middle).abs() < scale).all(1).double().mean())


def rotation(angles: Tensor) -> Tensor:
    """Matrices (N, 2, 3) that turn images by angles in radians."""
    return get_transform('rotation').matrix(angles[:, None])


def turn(args: argparse.Namespace) -> None:
    images, labels = load_birds(Path(args.birds), args.count)
    angles = torch.rand(len(images), generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    sets = {
        'upright': images,
        'multiples of 90°': timm_stn.warp(images, rotation((angles / math.pi * 2).floor() * math.pi / 2)),
        'any angle': timm_stn.warp(images, rotation(angles), padding_mode='reflection')}
    networks = {'as it is': None, **{f'orbit:{n}, pictures of {s}': (n, s) for n in args.poses for s in args.pictures}}
    show_row('network', *sets)
    show_row(*['---'] * (1 + len(sets)))
    for name, search in networks.items():
        chosen = {} if search is None else dict(
            stn_localization=f'orbit:{search[0]}', stn_localization_size=search[1], stn_padding_mode='reflection')
        net = birds_network(args.checkpoint, img_size=SIDE, **chosen)
        show_row(name, *(percent(answers(net, x).argmax(1) == labels) for x in sets.values()))


def digits(args: argparse.Namespace) -> None:
    found = [turned_digits(args, seed) for seed in range(args.seeds)]
    show_row('network', *found[0]['as it is'])
    show_row(*['---'] * 3)
    for name in found[0]:
        rows = [list(run[name].values()) for run in found]
        means, spread = torch.tensor(rows).mean(0), torch.tensor(rows).std(0) / len(rows) ** 0.5
        show_row(name, *(f'{m:.2f} ± {s:.2f}' for m, s in zip(means.tolist(), spread.tolist())))


def turned_digits(args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies of a network trained on upright digits, of upright and of turned ones."""
    torch.manual_seed(seed)
    images, labels = load_mnist(args.data)
    if args.held_back:
        train, test = ((images[s], labels[s]) for s in (slice(args.held_back, None), slice(args.held_back)))
    else:
        train, test = (images, labels), load_mnist(args.data, 'test')
    plain = timm.create_model('mnist_cnn', channels=(32, 64))
    fit(plain, *train, epochs=args.epochs)
    x, y = test[0].float() / 255, test[1]
    angles = torch.rand(len(x), generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    sets = {'upright': x, 'any angle': timm_stn.warp(x, rotation(angles), padding_mode='zeros')}
    found = {'as it is': measure(plain, sets, y)}
    for n in args.poses:
        net = timm_stn.wrap(plain, localization=f'orbit:{n}', padding_mode='zeros').eval()
        found[f'orbit:{n}'] = measure(net, sets, y)
    return found


def measure(net: nn.Module, sets: dict[str, Tensor], labels: Tensor) -> dict[str, float]:
    return {name: 100 * float((answers(net.eval(), x).argmax(1) == labels).double().mean()) for name, x in sets.items()}


def fit(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int = 128) -> None:
    """AdamW with a cosine, on digits as they are."""
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images))[:len(images) // batch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(net(images[index].float() / 255), labels[index]).backward()
            optimizer.step()
            schedule.step()


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], **options: Any) -> None:
        own = commands.add_parser(run.__name__)
        own.set_defaults(run=run)
        for name, default in options.items():
            several = isinstance(default, list)
            kind = type(default[0]) if several else str if default in (None, ...) else type(default)
            own.add_argument('--' + name.replace('_', '-'), type=kind, default=None if default is ... else default,
                             required=default is ..., nargs='+' if several else None)

    command(split, data=..., output=...)
    command(find, birds=..., checkpoint=None, count=160, side=192, stage=3, least=0.25, looks=[1, 2])
    command(pairs, birds=..., checkpoint=None, count=160, side=192, stage=3, scale=0.375)
    command(turn, birds=..., checkpoint=None, count=240, poses=[4, 8], pictures=[224, 160])
    command(digits, data=..., held_back=0, seeds=3, epochs=3, poses=[8, 16, 32])
    args = parser.parse_args(None if argv is None else list(argv))
    args.run(args)


if __name__ == '__main__':
    main()
