"""Draws where a network looks in image files, and its answers."""
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from .._progress import progress
from ..geometry.layout import size_that_enters
from .classes import Classes, classes_of
from .draw import Caption, draw_look, heat
from .images import BadImage, folder_name, natural, open_image
from .observe import Look, observe

__all__ = [
    'TILE', 'Pictures', 'Strip', 'best_answers', 'captions', 'data_config', 'denormalized', 'draw', 'read_images',
    'sheet_of', 'short_name', 'some', 'strip_of']

TILE = 176  # side of a tile, in units of 2 pixels
FEW = 10  # with at most this many classes, only the best answer is shown


class Pictures(NamedTuple):
    """Images that were read: inputs (N, C, H, W), and the index of each among the paths.

    ``bad`` has a line for each file that could not be read, ``notes`` for what is not shown as it is in its file.
    """
    pixels: Tensor
    chosen: list[int]
    bad: list[str]
    notes: list[str]


def sheet_of(
        model: Any,
        paths: Sequence[Path],
        name: str,
        count: int | None = None,
) -> tuple[Image.Image, list[str]]:
    """A picture of where the first transformer of a network (in eval mode) looks in image files, with the answers.

    Args:
        model: The network.
        paths: The files.
        name: Name of the network, for the picture.
        count: Draw so many, the first that can be read. Default: all.

    Returns:
        The picture, and lines on files that were skipped or are not shown as they are.

    Raises:
        ValueError: The network takes neither 1 nor 3 channels, its logits are not finite, no file is an image that can
            be read, or without ``count`` one is not.
    """
    config = data_config(model)
    pictures = read_images(paths, config, count=count)
    if count is None and pictures.bad:
        raise BadImage(some(pictures.bad))
    look = observe(model, pictures.pixels)
    files = [paths[i] for i in pictures.chosen]
    folders = [folder_name(path) for path in files]
    classes = classes_of(model, sorted(set(folders), key=natural))
    truths = [classes.of_folder.get(folder) for folder in folders]
    picture = draw(pictures.pixels, look, captions(look.logits, classes, files, truths), config, name)
    return picture, pictures.bad + pictures.notes


def draw(
        images: Tensor,
        look: Look,
        captions: Sequence[Caption],
        config: dict[str, Any],
        name: str,
        **layout: Any,
) -> Image.Image:
    """A picture of the look of one stage's transformer at normalised images; ``layout`` goes to `draw_look`."""
    strip = strip_of(look, config)
    return draw_look(
        denormalized(images, config), strip.seen, look.outlines, captions, strip.titles, strip.frames,
        footer=f'{name}: {strip.told}', **{'tile': TILE, **layout})


class Strip(NamedTuple):
    """How looks are drawn: ``seen`` (N, T, C, h, w) in [0, 1], T pictures in a row, and for each of them the glimpse
    whose colour frames it, or None. ``titles`` are those of the input, the pictures and the answer; ``told`` explains.
    """
    seen: Tensor
    titles: Sequence[str]
    frames: Sequence[int | None]
    told: str


def strip_of(look: Look, config: dict[str, Any]) -> Strip:
    """How the looks of a network with this data config are drawn."""
    glimpses = look.lattice.shape[1]
    if look.before is None:
        many = [f'glimpse {g + 1}' for g in range(glimpses)] if glimpses > 1 else ['what it saw']
        return Strip(
            denormalized(look.seen, config), ('where it looked', *many, 'answer'), range(glimpses),
            'the outline is where it looked, the dot the top left corner of what it saw.')
    return Strip(
        heat(torch.stack((look.before, look.seen), 2).flatten(1, 2)),
        ('where it looked', *['features before', 'after'] * glimpses, 'answer'),
        [g if after else None for g in range(glimpses) for after in (False, True)],
        f'at stage {look.stage!r} features are warped (drawn: the mean over channels), not the image; the outline is '
        'drawn on the input.')


