"""One transformer becomes a child of one stage of a backbone: it travels, copies and checkpoints with the stage."""
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ..geometry.layout import Layout
from ..geometry.symbolic import recorded_method
from ..modules.spatial_transformer import SpatialTransformer
from ..modules.trial import trial_forward
from .keys import CHILD
from .stages import name_of

__all__ = ['StageTransformer', 'attach', 'detach', 'hooked', 'unhook']


class StageTransformer(SpatialTransformer):
    """A spatial transformer for a stage's features, in whatever layout they come."""

    def __init__(self, layout: Layout, **settings: Any) -> None:
        super().__init__(in_chans=layout.channels, input_size=layout.size, **settings)
        self.layout = layout

    @recorded_method
    def forward(self, x: Any) -> Any:
        features = self.layout.pick(x)
        seen = super().forward(self.layout.maps(features))
        return self.layout.put(self.layout.restore(seen, features), x)

    def _example_shape(self) -> tuple[int, ...]:
        channels, *size = super()._example_shape()
        if self.layout.fmt == 'NLC':
            return self.layout.prefix + self.layout.size[0] * self.layout.size[1], channels
        return (channels, *size) if self.layout.fmt == 'NCHW' else (*size, channels)


def _transform(module: nn.Module, args: object, output: object) -> object:
    """Forward hook of a stage that has a transformer as its child."""
    return module.stn(output)  # type: ignore[operator]


def attach(
        backbone: nn.Module,
        transformers: Mapping[str, StageTransformer],
        input_size: tuple[int, int, int],
) -> dict[str, str]:
    """Make each transformer run once, right after the module that it is named by; returns the transformers' own names.

    An exact ``nn.Sequential`` runs a child by itself, as do some containers of timm that iterate over their children.
    Other modules get a plain-function forward hook. Where a container hands its children something else than its output
    (a list in DenseNet), the transformer follows it in the Sequential that holds it. Which of these it is, the calls in
    dry forward passes tell: one pass for all that run as children, a few more for others.

    Raises:
        ValueError: There is no way to run a transformer exactly once, or there is one already. The backbone is left as
            it was.
    """
    names: dict[str, str] = {}
    ways = dict.fromkeys(transformers, 0)
    pending = list(transformers)
    try:
        while pending:
            for name in pending:
                if name in names:
                    detach(backbone, names.pop(name))
                names[name] = _place(backbone, name, transformers[name], ways[name])
            pending = _misplaced(backbone, transformers, input_size)
            for name in pending:
                ways[name] += 1
    except BaseException:
        for placed in names.values():
            detach(backbone, placed)
        raise
    return names


def _place(backbone: nn.Module, name: str, stn: StageTransformer, way: int) -> str:
    """Put a transformer in: as a child of its module, as a child that a hook runs, or after its module."""
    module = backbone.get_submodule(name)
    if hasattr(module, CHILD):
        raise ValueError(f'stn_stages: {name} of {name_of(backbone)} has a transformer already; name another stage.')
    if way < 2:
        module.add_module(CHILD, stn)
        if way == 1:
            module.register_forward_hook(_transform)
        return f'{name}.{CHILD}'
    parent, _, last = name.rpartition('.')
    holder = backbone.get_submodule(parent)
    if way > 2 or type(holder) is not nn.Sequential:
        raise ValueError(
            f"stn_stages: a transformer cannot follow {name} of {name_of(backbone)}; use 'input' or another stage.")
    children = list(holder.named_children())
    holder._modules.clear()
    for child_name, child in children:
        holder.add_module(child_name, child)
        if child_name == last:
            holder.add_module(f'{last}_{CHILD}', stn)
    return f'{parent}.{last}_{CHILD}'.lstrip('.')


def hooked(backbone: nn.Module) -> list[str]:
    """Stages whose transformer runs in a forward hook."""
    return [name for name, module in backbone.named_modules() if _transform in module._forward_hooks.values()]


def unhook(backbone: nn.Module) -> None:
    """Where a stage takes nothing but features, its transformer may as well follow it: no hook, but other keys."""
    for name in hooked(backbone):
        module = backbone.get_submodule(name)
        if len(inspect.signature(module.forward).parameters) == 1:
            stn = module.get_submodule(CHILD)
            detach(backbone, f'{name}.{CHILD}')
            parent, _, last = name.rpartition('.')
            followed = backbone.get_submodule(parent)._modules[last] = nn.Sequential(module, stn)
            followed.training = module.training


def detach(backbone: nn.Module, name: str) -> None:
    """Take out again what ``attach`` put in; ``name`` is what it returned."""
    parent, _, child = name.rpartition('.')
    holder = backbone.get_submodule(parent)
    del holder._modules[child]
    for key in [k for k, hook in holder._forward_hooks.items() if hook is _transform]:
        del holder._forward_hooks[key]


def _misplaced(
        backbone: nn.Module,
        transformers: Mapping[str, StageTransformer],
        input_size: tuple[int, int, int],
) -> list[str]:
    """Those that do not run exactly once in a forward pass, or the first that is handed what it cannot take."""
    calls = dict.fromkeys(transformers, 0)

    def count(name: str, module: Any, args: tuple) -> None:
        if len(args) != 1 or not module.layout.fits(args[0]):
            raise _Refused(name)
        calls[name] += 1

    handles = [stn.register_forward_pre_hook(partial(count, name)) for name, stn in transformers.items()]
    try:
        trial_forward(backbone, input_size)
    except _Refused as refused:
        return [str(refused)]
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, n in calls.items() if n != 1]


class _Refused(Exception):
    """A transformer, of this name, was handed something else than what its stage yields."""
