"""Registers a twin, named ``stn_<arch>``, for every architecture of timm."""
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    get_arch_pretrained_cfgs,
    list_models,
    register_model,
    split_model_name_tag,
)
from torch import nn

from ..network.keys import prefixed

__all__ = ['nearest', 'register_twin', 'register_twins', 'unknown', 'whole_network_cfg']

PREFIX = 'stn_'
default_cfgs: dict[str, DefaultCfg] = {}  # read by timm's register_model


def register_twin(arch: str) -> Callable[..., nn.Module]:
    """Register ``stn_<arch>`` with timm, and ``stn_<arch>.<tag>`` for each of its pretrained tags.

    Args:
        arch: Name of an architecture that timm knows.

    Returns:
        The entry point.

    Raises:
        ValueError: timm knows no such architecture.
    """
    if not timm.is_model(arch) or '.' in arch or arch.startswith(PREFIX):
        raise ValueError(
            f'arch must be an architecture registered with timm, without a tag, and not an stn_ name; got {arch!r}.')
    name = PREFIX + arch

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from .build import build_network  # imported late: it loads all network code
        return build_network(name, arch, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    entry.__doc__ = f'{arch} with spatial transformers.'
    globals()[name] = entry
    cfgs = _twin_cfgs(arch)
    if cfgs.cfgs:
        default_cfgs[name] = cfgs
    return register_model(entry)


def register_twins() -> None:
    """Register the twins of all architectures registered with timm so far."""
    for arch in list_models():
        if not arch.startswith(PREFIX):
            register_twin(arch)


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that there is not."""
    near = get_close_matches(name, names, 3, cutoff=0.5)
    return f', the nearest are {", ".join(near)}' if near else ''


def unknown(name: str) -> str:
    """What is wrong with the name of a model, and what it may have meant; empty where timm makes it."""
    arch, tag = split_model_name_tag(name)
    if not timm.is_model(arch):
        return f'unknown model {name!r}{nearest(arch, list_models())}; see `timm-stn list`'
    names = get_arch_pretrained_cfgs(arch)
    if tag and names and name not in names:
        return f'unknown weights {tag!r} of {arch}; there are {", ".join(names)}'
    return ''


def whole_network_cfg(cfg: PretrainedCfg) -> PretrainedCfg:
    """A backbone's pretrained cfg with the parameter names of the whole network."""
    return replace(cfg, classifier=prefixed(cfg.classifier), first_conv=prefixed(cfg.first_conv))


def _twin_cfgs(arch: str) -> DefaultCfg:
    cfgs = {split_model_name_tag(k)[1]: whole_network_cfg(v) for k, v in get_arch_pretrained_cfgs(arch).items()}
    out = DefaultCfg(cfgs=cfgs, is_pretrained=any(c.has_weights for c in cfgs.values()))
    out.tags.extend(cfgs)
    return out
