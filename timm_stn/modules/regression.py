"""The last layer of a localization network: theta starts at the identity, and learns at a rate of its own."""
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.autocast import full_precision
from ..geometry.grid import coordinate_dtype
from ..geometry.sizes import plain
from .casts import is_lost, widened
from .settings import RATE, check_kind

__all__ = ['SCALE', 'ThetaRegression']

SCALE = 'lr_scale_nano'  # name of the buffer that holds lr_scale


class ThetaRegression(nn.Module):
    """The last layer of a localization network: theta = lr_scale * (W h / fan_in + b), W and b start at zero.

    Dividing by the fan-in makes a step of any optimiser move theta by about lr * lr_scale, whatever the width. Forward
    uses gain * W with gain = lr_scale / fan_in while W receives the gradient as if the gain were 1, so that SGD, AdamW,
    Lion, Muon and LAMB all scale theta's step alike (a plain gain would enter twice under SGD). ``lr_scale`` is saved
    beside W (in billionths: an integer survives ``model.half()``), and a checkpoint written with another one is
    converted when it is loaded, so that it may change at any time. If it was lost, in a cast of all tensors, a warning
    says so, and the weights are taken as if they were of the same.

    Args:
        in_features: Width F of the features.
        out_features: Number P of parameters.
        lr_scale: Learning rate of theta relative to the rest of the network, from 1e-9 to 1e9; rounded to billionths.

    Raises:
        ValueError: ``lr_scale`` is not between these.
    """

    lr_scale_nano: Tensor

    def __init__(
            self,
            in_features: int,
            out_features: int,
            lr_scale: float = 1.0,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__()
        lr_scale = plain(lr_scale)
        check_kind('lr_scale', lr_scale, RATE)
        self.in_features = in_features
        self.out_features = out_features
        self.lr_scale = round(lr_scale * 1e9) / 1e9
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        self.register_buffer(SCALE, torch.tensor(round(self.lr_scale * 1e9), device=device))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.lr_scale_nano.fill_(round(self.lr_scale * 1e9))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, F) to parameters (N, P), in float32 (float64 for float64 weights) whatever the autocast."""
        dtype = coordinate_dtype(self.weight.dtype)
        with full_precision(x):
            weight = _gain(self.weight.to(dtype), self.lr_scale / self.in_features)  # (P, F)
            return F.linear(x.to(dtype), weight, _gain(self.bias.to(dtype), self.lr_scale))

    def effective_weight(self) -> Tensor:
        """What multiplies the features, (P, F): the same whatever ``lr_scale`` it was trained with."""
        return self.weight.detach() * (self.lr_scale / self.in_features)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + SCALE)
        if saved is not None and not saved.is_meta:
            nano = round(self.lr_scale * 1e9)
            ratio = self._ratio(prefix + SCALE, saved, nano)
            for name, own in self.named_parameters():
                value = state_dict.get(prefix + name)
                if value is not None and ratio != 1.0:
                    state_dict[prefix + name] = widened(value, own.dtype) * ratio
            state_dict[prefix + SCALE] = torch.full_like(saved, nano, dtype=torch.int64)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _ratio(self, key: str, saved: Tensor, own: int) -> float:
        """Of the lr_scale of a checkpoint to one's own, in billionths; averaged checkpoints have it as a float."""
        if is_lost(saved):
            warnings.warn(
                f'{key}: a cast of all tensors to a type of few bits lost this number. The weights are taken to be of '
                f'lr_scale={self.lr_scale}, which is that of the network they are loaded into; to be sure, cast '
                'floating-point tensors only.', stacklevel=2)
            return 1.0
        value = saved.item() if saved.numel() == 1 else math.nan
        if not 1 <= value <= 10 ** 18 or value != int(value):
            raise ValueError(f'{key} must be one integer, billionths of lr_scale from 1e-9 to 1e9, got {saved}.')
        rounding = torch.finfo(saved.dtype).eps if saved.is_floating_point() else 0.0
        return 1.0 if abs(value - own) <= rounding * own else value / own

    def extra_repr(self) -> str:
        return f'in_features={self.in_features}, out_features={self.out_features}, lr_scale={self.lr_scale}'


def _gain(weight: Tensor, gain: float) -> Tensor:
    """gain * weight, to full precision however small the gain is, with a gradient of 1; the second term is zero."""
    return weight if gain == 1.0 else gain * weight.detach() + (weight - weight.detach())
