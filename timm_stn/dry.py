"""A forward pass that only tells what a network gives."""
from typing import Any

import torch
from torch import nn

__all__ = ['dry_forward']


def dry_forward(backbone: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """What one forward pass of one empty image gives, in eval mode; leaves nothing behind."""
    modes = {m: m.training for m in backbone.modules()}
    thetas = {m: m.last_theta for m in backbone.modules() if 'last_theta' in vars(m)}  # of spatial transformers
    probe = next(backbone.parameters())
    backbone.eval()
    try:
        with torch.no_grad():
            return backbone(torch.zeros(1, *input_size, device=probe.device, dtype=probe.dtype))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for transformer, theta in thetas.items():
            transformer.last_theta = theta
