"""Draws where a network looks in image files, and its answers."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor

from ..geometry.layout import size_that_enters
from .draw import Caption, draw_look, heat
from .observe import Look, observe

__all__ = ['best_answers', 'class_names', 'data_config', 'draw', 'sheet_of', 'read_images', 'short_name']

FEW = 10  # with at most this many classes, only the best answer is shown


def sheet_of(model: Any, paths: Sequence[Path], name: str) -> Image.Image:
    """A picture of where the first transformer of a network (in eval mode) looks in image files, with the answers.

    Raises:
        ValueError: The network takes neither 1 nor 3 channels, or its logits are not finite.
        OSError: A file is not an image.
    """
    config = data_config(model)
    images = read_images(paths, config)
    look = observe(model, images)
    answers = best_answers(look.logits, class_names(model))
    return draw(images, look, [Caption(a, short_name(p.name)) for a, p in zip(answers, paths)], config, name)


def draw(images: Tensor, look: Look, captions: Sequence[Caption], config: dict[str, Any], name: str) -> Image.Image:
    """A picture of the look of one stage's transformer at normalised images."""
    glimpses = look.outlines.shape[1]
    shown = _denormalize(images, config)
    if look.before is None:
        many = [f'glimpse {g + 1}' for g in range(glimpses)] if glimpses > 1 else ['what it saw']
        return draw_look(
            shown, _denormalize(look.seen, config), look.outlines, captions, ('where it looked', *many, 'answer'),
            footer=f'{name}: the outline is where it looked, the dot the top left corner of what it saw.', tile=176)
    maps = heat(torch.stack((look.before, look.seen), 2).flatten(1, 2))
    frames = [g if after else None for g in range(glimpses) for after in (False, True)]
    titles = ('where it looked', *['features before', 'after'] * glimpses, 'answer')
    return draw_look(
        shown, maps, look.outlines, captions, titles, frames, tile=176,
        footer=f'{name}: at stage {look.stage!r} features are warped (drawn: the mean over channels), not the image; '
               'the outline is drawn on the input.')


def data_config(model: Any) -> dict[str, Any]:
    """timm's data config of the model; for 1 channel, mean and std are averaged over the colours."""
    channels, *size = size_that_enters(model)
    if channels not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, and the model takes {channels}')
    config = resolve_model_data_config(model, args={'input_size': (channels, *size)})
    if channels == 1:
        config.update({key: (sum(config[key]) / len(config[key]),) for key in ('mean', 'std')})
    return config


def read_images(paths: Sequence[Path], config: dict[str, Any]) -> Tensor:
    """Read images and transform them to the network's input (N, C, H, W)."""
    transform = create_transform(**config)
    mode = 'L' if config['input_size'][0] == 1 else 'RGB'

    def read(path: Path) -> Tensor:
        with Image.open(path) as image:
            return transform(image.convert(mode))

    return torch.stack([read(path) for path in paths])


def _denormalize(x: Tensor, config: dict[str, Any]) -> Tensor:
    mean, std = (x.new_tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    return (x * std + mean).clamp(0, 1)


def best_answers(logits: Tensor, names: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Names and probabilities of each image's best answers, best first: three for many classes, else one."""
    if not logits.isfinite().all():
        raise ValueError("the network's logits are not finite numbers")
    best = logits.float().softmax(1).topk(3 if logits.shape[1] > FEW else 1)
    rows = zip(best.indices.tolist(), best.values.tolist())
    return [[(names[c] if c < len(names) else str(c), p) for c, p in zip(*row)] for row in rows]


def class_names(model: Any) -> list[str]:
    """Class names from the model's cfg; else ImageNet's if the number of classes matches; else numbers."""
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        return list(names)
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return [info.index_to_description(i).partition(',')[0] for i in range(model.num_classes)]
    return [str(i) for i in range(model.num_classes)]


def short_name(name: str, length: int = 26) -> str:
    """The name, with its middle cut out if it is longer than ``length``."""
    return name if len(name) <= length else f'{name[:12]}...{name[-11:]}'
