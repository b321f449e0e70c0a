"""A module as torch.jit.script takes it, which cannot read all of Python: as a trace."""
from typing import Any

import torch
from torch import nn

__all__ = ['trace']


def trace(module: nn.Module, size: tuple[int, ...]) -> Any:
    """A trace of a module with one input; example batch (2, *size)."""
    like = next(module.parameters())
    example = torch.zeros(2, *size, device=like.device, dtype=like.dtype)
    return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
