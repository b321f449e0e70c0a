"""A forward pass without side effects, to inspect a network's output."""
from typing import Any

import torch
from torch import nn

__all__ = ['trial_forward']

LAST = ('last_theta', 'last_features')  # of spatial transformers and localization networks


def trial_forward(backbone: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """The output for one zero image in eval mode; restores modes and recorded values."""
    modes = {m: m.training for m in backbone.modules()}
    kept = [(m, name, vars(m)[name]) for m in modes for name in LAST if name in vars(m)]
    transformers: list[Any] = [m for m, name, _ in kept if name == 'last_theta']
    like = next(backbone.parameters())
    backbone.eval()
    for transformer in transformers:
        transformer.witness = None  # who would take the zeros for an image
    try:
        with torch.no_grad():
            return backbone(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for transformer in transformers:
            del transformer.witness
        for module, name, value in kept:
            setattr(module, name, value)
