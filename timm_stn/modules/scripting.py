"""A transformer as torch.jit.script takes it, which cannot read all of Python: traces of it, for training and else."""
import warnings
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ['ScriptableTransformer', 'share_tensors']

M = TypeVar('M', bound=nn.Module)
OURS = r'(.*[/\\])?timm_stn\b'  # modules whose sides of the example may be constants


class ScriptableTransformer(nn.Module):
    """A spatial transformer as torch.jit.script compiles it, with the same tensors under the same names.

    What acts in backward passes alone (statistics of features, penalty, freeze) is not in it.

    Args:
        stn: The transformer; it is left as it is.
        size: Of an example, without the batch.
        fixed: Inputs have this size only.
    """

    size: list[int]

    def __init__(self, stn: nn.Module, size: tuple[int, ...], fixed: bool = False) -> None:
        super().__init__()
        for name, tensor in stn.state_dict(keep_vars=True).items():
            if '.' not in name:
                self.register_buffer(name, tensor)
        self.localization: Any = _traced(share_tensors(stn), size)
        self.size = list(size) if fixed else []
        self.training = stn.training
        self.made_of = (stn,)  # kept: torch.jit.script knows by its id what it has prepared, no other may take it

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        if len(self.size) > 0 and x.shape[1:] != self.size:  # type: ignore[comparison-overlap]
            raise ValueError(f'this script takes a batch of size {self.size}, got {x.shape[1:]}')
        if self.training:
            return self.localization.seen_in_training(x)
        return self.localization.seen_in_evaluation(x)


def share_tensors(module: M) -> M:
    """A copy with the same parameters and buffers: torch.jit.script puts traces into what it is given."""
    return deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})


def _traced(stn: Any, size: tuple[int, ...]) -> Any:
    """The localization network, as a script module with methods that give what its transformer sees.

    So the script has the names of the localization network, and of nothing around it.
    """
    stn.act_in_forward_passes_alone()
    root = stn.localization = copy(stn.localization)  # its attributes are its own, its children and tensors are not
    mode = root.training
    like = next(root.parameters(), stn.base)
    example = torch.zeros(2, *size, device=like.device, dtype=like.dtype)
    methods = {'seen_in_training': _seen(stn, True), 'seen_in_evaluation': _seen(stn, False)}
    vars(root).update(methods)
    before = [(buffer, buffer.clone()) for buffer in root.buffers()]
    with torch.random.fork_rng(), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=torch.jit.TracerWarning, module=OURS)  # type: ignore[attr-defined]
        traced = torch.jit.trace_module(  # type: ignore[no-untyped-call]
            root, dict.fromkeys(methods, example), check_trace=False)
    with torch.no_grad():
        for buffer, value in before:  # a batch norm has taken the example into its statistics
            buffer.copy_(value)
    return traced.train(mode)


def _seen(stn: nn.Module, training: bool) -> Callable[[Tensor], Tensor]:
    def seen(x: Tensor) -> Any:
        return stn.train(training).forward(x)
    return seen
