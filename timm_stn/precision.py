"""Where coordinates and parameters are computed, autocast is off: bfloat16 coordinates are wrong by pixels."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ['full_precision']


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of ``x`` keep the dtypes they are given."""
    device = x.device.type
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
