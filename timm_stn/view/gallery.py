"""Where several networks look in many image files: read and looked at in batches, so that few are in memory at once.

What is kept of an image is small: pictures with 8 bits a channel, and numbers.
"""
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from .._progress import progress
from .boxes import BEYOND, are_beyond, boxes_of_file, to_input
from .classes import Classes
from .dependence import Witness, witnessing
from .draw import Caption
from .images import BadImage, open_image
from .lattice import corners
from .masks import mask_as_seen, mask_in_input, mask_of_file, read_mask
from .observe import Look, observe
from .placing import placing
from .sheet import captions, data_config, denormalized, some, strip_of
from .tiles import picture_of, tinted

__all__ = ['Files', 'Sight', 'Trouble', 'Truths', 'Viewed', 'sights']

BATCH, PIXELS = 16, 2 ** 20  # images, and pixels of the input, that are looked at at once


@dataclass
class Viewed:
    """A network whose looks are shown, in eval mode on its device.

    ``way`` is how a plain network looks, of which nothing was trained to; then the answer is that of the plain one.
    """
    model: Any
    name: str
    classes: Classes
    stage: int | str | None = None
    way: str = ''
    config: dict[str, Any] = field(init=False)
    witness: Witness = field(init=False, default_factory=Witness)

    def __post_init__(self) -> None:
        self.config = data_config(self.model)

    @property
    def batch(self) -> int:
        height, width = self.config['input_size'][1:]
        return max(1, min(BATCH, PIXELS // (height * width)))

    @torch.inference_mode()
    def look(self, pixels: Tensor) -> Look:
        images = pixels.to(next(self.model.parameters()).device)
        answer = self.model.backbone if self.way else None
        with witnessing(witness=self.witness):
            return observe(self.model, images, self.stage, answer)


class Files(NamedTuple):
    """Image files, and the name of the folder that stands for the class of each; ``''`` if it has none."""
    paths: Sequence[Path]
    labels: Sequence[str]


class Truths(NamedTuple):
    """True boxes by the files' names, and true masks: `read_boxes`, `find_masks`."""
    boxes: Mapping[str, Sequence[tuple[float, float, float, float]]] = {}
    masks: Mapping[str, Path] = {}

    def asked(self) -> set[str]:
        """The kinds of truths that there are."""
        return {kind for kind, held in self._asdict().items() if held}


@dataclass
class Trouble:
    """What to tell of files: those that cannot be read; what of others is not shown as it is, with their names; which
    kinds of truths there were for some, ``boxes`` and ``masks``."""
    bad: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        return [f'{note}: {some(names, ", ")}' for note, names in self.notes.items()]


class Sight(NamedTuple):
    """What one network made of one image.

    ``seen`` are T pictures in a row, ``frames`` the glimpse whose colour frames each, ``titles`` those of the columns.
    ``lattice`` is (G, K, 2) as in :class:`Look`, ``boxes`` (B, 4) are true ones, both in coordinates of the input;
    ``place`` (G, 4, 2) are the corners of where it looked, in pixels of the file.
    """
    image: Image.Image
    seen: Sequence[Image.Image]
    frames: Sequence[int | None]
    titles: Sequence[str]
    told: str
    stage: int | str
    theta: Tensor
    lattice: Tensor
    place: Tensor
    boxes: Tensor
    caption: Caption
    truth: int | None


class Opened(NamedTuple):
    """A file that was read: each network's input (C, H, W), the file's (width, height), true boxes in its pixels, and
    the true mask."""
    pixels: Sequence[Tensor]
    size: tuple[int, int]
    boxes: Tensor
    mask: Image.Image | None


def sights(
        viewed: Sequence[Viewed],
        files: Files,
        order: Iterable[int],
        count: int,
        truths: Truths,
        trouble: Trouble,
) -> Iterator[tuple[int, list[Sight]]]:
    """The index of each image that can be read, and what each network made of it, by ones.

    Args:
        viewed: The networks.
        files: The image files.
        order: Indices of the files in the order to read them.
        count: So many images at most.
        truths: Boxes and masks to show.
        trouble: Takes what there is to tell of the files.

    Raises:
        BadImage: No file can be read.
        ValueError: A network's logits are not finite.
    """
    most = min(v.batch for v in viewed)
    batch: dict[int, Opened] = {}
    found = 0
    for i, opened in _opened(viewed, files.paths, order, count, truths, trouble):
        batch[i] = opened
        found += 1
        if len(batch) == most or found == count:
            yield from _looked(viewed, files, dict(sorted(batch.items())))
            batch = {}
    if batch:
        yield from _looked(viewed, files, dict(sorted(batch.items())))
    if not found:
        raise BadImage(f'no image can be read; {some(trouble.bad)}')


def _mode(viewed: Viewed) -> str:
    return 'L' if viewed.config['input_size'][0] == 1 else 'RGB'


def _opened(
        viewed: Sequence[Viewed],
        paths: Sequence[Path],
        order: Iterable[int],
        count: int,
        truths: Truths,
        trouble: Trouble,
) -> Iterator[tuple[int, Opened]]:
    """Those that can be read, ``count`` at most."""
    order = list(order)
    transforms, modes = [create_transform(**v.config) for v in viewed], [_mode(v) for v in viewed]
    for i in progress(order, 'looking', min(len(order), count), unit='image'):
        path = paths[i]
        try:
            read = {mode: open_image(path, mode) for mode in dict.fromkeys(modes)}
            pixels = [_transformed(read[mode][0], transform) for mode, transform in zip(modes, transforms)]
        except BadImage as error:
            trouble.bad.append(f'{path}: {error}')
            continue
        for note in dict.fromkeys(note for _, notes in read.values() for note in notes):
            trouble.notes.setdefault(note, []).append(path.name)
        size = read[modes[0]][0].size
        boxes = boxes_of_file(path, truths.boxes)
        if are_beyond(boxes, size):
            trouble.notes.setdefault(BEYOND, []).append(path.name)
        mask = _mask(path, size, truths, trouble)
        trouble.met |= {kind for kind, there in (('boxes', len(boxes)), ('masks', mask is not None)) if there}
        yield i, Opened(pixels, size, torch.tensor(boxes).reshape(-1, 4), mask)
        count -= 1
        if not count:
            return


def _transformed(picture: Image.Image, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """What a network takes of a picture.

    Raises:
        BadImage: Its transform makes nothing of it, as of one that is a pixel wide.
    """
    try:
        return transform(picture)
    except ValueError as error:
        raise BadImage(f'{picture.width} x {picture.height} pixels: {error}') from error


def _mask(path: Path, size: tuple[int, int], truths: Truths, trouble: Trouble) -> Image.Image | None:
    file = mask_of_file(path, truths.masks)
    try:
        return None if file is None else read_mask(file, size)
    except BadImage as error:
        trouble.notes.setdefault('masks that are not shown', []).append(f'{file}: {error}')
        return None


def _looked(
        viewed: Sequence[Viewed],
        files: Files,
        batch: Mapping[int, Opened],
) -> Iterator[tuple[int, list[Sight]]]:
    opened = list(batch.values())
    rows = [
        _sights_of(v, torch.stack([one.pixels[k] for one in opened]), [files.paths[i] for i in batch],
                   [v.classes.of_folder.get(files.labels[i]) for i in batch], opened)
        for k, v in enumerate(viewed)]
    for i, *row in zip(batch, *rows, strict=True):
        yield i, row


def _sights_of(
        viewed: Viewed,
        pixels: Tensor,
        paths: Sequence[Path],
        truths: Sequence[int | None],
        opened: Sequence[Opened],
) -> Iterator[Sight]:
    look = viewed.look(pixels)
    strip = strip_of(look, viewed.config)
    said = captions(look.logits, viewed.classes, paths, truths)
    lattices, thetas = look.lattice.float().cpu(), look.theta.cpu()
    for i, one in enumerate(opened):
        image = picture_of(denormalized(pixels[i], viewed.config))
        seen = [picture_of(picture) for picture in strip.seen[i]]
        if one.mask is not None:
            mask = mask_in_input(one.mask, viewed.config)
            image = tinted(image, mask)
            seen = [
                picture if g is None else tinted(picture, mask_as_seen(mask, lattices[i, g], picture.size[::-1]))
                for picture, g in zip(seen, strip.frames)]
        yield Sight(
            image, seen, list(strip.frames), strip.titles, strip.told, look.stage, thetas[i], lattices[i],
            placing(one.size, viewed.config).to_file(corners(lattices[i])),
            to_input(one.boxes, one.size, viewed.config), said[i], truths[i])
