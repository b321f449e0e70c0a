"""All that the paper's small networks are trained and tested on, most of it made of MNIST's digits on the fly.

| task | what | images | answer |
| --- | --- | --- | --- |
| R, RTS, P, E, T, TC | one distorted digit, see `timm_stn.data.distortions` | 1 channel | 10 classes |
| UPRIGHT, TURNED | one digit as it is, or turned by any angle, see `timm_stn.data.turned` | 28 x 28 | 10 classes |
| ADD | two digits, one in each channel, see `timm_stn.data.addition` | 2 x 42 x 42 | their sum, 19 classes |
| SEQ64, SEQ128 | one to five digits in a row, see `timm_stn.data.sequences` | 3 channels | 5 times 11 classes |
| SVHN64, SVHN128 | house numbers, see `timm_stn.data.svhn`; not made of MNIST | 3 channels | 5 times 11 classes |
| BIRDS | a photograph of a bird, see `timm_stn.data.birds`; not made of MNIST | 3 x 224 x 224 | 200 classes |
| BIRDS-TURNED | the same, turned, see `timm_stn.data.turned` | 3 x 224 x 224 | 200 classes |
| SCATTERED | the same on a large canvas, see `timm_stn.data.scattered` | 3 x 448 x 448 | 200 classes |
| MEGAPIXEL | five digits among marks, see `timm_stn.data.megapixel` | 1500 x 1500 | 10 classes, of three of them |
| VOLUME | an extruded digit, see `timm_stn.data.volumes` | 60 x 60 x 60 voxels | 10 classes |
| SIGNS | a traffic sign of GTSRB, see `timm_stn.data.signs` | 3 x 32 x 32 | 43 classes |
| SCENES | a small one among clutter, see `timm_stn.data.scenes` | 3 x 256 x 256 | 43 classes |
"""
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from timm_stn.data import addition, birds, megapixel, scattered, scenes, sequences, signs, turned, volumes
from timm_stn.data.distortions import DISTORTIONS, as_float
from timm_stn.data.mnist import DATA_VARIABLE, load_mnist

__all__ = ['TASKS', 'Task', 'are_wrong', 'batches_of', 'boxes_of', 'test_set']


SVHN_SPLITS = {'train': ('train', 'extra'), 'test': ('test',)}  # the paper trains on both
AT_ONCE = 2 ** 23  # numbers in a batch of images
Data = str | os.PathLike[str] | None


