"""The private names of timm and torch that are used, all of them; tests/test_timm_private.py tells which is missing."""
from collections.abc import Callable

import torch
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import _assert as traceable_assert
from torch import _foreach_clamp_min_ as clamp_each_min_
from torch import _foreach_div_ as div_each_
from torch import _foreach_norm as norm_of_each
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    'MODEL_NAMES', 'MODULE_NAMES', 'FeatureGetterNet', 'TorchDispatchMode', 'after_backward', 'clamp_each_min_',
    'div_each_', 'feature_take_indices', 'norm_of_each', 'traceable_assert',
]

# Attributes of torch.nn.Module without a public equivalent.
MODULE_NAMES = ('_apply', '_buffers', '_forward_hooks', '_load_from_state_dict', '_modules')
# What timm's factory notes on a model: written on the network always, read where the backbone has it.
MODEL_NAMES = ('_model_args', '_traits')


def after_backward(callback: Callable[[], None]) -> None:
    """In a backward pass: call ``callback`` when it is complete; not if it fails."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)  # type: ignore[attr-defined]
