"""What a network computes for an image."""
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..modules.orbit import Orbit
from ..modules.poses import matrices_of

__all__ = ['glance', 'multiply_adds']


def multiply_adds(model: Any, size: tuple[int, int, int]) -> float:
    """Of one image (C, H, W), in billions: all streams, localization, sampling. Leaves the model in eval mode.

    torch's FlopCounterMode counts convolutions and products; every value that is sampled or shrunk adds eight.
    """
    image, values = torch.zeros(1, *size), 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    if hasattr(model, 'look'):
        localization = getattr(model.stn, 'localization', None)
        poses = len(matrices_of(localization.poses, image)) if isinstance(localization, Orbit) else 0
        with torch.no_grad():
            seen = model.look(image)[0].numel()
        values = seen * (1 + poses) + size[0] * glance(model) ** 2 * max(poses, 1)
    return (counter.get_total_flops() / 2 + 8 * values) / 1e9


def glance(model: Any) -> int:
    """Side of the image whose features say where to look."""
    args = model._model_args
    side = args['stn_localization_size'] or args['stn_size'] or model.pretrained_cfg['input_size'][1:]
    return side if isinstance(side, int) else side[0]
