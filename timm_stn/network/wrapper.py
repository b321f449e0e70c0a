"""A timm model around timm models: parameter names get a prefix, all else is read from and written to the backbone."""
import warnings
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .keys import (
    base_name,
    is_classifiers,
    is_transformers,
    is_whole,
    pattern_here,
    prefix_of,
    unjoined,
    within_backbone,
)
from .timm_model import TimmModel

__all__ = ['TimmWrapper', 'if_backbone_can']

# Never read from or written to the backbone: these would bypass the transformers, or give names without their prefix.
NOT_READ_THROUGH = (
    'backbone', 'towers', 'stn', 'fuse', 'reparameterize', 'default_cfg', 'pretrained_cfg', 'pretrained_model_args',
    '_traits', 'get_intermediate_layers')


Wrapper = TypeVar('Wrapper', bound='TimmWrapper')


class if_backbone_can:
    """Decorator of a method that a network has, for ``hasattr`` too, where its backbone has one of that name."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        update_wrapper(self, method)  # type: ignore[arg-type]

    def __get__(self, net: Any, owner: type | None = None) -> Any:
        if net is not None and not hasattr(net.backbone, self.method.__name__):
            raise AttributeError(f'{type(net.backbone).__name__} has no {self.method.__name__}')
        return self.method.__get__(net, owner)


class TimmWrapper(nn.Module):
    """One or several timm models of one architecture, and whatever a subclass puts beside them.

    What the backbone had when it was wrapped, and is not here, is read from there, written to there and deleted there,
    in each of torch's ways: ``net.patch_embed``, ``net.grad_checkpointing = True``, ``net.add_module('bn1', norm)``.
    All else is the network's own. Plain values are written to the towers, too; modules and tensors to the first
    backbone alone.

    Args:
        backbone: A timm model, or a feature extractor that timm made of one.
        towers: Further ones, of the same architecture.
        **before: Children that come before the backbone. The order of children is that of parameters, and the state of
            an optimizer goes by their index.
    """

    backbone: TimmModel
    towers: nn.ModuleDict
    _of_backbone: frozenset[str] = frozenset()  # names of its attributes, but for those of its class

    def __init__(self, backbone: TimmModel, towers: Sequence[nn.Module] = (), **before: nn.Module | None) -> None:
        super().__init__()
        for name, module in before.items():
            setattr(self, name, module)
        self.backbone = backbone
        self._of_backbone = frozenset(backbone.__dict__).union(*_tables(backbone))
        if towers:
            self.towers = nn.ModuleDict({str(i): tower for i, tower in enumerate(towers, 1)})
        self.register_load_state_dict_pre_hook(_load_plain)  # type: ignore[no-untyped-call]

    @property
    def has_towers(self) -> bool:
        return 'towers' in self._modules

    def backbones(self) -> list[TimmModel]:
        """The backbone, and the towers beside it."""
        towers = list(self.towers.values()) if self.has_towers else []
        return [self.backbone, *cast('list[TimmModel]', towers)]

    def train(self: Wrapper, mode: bool = True) -> Wrapper:
        """Set the mode; warns where nothing would learn."""
        super().train(mode)
        if mode and not any(p.requires_grad for p in self.parameters()):
            warnings.warn(
                'no parameter of this network requires a gradient: it will not learn. If parameters were chosen by '
                "name: here, they begin with 'backbone.'; timm_stn.base_name('backbone.fc.weight') is 'fc.weight'.",
                stacklevel=2)
        return self

    def _is_backbones(self, name: str) -> bool:
        """Whether the backbone had an attribute of this name when it was wrapped, or its class has."""
        there = self.__dict__.get('_modules', {}).get('backbone')
        return there is not None and not _is_reserved(name) and (
            name in self._of_backbone or hasattr(type(there), name))

    def _is_own(self, name: str) -> bool:
        """Whether an attribute of this name is written to the network itself."""
        here = name in self.__dict__ or any(name in table for table in _tables(self))
        return here or hasattr(type(self), name) or not self._is_backbones(name)

    def _named_here(self, name: str) -> str:
        """The name, here, of what a backbone alone has under a name."""
        return name

    def __getattr__(self, name: str) -> Any:
        name = self._named_here(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not self._is_backbones(name):
                raise
            return getattr(self.backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        name = self._named_here(name)
        if self._is_own(name):
            super().__setattr__(name, value)
            return
        for backbone in [self.backbone] if isinstance(value, nn.Module | Tensor) else self.backbones():
            setattr(backbone, name, value)

    def __delattr__(self, name: str) -> None:
        name = self._named_here(name)
        super().__delattr__(name) if self._is_own(name) else delattr(self.backbone, name)

    def __dir__(self) -> list[str]:
        own: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return sorted({*own, *(name for name in dir(self.backbone) if self._is_backbones(name))})

    def add_module(self, name: str, module: nn.Module | None) -> None:
        name = self._named_here(name)
        super().add_module(name, module) if self._is_own(name) else self.backbone.add_module(name, module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        own = self._is_own(name)
        super().register_parameter(name, param) if own else self.backbone.register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        register = super().register_buffer if self._is_own(name) else self.backbone.register_buffer
        register(name, tensor, persistent)

    def adapt_plain(self, plain: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
        """What a plain checkpoint gives to modules beside the backbone, and the keys of it that are then used."""
        return {}, set()

    @if_backbone_can
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for backbone in self.backbones():
            backbone.set_grad_checkpointing(enable)

    @if_backbone_can
    def group_matcher(self, coarse: bool = False) -> Any:
        """Layer groups of the backbone; all else is new, and grouped with the head."""
        matcher = self.backbone.group_matcher(coarse=coarse)
        if callable(matcher):
            return lambda name: matcher(base_name(name)) if base_name(name) else float('inf')
        patterns = cast('dict[str, object]', matcher)
        return {group: pattern_here(pattern) for group, pattern in patterns.items()}

    @if_backbone_can
    def no_weight_decay(self) -> set[str]:
        return {prefix_of(i) + n for i, backbone in enumerate(self.backbones()) for n in backbone.no_weight_decay()}

    def init_weights(self, *args: object, **kwargs: object) -> None:
        """Initialise everything anew: the backbone(s) by their own rules, transformers at the identity."""
        for backbone in self.backbones():
            if hasattr(backbone, 'init_weights'):
                backbone.init_weights(*args, **kwargs)
        self._start(self._own_modules())

    def _own_modules(self) -> list[Any]:
        return [module for name, module in self.named_modules() if name and _is_own_key(name + '.')]

    def _start(self, modules: list[Any]) -> None:
        for module in reversed(modules):  # a localization network after its layers, to which it gives other starts
            for initialize in ('reset_parameters', 'init_non_persistent_buffers'):
                if hasattr(module, initialize):
                    getattr(module, initialize)()

    def leave_meta(self, device: torch.device) -> None:
        """Initialise what is beside the backbone(s), if it is on the meta device, on another one."""
        own = self._own_modules() if device.type != 'meta' else []
        absent = [m for m in own if any(t.is_meta for t in (*m.parameters(False), *m.buffers(False)))]
        for module in absent:
            module.to_empty(device=device, recurse=False)
        self._start(own if absent else [])

    def init_non_persistent_buffers(self) -> None:
        """Restore what is not in the state dict, after the model left the meta device."""
        modules: list[Any] = list(self.modules())
        for module in modules:
            if module is not self and hasattr(module, 'init_non_persistent_buffers'):
                module.init_non_persistent_buffers()


def _tables(module: nn.Module) -> list[dict[str, Any]]:
    """Where torch keeps what is not in the dict of an object."""
    return [module.__dict__.get(table, {}) for table in ('_modules', '_parameters', '_buffers')]


def _is_reserved(name: str) -> bool:
    return name.startswith('__') or name in NOT_READ_THROUGH


def _is_own_key(key: str) -> bool:
    return is_transformers(key) or is_classifiers(key)


def _load_plain(net: TimmWrapper, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
    """Before a state dict is loaded: a plain checkpoint of the backbone fills backbone(s), all else stays as it is."""
    names = [k[len(prefix):] for k in state_dict if k.startswith(prefix)]
    if is_whole(names) and 'classifier' not in net._modules and any(map(is_classifiers, names)):
        classifier = net.backbone.get_classifier()
        own = next(name for name, module in net.backbone.named_modules() if module is classifier)
        for name in filter(is_classifiers, names):
            state_dict[prefix + unjoined(name, own)] = state_dict.pop(prefix + name)
    if not names or is_whole(names):
        return
    plain = {n: state_dict.pop(prefix + n) for n in names}
    net.leave_meta(plain[names[0]].device)
    adapted, used = net.adapt_plain(plain)
    found = {name: value for name, value in net.state_dict().items() if _is_own_key(name)}
    for name in net.state_dict():
        key = within_backbone(name)  # also of a transformer at a stage, if the backbone's own state dict was saved
        if key in plain:
            found[name] = plain[key]
            used.add(key)
    unused = {n: v for n, v in plain.items() if n not in used}
    state_dict.update({prefix + n: v for n, v in {**found, **adapted, **unused}.items()})