Make = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Task(NamedTuple):
    """One kind of images and what is asked of them."""
    size: int  # side of the images
    draws: int  # uniform numbers per image
    make: Make
    """(digits (M, 1, 28, 28), classes (M,), index of the digit to begin with (N,), uniform numbers (N, draws)) to
    images (N, channels, size, size), or volumes, in [0, 1], and classes, (N,) or (N, answers). A CUDA graph can
    capture it."""
    channels: int = 1
    classes: int = 10  # of one answer
    answers: int = 1
    dims: int = 2  # 3 of volumes
    load: Callable[[Data, str], tuple[Tensor, Tensor]] = load_mnist
    """(folder with the data, 'train' or 'test') to what images are made of, as bytes, and its classes (M,), or (M, K)
    with what else is known of each. The order is at random, and the last may be held back."""
    augmented: Make | None = None  # as `make`, to train on, where that differs
    boxes: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """(classes, index, uniform numbers) as of `make` to the true boxes (N, 4), or B of each image (N, B, 4): left, top,
    right, bottom, in [-1, 1] from edge to edge of the image; of tasks that know them."""

    @property
    def to_train_on(self) -> Make:
        """`make`, or what differs from it in training."""
        return self.augmented or self.make

    @property
    def elements(self) -> int:
        """Numbers that one image has."""
        return self.channels * int(self.size ** self.dims)

    def at_once(self, most: int, numbers: int = AT_ONCE) -> int:
        """How many images a batch has, at most so many, which together have no more than `numbers` numbers."""
        return max(1, min(most, numbers // self.elements))

    @property
    def outputs(self) -> int:
        """What a network gives: the logits of all answers, one after another."""
        return self.answers * self.classes


def _distorted(kind: str, digits: Tensor, labels: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    size, _, apply = DISTORTIONS[kind]
    return apply(as_float(digits[index]), u, size, digits), labels[index]


def _photos(digits: Tensor, labels: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return as_float(digits[index]), labels[index]


def _crops(photos: Tensor, labels: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return birds.random_crops(as_float(photos[index]), u), labels[index]


def _svhn(size: int) -> Task:
    def load(data: Data, split: str) -> tuple[Tensor, Tensor]:
        from timm_stn.data.svhn import load_svhn  # needs Pillow
        folder = data or os.environ.get(DATA_VARIABLE)
        if not folder:
            raise FileNotFoundError(f'No data folder: pass one as `data`, or name it in {DATA_VARIABLE}. It holds the '
                                    "folders train, extra and test of SVHN, or a folder 'svhn' with them.")
        images, classes = zip(*(load_svhn(folder, part, size) for part in SVHN_SPLITS[split]), strict=True)
        return torch.cat(images), torch.cat(classes)

    return Task(size, 0, _photos, channels=3, classes=sequences.NONE + 1, answers=sequences.LENGTH, load=load)


def _sequences(size: int) -> Task:
    make = partial(sequences.digit_sequences, size=size)
    return Task(size, sequences.DRAWS, make, channels=3, classes=sequences.NONE + 1, answers=sequences.LENGTH)


def _signs(images: Tensor, known: Tensor, index: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return as_float(images[index]), known[index, 0]


TASKS: dict[str, Task] = {
    **{kind: Task(d.size, d.draws, partial(_distorted, kind)) for kind, d in DISTORTIONS.items()},
    'UPRIGHT': Task(28, 0, _photos),
    'TURNED': Task(28, turned.DRAWS, turned.turned),
    'ADD': Task(42, addition.DRAWS, addition.addition, channels=2, classes=19),
    'SEQ64': _sequences(64),
    'SEQ128': _sequences(128),
    'SVHN64': _svhn(64),
    'SVHN128': _svhn(128),
    'BIRDS': Task(birds.SIDE, birds.CROP_DRAWS, _photos, channels=3, classes=200, load=birds.load_birds,
                  augmented=_crops),
    'BIRDS-TURNED': Task(birds.SIDE, turned.CROP_DRAWS, partial(turned.turned, padding_mode='reflection'), channels=3,
                         classes=200, load=birds.load_birds, augmented=turned.turned_crops),
    'SCATTERED': Task(scattered.SIDE, scattered.DRAWS, scattered.scattered, channels=3, classes=200,
                      load=birds.load_birds, augmented=partial(scattered.scattered, crops=True),
                      boxes=scattered.boxes),
    'MEGAPIXEL': Task(megapixel.SIZE, megapixel.DRAWS, megapixel.megapixel_digits, load=megapixel.load_rows,
                      boxes=megapixel.majority_boxes),
    'SIGNS': Task(signs.SIDE, signs.DRAWS, _signs, channels=3, classes=signs.CLASSES, load=signs.load_signs,
                  augmented=signs.augmented_signs, boxes=signs.sign_boxes),
    'SCENES': Task(scenes.CANVAS, scenes.DRAWS, scenes.sign_scenes, channels=3, classes=signs.CLASSES,
                   load=signs.load_signs, boxes=scenes.scene_boxes),
    'VOLUME': Task(60, volumes.DRAWS, volumes.extruded_digits, dims=3),
}


def test_set(
        kind: str,
        data: str | os.PathLike[str] | None = None,
        seed: int = 0,
        batch_size: int = 1000,
        device: torch.device | str = 'cpu',
) -> tuple[Tensor, Tensor]:
    """The evaluation set of a task: one image for each of the 10,000 test digits (or of SVHN's), always the same.

    All test errors of this project use this set with `seed=0`. Clutter, and all other digits, are of the test digits,
    too. The result does not depend on `batch_size`. Training must use another generator.

    Args:
        kind: One of `TASKS`.
        data: MNIST's folder, see `load_mnist`, or SVHN's.
        seed: Seed of all that is random.
        batch_size: Images made at a time; affects only memory.
        device: Where to make them.

    Returns:
        Images (10000, C, S, S) in [0, 1], and classes, (10000,) or (10000, answers).

    Raises:
        ValueError: There is no such task.
    """
    if kind not in TASKS:
        raise ValueError(f'kind must be one of {", ".join(TASKS)}; got {kind!r}.')
    images, classes = zip(*batches_of(kind, *TASKS[kind].load(data, 'test'), seed, batch_size, device), strict=True)
    return torch.cat(images), torch.cat(classes)


def batches_of(
        kind: str,
        digits: Tensor,
        labels: Tensor,
        seed: int = 0,
        batch_size: int = 1000,
        device: torch.device | str = 'cpu',
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same set of other digits (M, 1, 28, 28) and classes (M,), one image for each, batch by batch."""
    task, generator = TASKS[kind], torch.Generator().manual_seed(seed)
    digits, labels = digits.to(device), labels.to(device)
    for index in torch.split(torch.arange(len(digits), device=device), batch_size):
        u = torch.rand(len(index), task.draws, generator=generator)
        yield task.make(digits, labels, index, u.to(device))


def boxes_of(kind: str, labels: Tensor, seed: int = 0, batch_size: int = 1000) -> Iterator[Tensor]:
    """The true boxes, (N, 4) or (N, B, 4), of what `batches_of` gives, batch by batch, on the CPU.

    Raises:
        ValueError: The task knows no boxes.
    """
    task, generator = TASKS[kind], torch.Generator().manual_seed(seed)
    if task.boxes is None:
        known = ', '.join(name for name, each in TASKS.items() if each.boxes)
        raise ValueError(f'kind must be one that has boxes, {known}; got {kind!r}.')
    for index in torch.split(torch.arange(len(labels)), batch_size):
        yield task.boxes(labels.cpu(), index, torch.rand(len(index), task.draws, generator=generator))


def are_wrong(logits: Tensor, classes: Tensor) -> Tensor:
    """Whether any answer is wrong (N,), of the logits (N, outputs) and the classes, (N,) or (N, answers)."""
    classes = classes.reshape(len(classes), -1)
    return (logits.reshape(*classes.shape, -1).argmax(2) != classes).any(1)
