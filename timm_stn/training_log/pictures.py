"""Pictures of the same eight images while a network trains: which they are, when they are drawn, and drawing them."""
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor

from ..modules.evaluation import as_in_evaluation
from ..view.classes import Classes, classes_of
from ..view.history import picture_place
from ..view.images import BadImage, find_images, folder_name, in_turn, natural
from ..view.observe import observe
from ..view.sheet import captions, draw, read_images
from ..whole_file import write_whole

__all__ = ['Sitters', 'due', 'find_sitters', 'options_of', 'save_picture']

COUNT = 8
GROWTH = 1.15  # of the steps at which pictures are drawn: some 60 of 10,000 lines
LAYOUT = dict(tile=96, answer=240, reach=1.25)  # the same in all pictures
VALIDATION = ('val', 'valid', 'validation', 'eval', 'evaluation')  # as timm's scripts look for another name of it
QUALITY = 92


class Sitters(NamedTuple):
    """The images that are drawn: inputs (N, C, H, W), their names, and their classes, None where not known."""
    pixels: Tensor
    names: list[str]
    truths: list[int | None]
    classes: Classes
    config: dict[str, Any]

    def draw(self, network: Any) -> Image.Image:
        """Where the network's first transformer looks now. Its state, and random numbers, are left as they are."""
        like = next(network.parameters())
        images = self.pixels.to(like.device, like.dtype)
        gpus = [like.device] if like.device.type == 'cuda' else []
        with torch.random.fork_rng(gpus), torch.autocast(like.device.type, enabled=False):
            look = as_in_evaluation(network, images, partial(observe, network, images))
        said = captions(look.logits, self.classes, [Path(name) for name in self.names], self.truths, count=1)
        return draw(images, look, said, self.config, network.pretrained_cfg['architecture'], **LAYOUT)


def due(last: int, step: int) -> bool:
    """Whether a picture is to be drawn after this step, if the one before was drawn after that of ``last``."""
    return step >= max(last + 1, math.ceil(GROWTH * last))


def options_of(folder: Path) -> dict[str, Any]:
    """The options of train.py in the folder of its run; {} if there are none."""
    try:
        options = yaml.safe_load((folder / 'args.yaml').read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return options if isinstance(options, dict) else {}


def find_sitters(network: Any, options: dict[str, Any], batch: Tensor) -> tuple[Sitters, str | None]:
    """The images to draw, and a line on where they are from, if that is not the validation folder.

    Eight images of the validation folder, one of each class in turn. Where there is none, the first of a batch.

    Args:
        network: The network.
        options: Those of train.py.
        batch: (N, C, H, W), of the training.

    Raises:
        ValueError: Images have neither 1 nor 3 channels.
    """
    config = _config(network, options, batch)
    folder = _validation_folder(options)
    why = 'there is no folder of validation images' if folder is None else f'there are no images in {folder}'
    if folder is not None:
        files = list(find_images(folder, []))
        try:
            return _of_files(network, options, files, config), None
        except BadImage as error:
            why = f'{error}' if files else why
    count = min(COUNT, len(batch))
    sitters = Sitters(batch[:count].detach().clone(), [f'image {i + 1}' for i in range(count)], [None] * count,
                      classes_of(network), config)
    return sitters, f'the pictures are of the first {count} images of the training, as {why}'


def save_picture(folder: Path, step: int, picture: Image.Image) -> None:
    """Write the picture of a step to the log in a folder."""
    write_whole(picture_place(folder, step), partial(picture.save, format='JPEG', quality=QUALITY, subsampling=0))


def _config(network: Any, options: dict[str, Any], batch: Tensor) -> dict[str, Any]:
    """How train.py reads images, as timm's data config, of the size that the network is given."""
    channels = batch.shape[1]
    if channels not in (1, 3):
        raise ValueError(f'images have 1 or 3 channels, and these have {channels}')
    config: dict[str, Any] = resolve_data_config(options, model=network)
    config['input_size'] = (channels, *config['input_size'][1:])
    for key in ('mean', 'std'):  # as timm's loaders do
        if len(config[key]) not in (1, channels):
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    return config


def _validation_folder(options: dict[str, Any]) -> Path | None:
    """Where timm's data sets of folders have their validation images."""
    root, split = options.get('data_dir') or options.get('data'), options.get('val_split') or 'validation'
    if not root or options.get('dataset') not in (None, '', 'folder'):
        return None
    names = [split, *(VALIDATION if split in VALIDATION else ())]
    return next((path for path in (Path(root) / name for name in names) if path.is_dir()), None)


def _of_files(network: Any, options: dict[str, Any], files: Sequence[Path], config: dict[str, Any]) -> Sitters:
    """One image of each class in turn.

    Raises:
        BadImage: None can be read.
    """
    labels = [folder_name(path) for path in files]
    pictures = read_images(files, config, in_turn(labels, COUNT), COUNT)
    known = not options.get('class_map')
    classes = classes_of(network, sorted(set(labels), key=natural) if known else ())
    chosen = [(files[i].name, classes.of_folder.get(labels[i])) for i in pictures.chosen]
    return Sitters(pictures.pixels, [name for name, _ in chosen], [truth for _, truth in chosen], classes, config)
