"""Caltech-UCSD Birds 200 (the 2010 edition) as two tensors per split, and its training crops."""
import os
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_dataset
from torch import Tensor

from timm_stn.data.distortions import between
from timm_stn.data.mnist import DATA_VARIABLE
from timm_stn.geometry.sampler import sample
from timm_stn.geometry.transforms import matrix_grid

__all__ = ['CROP_DRAWS', 'SIDE', 'bird_names', 'crops', 'load_birds', 'random_crops']

SIDE = 224  # pixels of the photographs
CROP_DRAWS = 5
CLASSES = 200
LEAST, ASPECT = 0.35, 4 / 3  # of random crops: least share of the area, largest ratio of the sides
SOURCE = ('Caltech-UCSD Birds 200 (2010), http://www.vision.caltech.edu/datasets/cub_200_2011/ has its successor: '
          'train.tar and test.tar, or folders train and test, with a folder of images for each class')


def load_birds(data: str | os.PathLike[str] | None = None, split: str = 'train') -> tuple[Tensor, Tensor]:
    """Photographs as uint8 (N, 3, 224, 224), and their classes as int64 (N,), in the order of names of the classes.

    Training images come in an order that a fixed seed has drawn, so that the last may be held back.

    Args:
        data: Folder with the folders `train` and `test`, of a folder of images per class, or with tars of these; or
            with a folder `cub200-2010` that has them. Default: the folder in the environment variable `TIMM_STN_DATA`.
        split: 'train' or 'test'.

    Raises:
        FileNotFoundError: There are no such images; the message says what to put where.
        ValueError: An unknown split; other than 200 classes.
    """
    if split not in ('train', 'test'):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    source = _find(data, split)
    images = create_dataset('', root=str(source))
    order = torch.arange(len(images))
    if split == 'train':
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    found = torch.empty(len(images), 3, SIDE, SIDE, dtype=torch.uint8)
    classes = torch.empty(len(images), dtype=torch.int64)
    for row, i in enumerate(order.tolist()):
        image, classes[row] = images[i]
        found[row] = _square(image)
    if (known := len({*classes.tolist()})) != CLASSES:
        raise ValueError(f'{source}: images of {CLASSES} classes are needed, and there are {known}.')
    return found, classes


def bird_names(data: str | os.PathLike[str] | None = None) -> list[str]:
    """Names of the classes, as the test folders have them: `Black footed Albatross` of 001.Black_footed_Albatross.

    Args:
        data: As of `load_birds`.

    Raises:
        FileNotFoundError: There are no such images.
    """
    images = create_dataset('', root=str(_find(data, 'test')))
    folders = {images.reader[i][1]: Path(images.filename(i)).parent.name for i in range(len(images))}
    return [folders[label].rpartition('.')[2].replace('_', ' ') for label in sorted(folders)]


def random_crops(images: Tensor, u: Tensor) -> Tensor:
    """Crops of images (N, C, H, W), floating point, as large as these: those of `crops`."""
    return sample(images, matrix_grid(crops(u), images.shape[2:]), padding_mode='border')


def crops(u: Tensor, least: float = LEAST) -> Tensor:
    """Matrices (N, 2, 3) of random crops, 35 to 100 % of the area, mirrored half the time.

    From output to source coordinates, xy in [-1, 1], half-pixel centres. The sides differ by a factor of 4/3 at most,
    before the crop is cut at the image's edge.

    Args:
        u: (N, 5), uniform in [0, 1).
        least: The smallest share of the area, in place of 35 %.
    """
    area = between(u[:, 0], least, 1.0).sqrt()
    aspect = ASPECT ** between(u[:, 1], -0.5, 0.5)
    half = torch.stack((area * aspect, area / aspect), dim=1).clamp(max=1)  # (N, xy)
    center = between(u[:, 2:4], -1, 1) * (1 - half)
    mirror = (u[:, 4] < 0.5).to(u.dtype) * 2 - 1
    zero = torch.zeros_like(mirror)
    theta = torch.stack((half[:, 0] * mirror, zero, center[:, 0], zero, half[:, 1], center[:, 1]), dim=1)
    return theta.reshape(-1, 2, 3)


def _square(image: Image.Image) -> Tensor:
    """Pixels (3, 224, 224)."""
    rgb = image.convert('RGB')
    rgb = rgb if rgb.size == (SIDE, SIDE) else rgb.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3).permute(2, 0, 1)


def _find(data: str | os.PathLike[str] | None, split: str) -> Path:
    folder = data or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise FileNotFoundError(
            f'No data folder: pass one as `data`, or name it in {DATA_VARIABLE}. It holds {SOURCE}.')
    for place in (Path(folder), Path(folder) / 'cub200-2010'):
        for found in (place / split, place / f'{split}.tar'):
            if found.exists():
                return found
    raise FileNotFoundError(f'There is no {split} or {split}.tar in {folder}, nor in cub200-2010 below it. It needs '
                            f'{SOURCE}.')
