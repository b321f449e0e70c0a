"""One transformer becomes a child of one stage of a backbone: it travels, copies and checkpoints with the stage."""
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layout import Layout, infer_layout
from .spatial_transformer import SpatialTransformer

__all__ = ['StageTransformer', 'attach', 'detach', 'hooked', 'resolve_stage', 'stage_layouts', 'unhook']

CHILD = 'stn'


class StageTransformer(SpatialTransformer):
    """A spatial transformer for a stage's features, in whatever layout they come."""

    def __init__(self, layout: Layout, **settings: Any) -> None:
        super().__init__(in_chans=layout.channels, input_size=layout.size, **settings)
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.restore(super().forward(self.layout.maps(x)), x)

    def _example_shape(self) -> tuple[int, ...]:
        channels, *size = super()._example_shape()
        if self.layout.fmt == 'NLC':
            return self.layout.prefix + self.layout.size[0] * self.layout.size[1], channels
        return (channels, *size) if self.layout.fmt == 'NCHW' else (*size, channels)


def _transform(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a stage that has a transformer as its child."""
    return module.stn(output)  # type: ignore[operator]


def resolve_stage(backbone: nn.Module, stage: int | str) -> tuple[str, dict[str, Any]]:
    """Name of a stage's module and what the backbone says of its features.

    Args:
        backbone: A timm model.
        stage: Index into ``backbone.feature_info`` (negative: from the end), or a module's name.

    Raises:
        ValueError: There is no such stage.
    """
    infos = feature_infos(backbone)
    if isinstance(stage, int):
        if not -len(infos) <= stage < len(infos):
            raise ValueError(f'stn_stages: {_name(backbone)} has feature indices 0 to {len(infos) - 1}, got {stage}.')
        return str(infos[stage]['module']), dict(infos[stage])
    _check_module(backbone, stage)
    return stage, next((dict(i) for i in infos if i['module'] == stage), {})


def _check_module(backbone: nn.Module, name: str) -> None:
    modules = dict(backbone.named_modules())
    if not name or name not in modules:
        names = ', '.join(str(i['module']) for i in feature_infos(backbone) if i['module'] in modules)
        raise ValueError(
            f"stn_stages: {_name(backbone)} has no module {name!r}; use 'input' or another stage: {names}.")


def feature_infos(backbone: nn.Module) -> list[dict[str, Any]]:
    infos = getattr(backbone, 'feature_info', [])
    return list(getattr(infos, 'info', infos))


def stage_layouts(
        backbone: nn.Module,
        stages: Sequence[int | str],
        input_size: tuple[int, int, int],
) -> dict[int | str, tuple[str, Layout]]:
    """Module name and layout of each stage, read off one dry forward pass.

    Raises:
        ValueError: A stage is not called exactly once, does not yield one map of features, or is named twice.
    """
    found = {stage: resolve_stage(backbone, stage) for stage in stages}
    _check_distinct(backbone, {stage: name for stage, (name, _) in found.items()})
    outputs: dict[str, list[Any]] = {name: [] for name, _ in found.values()}
    for name in outputs:
        _check_module(backbone, name)
    handles = [
        backbone.get_submodule(name).register_forward_hook(lambda m, a, out, seen=seen: seen.append(_shape(out)))
        for name, seen in outputs.items()
    ]
    try:
        dry_forward(backbone, input_size)
    finally:
        for handle in handles:
            handle.remove()
    return {
        stage: (name, _layout(backbone, stage, name, info, outputs[name], input_size))
        for stage, (name, info) in found.items()
    }


def _check_distinct(backbone: nn.Module, names: dict[int | str, str]) -> None:
    taken: dict[str, int | str] = {}
    for stage, name in names.items():
        if name in taken:
            both = f'{taken[name]!r} and {stage!r}'
            raise ValueError(f'stn_stages: {both} are the same stage ({name}) of {_name(backbone)}; name it once.')
        taken[name] = stage


def _layout(
        backbone: nn.Module,
        stage: int | str,
        name: str,
        info: dict[str, Any],
        shapes: list[Any],
        input_size: tuple[int, int, int],
) -> Layout:
    where = f'stn_stages: stage {stage!r} ({name}) of {_name(backbone)}'
    use = "use 'input' or another stage"
    if info.get('hook_type', 'forward') not in ('', 'forward'):
        raise ValueError(f'{where} is read before its module runs; {use}.')
    if len(shapes) != 1:
        raise ValueError(f'{where} is called {len(shapes)} times in a forward pass, not once; {use}.')
    reduction = info.get('reduction', 1)
    expected = (-(-input_size[1] // reduction), -(-input_size[2] // reduction))
    prefix = int(getattr(backbone, 'num_prefix_tokens', 0) or 0)
    fmt = getattr(backbone, 'output_fmt', None)
    shape = shapes[0]
    layout = isinstance(shape, tuple) and infer_layout(
        shape, info.get('num_chs'), str(getattr(fmt, 'value', fmt)), expected, prefix)
    if not layout:
        raise ValueError(f'{where} yields {shape}, not one map (N, C, H, W), (N, H, W, C) or (N, L, C); {use}.')
    return layout


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
        raise ValueError(f'stn_stages: {name} of {_name(backbone)} has a transformer already; name another stage.')
    if way < 2:
        module.add_module(CHILD, stn)
        if way == 1:
            module.register_forward_hook(_transform)
        return f'{name}.{CHILD}'
    parent, _, last = name.rpartition('.')
    holder = backbone.get_submodule(parent)
    if way > 2 or type(holder) is not nn.Sequential:
        raise ValueError(
            f"stn_stages: a transformer cannot follow {name} of {_name(backbone)}; use 'input' or another stage.")
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
            backbone.get_submodule(parent)._modules[last] = nn.Sequential(module, stn)


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

    def count(name: str, module: nn.Module, args: tuple) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor):
            raise _Refused(name)
        calls[name] += 1

    handles = [stn.register_forward_pre_hook(partial(count, name)) for name, stn in transformers.items()]
    try:
        dry_forward(backbone, input_size)
    except _Refused as refused:
        return [str(refused)]
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, n in calls.items() if n != 1]


class _Refused(Exception):
    """A transformer, of this name, was handed something else than one tensor."""


def dry_forward(backbone: nn.Module, input_size: tuple[int, int, int]) -> None:
    """One forward pass of one empty image, in eval mode; leaves nothing behind."""
    modes = {m: m.training for m in backbone.modules()}
    thetas = {m: m.last_theta for m in backbone.modules() if isinstance(m, SpatialTransformer)}
    probe = next(backbone.parameters())
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, *input_size, device=probe.device, dtype=probe.dtype))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for transformer, theta in thetas.items():
            transformer.last_theta = theta


def _shape(output: Any) -> Any:
    return tuple(output.shape) if isinstance(output, Tensor) else f'a {type(output).__name__}'


def _name(backbone: nn.Module) -> str:
    return str((getattr(backbone, 'pretrained_cfg', None) or {}).get('architecture') or type(backbone).__name__)
