"""The private names of torch that are used, all of them; tests/test_private_names.py tells which is missing."""
from collections.abc import Callable

import torch
from torch import _assert as traceable_assert
from torch import _foreach_clamp_min_ as clamp_each_min_
from torch import _foreach_div_ as div_each_
from torch import _foreach_norm as norm_of_each
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    'MODULE_NAMES', 'TorchDispatchMode', 'after_backward', 'clamp_each_min_', 'div_each_', 'in_forward_mode',
    'in_make_fx', 'norm_of_each', 'traceable_assert',
]

# Attributes of torch.nn.Module without a public equivalent.
MODULE_NAMES = ('_apply', '_buffers', '_forward_hooks', '_load_from_state_dict', '_modules', '_parameters')


def after_backward(callback: Callable[[], None]) -> None:
    """In a backward pass: call ``callback`` when it is complete; not if it fails."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)  # type: ignore[attr-defined]


def in_forward_mode() -> bool:
    """Whether derivatives may be computed along with values: in `torch.func.jvp` and `torch.autograd.forward_ad`."""
    return forward_ad._current_level >= 0


def in_make_fx() -> bool:
    """Whether `torch.fx.experimental.proxy_tensor.make_fx` records operators."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
