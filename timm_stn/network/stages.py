"""The stages of a backbone: which module each one is, and how it lays out its features."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, cast

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from .._torch import TorchDispatchMode
from ..geometry.layout import Layout, infer_layout, told_of_layout
from ..modules.trial import trial_forward
from .timm_model import FeatureInfo

__all__ = ['check_keeps_tokens', 'feature_infos', 'name_of', 'resolve_stage', 'stage_layouts']

Shape: TypeAlias = 'tuple[int, ...] | list[Shape] | str'  # of a tensor, of several things, or the type of another


def resolve_stage(backbone: nn.Module, stage: int | str) -> tuple[str, FeatureInfo]:
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
            raise ValueError(f'stn_stages: {name_of(backbone)} has feature indices 0 to {len(infos) - 1}, got {stage}.')
        return str(infos[stage]['module']), infos[stage]
    _check_module(backbone, stage)
    return stage, next((info for info in infos if info['module'] == stage), FeatureInfo())


def _check_module(backbone: nn.Module, name: str) -> None:
    modules = dict(backbone.named_modules())
    if not name or name not in modules:
        names = [str(i['module']) for i in feature_infos(backbone) if i['module'] and i['module'] in modules]
        others = f"another stage: {', '.join(names)}" if names else "a module's name"
        raise ValueError(f"stn_stages: {name_of(backbone)} has no module {name!r}; use 'input' or {others}.")


def feature_infos(backbone: nn.Module) -> list[FeatureInfo]:
    infos: object = getattr(backbone, 'feature_info', [])
    return list(cast(Iterable[FeatureInfo], getattr(infos, 'info', infos)))


def stage_layouts(
        backbone: nn.Module,
        stages: Sequence[int | str],
        input_size: tuple[int, int, int],
) -> dict[int | str, tuple[str, Layout]]:
    """Module name and layout of each stage, read off one dry forward pass.

    Raises:
        ValueError: A stage has no module, is not called exactly once, does not yield one map of features, or one that
            nothing looks at afterwards, or is named twice. The message names a module to use instead, if there is one.
    """
    found = {stage: resolve_stage(backbone, stage) for stage in stages}
    _check_distinct(backbone, {stage: name for stage, (name, _) in found.items()})
    outputs, uses = _watch(backbone, [name for name, _ in found.values()], input_size)
    layouts = {}
    for stage, (name, info) in found.items():
        fit = _fit(backbone, info, [_shape(out) for out in outputs.get(name, [])], input_size)
        if name not in outputs:
            fit = 'has no such module'
        elif isinstance(fit, Layout) and id(fit.pick(outputs[name][0])) not in uses.seen:
            fit = 'yields a map that nothing looks at afterwards'
        if not isinstance(fit, Layout):
            where = f'stn_stages: stage {stage!r} ({name}) of {name_of(backbone)}'
            raise ValueError(f"{where} {fit}; use 'input' or another stage{_instead(backbone, info, input_size)}.")
        layouts[stage] = name, fit
    return layouts


def _watch(
        backbone: nn.Module,
        names: Iterable[str],
        input_size: tuple[int, int, int],
) -> tuple[dict[str, list[object]], '_Uses']:
    """What each of these modules yields in a dry forward pass, in the order of that, and what is done with it."""
    modules = dict(backbone.named_modules())
    outputs: dict[str, list[object]] = {name: [] for name in names if name and name in modules}
    uses = _Uses()

    def keep(name: str, module: nn.Module, args: object, output: object) -> None:
        outputs[name] = [*outputs.pop(name), output]
        uses.forget(output)

    handles = [modules[name].register_forward_hook(partial(keep, name)) for name in outputs]
    try:
        with uses:
            uses.add(trial_forward(backbone, input_size))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, uses


def _instead(backbone: nn.Module, info: FeatureInfo, input_size: tuple[int, int, int]) -> str:
    """The last module, no deeper than need be, that has a stage's channels and map and can have a transformer."""
    if not {'num_chs', 'reduction'} <= set(info):
        return ''
    outputs, uses = _watch(backbone, [name for name, _ in backbone.named_modules()], input_size)
    size = _expected(info, input_size)
    fitting: list[str] = []
    for name, seen in outputs.items():
        read = cast(FeatureInfo, {**info, 'hook_type': 'forward'})
        fit = _fit(backbone, read, [_shape(out) for out in seen], input_size)
        if isinstance(fit, Layout) and fit.channels == info['num_chs'] and id(fit.pick(seen[0])) in uses.seen:
            off = max(abs(a - b) for a, b in zip(fit.size, size))  # maps may be cut by a pixel, tokens may not
            fitting += [name] if off == 0 or (off == 1 and fit.fmt != 'NLC') else []
    depth = max(1, min((name.count('.') for name in fitting), default=0))
    best = [name for name in fitting if name.count('.') <= depth]
    return f', for example {best[-1]!r}' if best else ''


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors something was computed from, by identity: it is theirs for as long as they are kept."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def add(self, tree: object) -> None:
        self.seen.update(map(id, _tensors(tree)))

    def forget(self, tree: object) -> None:
        """What was before does not count, with these or with others that had their identity."""
        self.seen.difference_update(map(id, _tensors(tree)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.add((args, kwargs))
        return func(*args, **(kwargs or {}))


def _tensors(tree: object) -> Iterator[Tensor]:
    """The tensors in nests of tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def _check_distinct(backbone: nn.Module, names: dict[int | str, str]) -> None:
    taken: dict[str, int | str] = {}
    for stage, name in names.items():
        if name in taken:
            both = f'{taken[name]!r} and {stage!r}'
            raise ValueError(f'stn_stages: {both} are the same stage ({name}) of {name_of(backbone)}; name it once.')
        taken[name] = stage


def check_keeps_tokens(backbone: nn.Module, layouts: dict[int | str, tuple[str, Layout]]) -> None:
    """Raise where stages of tokens do not have all of them in training.

    Raises:
        ValueError: The backbone drops patches at random.
    """
    drops = any(isinstance(m, PatchDropout | PatchDropoutWithIndices) and m.prob > 0 for m in backbone.modules())
    for stage, (name, layout) in layouts.items() if drops else ():
        if layout.fmt == 'NLC':
            raise ValueError(
                f'stn_stages: stage {stage!r} ({name}) of {name_of(backbone)} has no map in training, where '
                "patch_drop_rate drops tokens at random; use 'input', or patch_drop_rate=0.")


def _expected(info: FeatureInfo, input_size: tuple[int, int, int]) -> tuple[int, int]:
    reduction = info.get('reduction', 1)
    return -(-input_size[1] // reduction), -(-input_size[2] // reduction)


def _fit(
        backbone: nn.Module,
        info: FeatureInfo,
        shapes: list[Shape],
        input_size: tuple[int, int, int],
) -> Layout | str:
    """The layout of a stage from what it yields, or why there is none."""
    if info.get('hook_type', 'forward') not in ('', 'forward'):
        return 'is read before its module runs'
    if len(shapes) != 1:
        return f'is called {len(shapes)} times in a forward pass, not once'
    size = _expected(info, input_size)
    infer = partial(infer_layout, channels=info.get('num_chs'), size=size, **told_of_layout(backbone))
    layout = _only_map(shapes[0], infer, size)
    return layout or f'yields {_text(shapes[0])}, not one map (N, C, H, W), (N, H, W, C) or (N, L, C)'


def _only_map(
        shape: Shape,
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


def _shape(output: object) -> Shape:
    """A tensor's shape as a tuple; a list of such, or of names of types, for a tuple or list; else its type's name."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, (tuple, list)) and type(output) in (tuple, list):
        return [_shape(part) for part in output]
    return f'a {type(output).__name__}'


def _text(shape: Shape) -> str:
    return f"several things ({', '.join(map(_text, shape))})" if isinstance(shape, list) else str(shape)


def name_of(backbone: nn.Module) -> str:
    return str((getattr(backbone, 'pretrained_cfg', None) or {}).get('architecture') or type(backbone).__name__)
