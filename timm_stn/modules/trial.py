"""A forward pass without side effects, to inspect a network's output."""
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

__all__ = ['LAST', 'trial_forward']

LAST = ('last_theta', 'last_features')  # of spatial transformers and localization networks


def trial_forward(backbone: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """The output for one zero image in eval mode; restores modes and recorded values.

    If any of the network is on the meta device, all of it is, for the time being.
    """
    modes = {m: m.training for m in backbone.modules()}
    kept = [(m, name, vars(m)[name]) for m in modes for name in LAST if name in vars(m)]
    transformers: list[Any] = [m for m, name, _ in kept if name == 'last_theta']
    like = next(backbone.parameters())
    tensors = dict([*backbone.named_parameters(), *backbone.named_buffers()])
    nowhere = any(tensor.is_meta for tensor in tensors.values())
    image = torch.zeros(1, *input_size, device='meta' if nowhere else like.device, dtype=like.dtype)
    backbone.eval()
    for transformer in transformers:
        transformer.witness = None  # who would take the zeros for an image
    try:
        with torch.no_grad():
            if nowhere:
                return functional_call(backbone, {name: tensor.to('meta') for name, tensor in tensors.items()}, image)
            return backbone(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for transformer in transformers:
            del transformer.witness
        for module, name, value in kept:
            setattr(module, name, value)
