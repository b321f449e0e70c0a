"""One transformer becomes a child of one stage of a backbone: it travels, copies and checkpoints with the stage."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._timm import TorchDispatchMode
from .layout import Layout, infer_layout
from .spatial_transformer import SpatialTransformer

__all__ = ['StageTransformer', 'attach', 'detach', 'resolve_stage', 'stage_layouts']

CHILD = 'stn'
USE = "use 'input' or another stage"


class StageTransformer(SpatialTransformer):
    """A spatial transformer for a stage's features, in whatever layout they come."""

    def __init__(self, layout: Layout, **settings: Any) -> None:
        super().__init__(in_chans=layout.channels, input_size=layout.size, **settings)
        self.layout = layout

    def forward(self, x: Any) -> Any:
        features = self.layout.pick(x)
        seen = super().forward(self.layout.maps(features))
        return self.layout.put(self.layout.restore(seen, features), x)


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
        names = [str(i['module']) for i in feature_infos(backbone) if i['module'] and i['module'] in modules]
        others = f"another stage: {', '.join(names)}" if names else "a module's name"
        raise ValueError(f"stn_stages: {_name(backbone)} has no module {name!r}; use 'input' or {others}.")


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
        ValueError: A stage is not called exactly once, does not yield one map of features, or one that nothing looks
            at afterwards, or is named twice.
    """
    found = {stage: resolve_stage(backbone, stage) for stage in stages}
    _check_distinct(backbone, {stage: name for stage, (name, _) in found.items()})
    outputs: dict[str, list[Any]] = {name: [] for name, _ in found.values()}
    for name in outputs:
        _check_module(backbone, name)
    uses = _Uses()

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        outputs[name].append(output)
        uses.forget(output)

    handles = [backbone.get_submodule(name).register_forward_hook(partial(keep, name)) for name in outputs]
    try:
        with uses:
            uses.add(dry_forward(backbone, input_size))
    finally:
        for handle in handles:
            handle.remove()
    layouts = {}
    for stage, (name, info) in found.items():
        layout = _layout(backbone, stage, name, info, [_shape(out) for out in outputs[name]], input_size)
        if id(layout.pick(outputs[name][0])) not in uses.seen:
            raise ValueError(f"{_where(backbone, stage, name)} yields a map that nothing looks at afterwards; {USE}.")
        layouts[stage] = name, layout
    return layouts


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors something was computed from, by identity: it is theirs for as long as they are kept."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def add(self, tree: Any) -> None:
        self.seen.update(map(id, _tensors(tree)))

    def forget(self, tree: Any) -> None:
        """What was before does not count, with these or with others that had their identity."""
        self.seen.difference_update(map(id, _tensors(tree)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.add((args, kwargs))
        return func(*args, **(kwargs or {}))


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nests of tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def _where(backbone: nn.Module, stage: int | str, name: str) -> str:
    return f'stn_stages: stage {stage!r} ({name}) of {_name(backbone)}'


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
    where = _where(backbone, stage, name)
    if info.get('hook_type', 'forward') not in ('', 'forward'):
        raise ValueError(f'{where} is read before its module runs; {USE}.')
    if len(shapes) != 1:
        raise ValueError(f'{where} is called {len(shapes)} times in a forward pass, not once; {USE}.')
    reduction = info.get('reduction', 1)
    expected = (-(-input_size[1] // reduction), -(-input_size[2] // reduction))
    prefix = int(getattr(backbone, 'num_prefix_tokens', 0) or 0)
    fmt = getattr(backbone, 'output_fmt', None)
    layout = _only_map(shapes[0], partial(
        infer_layout, channels=info.get('num_chs'), output_fmt=str(getattr(fmt, 'value', fmt)), size=expected,
        prefix=prefix), expected)
    if not layout:
        maps = '(N, C, H, W), (N, H, W, C) or (N, L, C)'
        raise ValueError(f'{where} yields {_text(shapes[0])}, not one map {maps}; {USE}.')
    return layout


def _only_map(
        shape: Any,
        infer: Callable[[tuple[int, ...]], Layout | None],
        size: tuple[int, int],
) -> Layout | None:
    """The layout of what a stage yields for one image: a map, or several things with one map of features in them.

    Among several things class tokens could pass for a map, so that tokens must have the aspect ratio of ``size``.
    """
    if isinstance(shape, tuple):
        return infer(shape) if shape[:1] == (1,) else None
    parts = {i: infer(part) for i, part in enumerate(shape) if isinstance(part, tuple) and part[:1] == (1,)}
    found = [
        replace(layout, item=i) for i, layout in parts.items() if layout and max(layout.size) > 1
        and (layout.fmt != 'NLC' or layout.size[0] * size[1] == layout.size[1] * size[0])]
    return found[0] if len(found) == 1 else None


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
        dry_forward(backbone, input_size)
    except _Refused as refused:
        return [str(refused)]
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, n in calls.items() if n != 1]


class _Refused(Exception):
    """A transformer, of this name, was handed something else than what its stage yields."""


def dry_forward(backbone: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """What one forward pass of one empty image gives, in eval mode; leaves nothing behind."""
    modes = {m: m.training for m in backbone.modules()}
    thetas = {m: m.last_theta for m in backbone.modules() if isinstance(m, SpatialTransformer)}
    probe = next(backbone.parameters())
    backbone.eval()
    try:
        with torch.no_grad():
            return backbone(torch.zeros(1, *input_size, device=probe.device, dtype=probe.dtype))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for transformer, theta in thetas.items():
            transformer.last_theta = theta


def _shape(output: Any) -> Any:
    """A tensor's shape as a tuple; a list of such, or of names of types, for a tuple or list; else its type's name."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if type(output) in (tuple, list):
        return [_shape(part) for part in output]
    return f'a {type(output).__name__}'


def _text(shape: Any) -> str:
    return f"several things ({', '.join(map(_text, shape))})" if isinstance(shape, list) else str(shape)


def _name(backbone: nn.Module) -> str:
    return str((getattr(backbone, 'pretrained_cfg', None) or {}).get('architecture') or type(backbone).__name__)
