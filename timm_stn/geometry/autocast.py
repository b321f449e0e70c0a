"""Contexts that keep autocast from rounding coordinates, and from caching weights cast without a graph."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ['full_precision', 'uncached']


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of ``x``: bfloat16 coordinates would be wrong by pixels."""
    return torch.autocast(x.device.type, enabled=False) if _is_cast(x) else nullcontext()


def uncached(x: Tensor) -> AbstractContextManager:
    """A context in which autocast does not cache the weights that it casts.

    Up to torch 2.9, a later training pass would reuse weights that were cast without gradients.
    """
    device = x.device.type
    if not _is_cast(x):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)


def _is_cast(x: Tensor) -> bool:
    return x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)
