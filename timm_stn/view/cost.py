"""What a network computes for an image."""
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['glance', 'multiply_adds']


def multiply_adds(model: Any, size: tuple[int, int, int]) -> float:
    """Of one image (C, H, W), in billions: all streams, localization, sampling. Leaves the model in eval mode.

    torch's FlopCounterMode counts convolutions and products; every value that is sampled or shrunk adds eight.
    """
    image, values = torch.zeros(1, *size), 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    if hasattr(model, 'look'):
        with torch.no_grad():
            values = model.look(image)[0].numel() + size[0] * glance(model) ** 2
    return (counter.get_total_flops() / 2 + 8 * values) / 1e9


def glance(model: Any) -> int:
    """Side of the image whose features say where to look."""
    args = model._model_args
    side = args['stn_localization_size'] or args['stn_size']
    return side if isinstance(side, int) else side[0]
