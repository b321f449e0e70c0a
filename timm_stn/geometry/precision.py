"""What autocast must not do: round coordinates and parameters, or keep what was cast without a graph."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ['full_precision', 'uncached']


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of ``x`` keep their dtypes; in bfloat16, places are off by pixels."""
    return torch.autocast(x.device.type, enabled=False) if _is_cast(x) else nullcontext()


def uncached(x: Tensor) -> AbstractContextManager:
    """A context in which autocast keeps no weights that it casts.

    Up to torch 2.9 it would give those that were cast without gradients to the training pass that follows.
    """
    device = x.device.type
    if not _is_cast(x):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)


def _is_cast(x: Tensor) -> bool:
    return x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)
