"""What torch.fx and torch.jit.script see of a network: they cannot read all of Python."""
from typing import Any

from torch import Tensor, nn

from ..modules.scripting import share_tensors
from .attach import StageTransformer, hooked, unhook

__all__ = ['ScriptableNetwork', 'scriptable', 'traced_signature']


def traced_signature(net: nn.Module, x: Tensor) -> Any:
    """torch.fx cannot pass on ``**kwargs``: where ``forward.__wrapped__`` is this, it traces a call with an image.

    Others take off what wraps a forward, and call what they find: that is the forward.
    """
    return type(net).forward(net, x)


class ScriptableNetwork(nn.Module):
    """A network with one glimpse as torch.jit.script compiles it."""

    def __init__(self, stn: nn.Module, backbone: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.training = net.training
        self.made_of = (net,)  # kept, as in `ScriptableTransformer`
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


def scriptable(net: Any) -> ScriptableNetwork:
    """A copy of a network, with the same parameters, that torch.jit.script compiles.

    Raises:
        ValueError: It has what torch.jit.script cannot compile.
    """
    backbone = share_tensors(net.backbone)
    unhook(backbone)
    found = {
        'several streams': net.streams > 1,
        "several images side by side (stn_join='channels')": net.arguments.stacked > 1,
        "theta from the backbone's own features or answers": net.asks_itself,
        'a transformer at a stage that yields several things': any(
            m.layout.item is not None for m in backbone.modules() if isinstance(m, StageTransformer)),
        f"transformers in forward hooks (at {', '.join(hooked(backbone))})": bool(hooked(backbone)),
    }
    for what, is_here in found.items():
        if is_here:
            raise ValueError(f'torch.jit.script cannot compile {what}; use torch.jit.trace or torch.export.')
    return ScriptableNetwork(net.stn or nn.Identity().train(net.training), backbone, net)
