"""Integers of a state dict all of whose tensors somebody cast: ``{k: v.half() for k, v in state_dict.items()}``."""
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ['as_count', 'is_lost', 'widened']

LARGEST_E4M3 = 448.0  # float8_e4m3fn has no infinity: this is what larger numbers become


def is_lost(value: Tensor) -> bool:
    """Whether a scalar that was an integer is one no more: it was larger than its type, or an earlier one, holds."""
    if not value.is_floating_point() or value.numel() != 1:
        return False
    number = float(value.double())
    return not math.isfinite(number) or number in (torch.finfo(value.dtype).max, LARGEST_E4M3)


def as_count(value: Any, lost: int) -> Any:
    """A count as an integer tensor; ``lost`` where it is lost. What has no value, or is an integer, stays."""
    if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
        return value
    return torch.full_like(value, lost, dtype=torch.int64) if is_lost(value) else value.double().round().long()


def widened(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the wider of its own dtype and another; float8, with which torch does not calculate, in the other."""
    return value.to(dtype if value.dtype.itemsize == 1 else torch.promote_types(value.dtype, dtype))
