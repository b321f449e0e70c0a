#!/usr/bin/env python
"""Measure the accuracy lost by re-encoding images for a pack of gpu.py.

    python scripts/reproduce/measure_pack.py signs --data DIR    # packed: a plain network, trained and tested on both
    python scripts/reproduce/measure_pack.py birds --data DIR    # not packed: the card's network on re-encoded images

DIR has `gtsrb32/` and `cub200-2010/`, as for gpu.py. Signs take half an hour on two cores, birds a quarter.
"""
import argparse
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import gpu_pack
import timm
import torch
from measure_learning import members, pictures
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F

import timm_stn  # noqa: F401

FORMATS = (None, ('JPEG', 35), ('WEBP', 60), ('WEBP', 70), ('AVIF', 60))  # and quality


def train(images: Tensor, labels: Tensor, seed: int, epochs: int = 5) -> nn.Module:
    """Two convolutions and a classifier."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * 64, 43))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(images) // 128))
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(128)[:len(images) // 128]:
            loss = F.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    answers = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return 100 * float((answers == labels).float().mean())


def signs(data: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gpu_pack.pack(gpu_pack.Sources(data), folder, ['signs'])
        print(f'packed: {gpu_pack.size(folder / "signs") / 2 ** 20:.1f} MiB')
        gpu_pack.unpack_signs(folder, folder / 'unpacked', 'signs')
        found = {}
        for kind, place in (('original', data / 'gtsrb32'), ('packed', folder / 'unpacked')):
            paths = {split: place / f'{split}.tar' for split in ('train', 'test')}
            found[kind] = {split: pictures(path, 32, [*members(path).values()]) for split, path in paths.items()}
    for seed in range(3):
        for kind, sets in found.items():
            model = train(*sets['train'], seed)
            tested = {other: round(accuracy(model, *found[other]['test']), 2) for other in found}
            print(f'seed {seed}, trained on {kind}: {tested}', flush=True)


def birds(data: Path) -> None:
    model = timm.create_model('stn_tf_efficientnet_lite0_cub2010', pretrained=True).eval()
    transform = create_transform(**{**resolve_data_config({}, model=model), 'crop_pct': 0.875})
    path = data / 'cub200-2010' / 'test.tar'
    names = [(name, label) for label, names in enumerate(members(path).values()) for name in names]
    labels = torch.tensor([label for _, label in names])
    with tarfile.open(path) as tar:
        contents = [tar.extractfile(name).read() for name, _ in names]  # type: ignore[union-attr]
    for form in FORMATS:
        images, weight = [], 0
        for content in contents:
            image = Image.open(BytesIO(content)).convert('RGB')
            if form:
                file = BytesIO()
                image.save(file, form[0], quality=form[1], **FEWER[form[0]])
                content, image = file.getvalue(), Image.open(file).convert('RGB')
            weight += len(content)
            images.append(transform(image))
        print(f'{form or "original"}: {accuracy(model, torch.stack(images), labels):.1f} %, '
              f'{weight / len(contents) * 6033 / 2 ** 20:.1f} MiB for all 6,033', flush=True)


FEWER = {'JPEG': dict(optimize=True, progressive=True), 'WEBP': dict(method=6), 'AVIF': {}}  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('signs', 'birds'))
    parser.add_argument('--data', type=Path, required=True, metavar='DIR')
    args = parser.parse_args()
    {'signs': signs, 'birds': birds}[args.what](args.data)


if __name__ == '__main__':
    main()
