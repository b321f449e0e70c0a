"""Weights in half precision: a file of half the size, of which timm makes a network in float32."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ['halved', 'rounded']

MOST = 1e-3  # relative error of a tensor; float16 has 11 bits, which is half of it, where no value is too small


def halved(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose matrices and kernels are float16.

    All else stays as it is: what has less than two dimensions (biases, and what normalisation layers have counted), and
    what float16 holds badly: values beyond 65,504, and tensors that lose more than a thousandth of their norm since
    most of their values are below 6e-5.
    """
    return {name: _half(value) for name, value in state_dict.items()}


def rounded(model: Any) -> Any:
    """``model``, with the values that a file in half precision holds; its own types stay. Changes it in place."""
    model.load_state_dict(halved(model.state_dict()))
    return model


def _half(value: Tensor) -> Tensor:
    if value.ndim < 2 or value.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return value
    half = value.to(torch.float16)
    error, norm = (half.double() - value.double()).norm(), value.double().norm()
    return half if error <= MOST * norm else value  # infinity and NaN are no such errors