def data_config(model: Any) -> dict[str, Any]:
    """timm's data config of the model; for 1 channel, mean and std are averaged over the colours."""
    channels, *size = size_that_enters(model)
    if channels not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, and the model takes {channels}')
    config = resolve_model_data_config(model, args={'input_size': (channels, *size)})
    if channels == 1:
        config.update({key: (sum(config[key]) / len(config[key]),) for key in ('mean', 'std')})
    return config


def read_images(
        paths: Sequence[Path],
        config: dict[str, Any],
        order: Iterable[int] | None = None,
        count: int | None = None,
) -> Pictures:
    """Read images and transform them to the network's input. Files that cannot be read are skipped.

    Args:
        paths: The files.
        config: timm's data config.
        order: Indices of ``paths`` in the order to read them. Default: all, as they are.
        count: Read so many. Default: all.

    Raises:
        BadImage: None can be read.
    """
    transform = create_transform(**config)
    mode = 'L' if config['input_size'][0] == 1 else 'RGB'
    pixels: dict[int, Tensor] = {}
    bad: list[str] = []
    notes: dict[str, list[str]] = {}
    for i in progress(list(range(len(paths)) if order is None else order), 'reading', unit='image'):
        if len(pixels) == count:
            break
        try:
            picture, said = open_image(paths[i], mode)
        except BadImage as error:
            bad.append(f'{paths[i]}: {error}')
            continue
        pixels[i] = transform(picture)
        for note in said:
            notes.setdefault(note, []).append(paths[i].name)
    if not pixels:
        raise BadImage(f'no image can be read; {some(bad)}')
    chosen = sorted(pixels)
    lines = [f'{note}: {some(names, ", ")}' for note, names in notes.items()]
    return Pictures(torch.stack([pixels[i] for i in chosen]), chosen, bad, lines)


def some(lines: Sequence[str], between: str = '; ', most: int = 5) -> str:
    """The first lines in one, and how many more there are."""
    more = [f'{len(lines) - most} more'] if len(lines) > most else []
    return between.join([*lines[:most], *more])


def denormalized(x: Tensor, config: dict[str, Any]) -> Tensor:
    """Pixels in [0, 1] of normalised images (..., C, H, W)."""
    mean, std = (x.new_tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    return (x * std + mean).clamp(0, 1)


def best_answers(logits: Tensor, names: Sequence[str], count: int | None = None) -> list[list[tuple[str, float]]]:
    """Names and probabilities of each image's ``count`` best answers, best first; by default 3 of many, else 1."""
    if not logits.isfinite().all():
        raise ValueError("the network's logits are not finite numbers")
    count = (3 if logits.shape[1] > FEW else 1) if count is None else min(count, logits.shape[1])
    best = logits.float().softmax(1).topk(count)
    rows = zip(best.indices.tolist(), best.values.tolist())
    return [[(names[c] if c < len(names) else str(c), p) for c, p in zip(*row)] for row in rows]


def captions(
        logits: Tensor,
        classes: Classes,
        paths: Sequence[Path],
        truths: Sequence[int | None],
        count: int | None = None,
) -> list[Caption]:
    """What is said of each image: the best answers, the file, and whether they are right.

    Args:
        logits: (N, classes).
        classes: Names of the classes.
        paths: The N files.
        truths: Their classes; None where it is not known.
        count: Of answers, see `best_answers`.

    Raises:
        ValueError: A logit is not a finite number.
    """
    best = logits.amax(1)
    right = [None if c is None else bool(logits[i, c] == best[i]) for i, c in enumerate(truths)]
    return [
        Caption(answers, short_name(path.name), ok, f'is {classes.names[c]}' if c is not None and not ok else '')
        for answers, path, ok, c in zip(best_answers(logits, classes.names, count), paths, right, truths)]


def short_name(name: str, length: int = 26) -> str:
    """The name, with its middle cut out if it is longer than ``length``."""
    return name if len(name) <= length else f'{name[:12]}...{name[-11:]}'
