"""A picture of where a network looks in images, from files to drawing, and what it answers."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor

from .draw import Caption, draw_look, heat
from .observe import Look, observe

__all__ = ['best_answers', 'class_names', 'data_config', 'draw', 'picture_of', 'read_images', 'short_name']

FEW = 10  # up to so many classes the best answer is shown alone


def picture_of(model: Any, paths: Sequence[Path], name: str) -> Image.Image:
    """Where the first transformer of a network in eval mode looks in images, and what it answers.

    Raises:
        ValueError: The network takes neither 1 nor 3 channels, or answers with numbers that are not finite.
        OSError: A file is no image.
    """
    config = data_config(model)
    images = read_images(paths, config)
    look = observe(model, images)
    answers = best_answers(look.logits, class_names(model))
    return draw(images, look, [Caption(a, short_name(p.name)) for a, p in zip(answers, paths)], config, name)


def draw(images: Tensor, look: Look, captions: Sequence[Caption], config: dict[str, Any], name: str) -> Image.Image:
    """What the transformer of one stage did with normalised images."""
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
        footer=f'{name}: at stage {look.stage!r} features are moved (drawn: the mean over channels), not the image; '
               'the outline of the look lies over the input.')


def data_config(model: Any) -> dict[str, Any]:
    """How timm prepares images for the model; for 1 channel with the mean of the colours' means."""
    cfg = model.pretrained_cfg
    channels = getattr(model, 'in_chans', None) or cfg['input_size'][0]
    if channels not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, and the model takes {channels}')
    size = getattr(model, '_traits', {}).get('img_size') or cfg['input_size'][1:]
    config = resolve_model_data_config(model, args={'input_size': (channels, *size)})
    if channels == 1:
        config.update({key: (sum(config[key]) / len(config[key]),) for key in ('mean', 'std')})
    return config


def read_images(paths: Sequence[Path], config: dict[str, Any]) -> Tensor:
    """Images as the network takes them."""
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
    """Names and probabilities, best first: three where there are many classes."""
    if not logits.isfinite().all():
        raise ValueError("the network's answers are not finite numbers")
    best = logits.float().softmax(1).topk(3 if logits.shape[1] > FEW else 1)
    rows = zip(best.indices.tolist(), best.values.tolist())
    return [[(names[c] if c < len(names) else str(c), p) for c, p in zip(*row)] for row in rows]


def class_names(model: Any) -> list[str]:
    """Those that the model's cfg has, else ImageNet's where the number of classes says so, else numbers."""
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        return list(names)
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return [info.index_to_description(i).partition(',')[0] for i in range(model.num_classes)]
    return [str(i) for i in range(model.num_classes)]


def short_name(name: str, length: int = 26) -> str:
    """Its middle left out where it is long."""
    return name if len(name) <= length else f'{name[:12]}...{name[-11:]}'
