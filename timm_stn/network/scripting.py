"""What torch.fx and torch.jit.script see of a network: they cannot read all of Python."""
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

__all__ = ['ScriptableNetwork', 'share_tensors', 'traced_signature']


def traced_signature(net: nn.Module, x: Tensor) -> None:
    """torch.fx cannot pass on ``**kwargs``: where ``forward.__wrapped__`` is this, it traces a call with an image."""


class ScriptableNetwork(nn.Module):
    """A network with one glimpse as torch.jit.script compiles it."""

    def __init__(self, stn: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.stn = stn
        self.backbone: Any = backbone

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        return self.backbone(self.stn(x))

    def forward_features(self, x: Tensor):  # type: ignore[no-untyped-def]
        return self.backbone.forward_features(self.stn(x))

    def forward_intermediates(  # type: ignore[no-untyped-def]
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ):
        return self.backbone.forward_intermediates(
            self.stn(x), indices=indices, norm=norm, stop_early=stop_early, output_fmt=output_fmt,
            intermediates_only=intermediates_only)


def share_tensors(module: nn.Module) -> nn.Module:
    """A copy with the same parameters and buffers: torch.jit.script puts traces into what it is given."""
    return deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})
