"""``timm:<arch>``: any timm model as the body of a localization network. Here alone this folder imports timm."""
from contextlib import suppress
from functools import partial
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ..geometry.layout import Layout, infer_layout, told_of_layout
from .moments import Moments
from .trial import trial_forward

__all__ = ['is_known', 'size_seen', 'start_as', 'timm_body']


class _Unpooled(nn.Module):
    """A timm model's last features as maps (N, C, H, W)."""

    def __init__(self, net: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.net, self.layout = net, layout

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.maps(self.net(x))


def timm_body(arch: str, in_chans: int, size: Any, pretrained: bool, **dd: Any) -> tuple[nn.Module, int]:
    """Moments of the last features, which say where things are; the pooled ones of a network that has no others."""
    cfg = get_pretrained_cfg(arch)
    sized = dict(img_size=tuple(size)) if cfg is not None and cfg.fixed_input_size else {}
    make = partial(timm.create_model, arch, pretrained=pretrained, in_chans=in_chans, num_classes=0, **sized)
    if 'global_pool' not in dd:
        with suppress(AssertionError, TypeError, ValueError):  # some cannot do without pooling
            net = make(global_pool='', **dd)
            layout = _layout(net, trial_forward(net, (in_chans, *size)), size)
            if layout is not None:
                return nn.Sequential(_Unpooled(net, layout), Moments()), 3 * layout.channels
    net = make(**dd)
    return net, trial_forward(net, (in_chans, *size)).shape[-1]


def start_as(body: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Load into a body what a network of its architecture has, if all of it fits; a classifier is left out.

    Returns:
        Whether it fits.
    """
    net = body[0].net if isinstance(body, nn.Sequential) and isinstance(body[0], _Unpooled) else body
    own = net.state_dict()
    fits = all(name in weights and weights[name].shape == value.shape for name, value in own.items())
    if fits:
        net.load_state_dict({name: weights[name] for name in own})
    return fits


def _layout(net: Any, features: Any, size: Any) -> Layout | None:
    if not isinstance(features, Tensor):
        return None
    return infer_layout(tuple(features.shape), net.num_features, size=size, **told_of_layout(net))


def is_known(arch: str) -> bool:
    return bool(timm.is_model(arch))


def size_seen(arch: str, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) that such a model sees, of inputs of a size: at most what it was made for."""
    cfg = get_pretrained_cfg(arch)
    native = tuple(cfg.input_size[1:]) if cfg is not None else (224, 224)
    fixed = cfg is not None and cfg.fixed_input_size
    return native if fixed else tuple(min(a, b) for a, b in zip(native, input_size))
