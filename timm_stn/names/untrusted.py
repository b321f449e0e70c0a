"""Checks an untrusted config.json before a network is built from it, and bounds memory while it is built.

timm reads the file and passes ``pretrained_cfg`` and ``model_args`` to the entry point. A config must not say where
weights are: they are read only from the config's own repository or folder.
"""
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from reprlib import Repr
from typing import Any

import torch
from timm.models import PretrainedCfg
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..geometry.sizes import Kind, plain

__all__ = ['Budget', 'check_config', 'config_location']

LOCATION = {'hf-hub': 'hf_hub_id', 'local-dir': 'file'}  # set by timm, not by the config
ELSEWHERE = ('url', 'file', 'hf_hub_id', 'hf_hub_filename', 'state_dict')
RUNTIME = (  # arguments of timm's factory and of loading, which a config must not set
    'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_model_args', 'pretrained_sha256',
    'pretrained_strict', 'pretrained_filter_fn', 'pretrained_custom_load', 'checkpoint_path', 'cache_dir',
    'features_only', 'out_indices', 'feature_cls', 'feature_cfg', 'model_name', 'model_cls', 'model_cfg', 'variant',
    'kwargs_filter', 'pruned', 'scriptable', 'exportable', 'no_jit', 'device', 'dtype', 'name', 'base',
)
TYPED = ('features_only', 'out_indices', 'feature_cls', 'device', 'dtype')  # a user may add these to a config
DEPTH, VALUES, LENGTH = 7, 4096, 1000  # limits of model_args: nesting, number of values, characters of a string
LARGEST = 2 ** 20  # largest integer; stn_ arguments have their own limits
SIDE = 2 ** 13  # pixels of a side
SLACK = 2 ** 28  # elements allowed beyond four times those of the checkpoint: for more classes or channels
FACTORIES = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.linspace, torch.arange, torch.eye,
    Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full,
}
brief = Repr()
brief.maxlevel, brief.maxstring, brief.maxother, brief.maxlong = 2, 60, 60, 40


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high


def _list(of: Callable[[Any], bool], lengths: range) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (list, tuple)) and len(v) in lengths and all(map(of, v))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    parts = list(value.values()) if isinstance(value, Mapping) else value
    return _is_text(value) or (isinstance(parts, (list, tuple)) and all(map(_is_text, parts)))


TEXT = Kind(_is_text, 'a string')
TEXTS = Kind(_are_texts, 'a string, or strings in a list or an object')
SIZE = Kind(_list(_integer(1, SIDE), range(3, 4)), f'three integers (C, H, W) from 1 to {SIDE}')
POOL = Kind(_list(_integer(1, SIDE), range(1, 4)), f'up to three integers from 1 to {SIDE}')
CROP = Kind(_number(1e-3, 1e3), 'a number from 0.001 to 1000')
COLOR = Kind(_list(_number(-1e6, 1e6), range(1, SIDE)), 'a list of numbers from -1e6 to 1e6')
FIELDS = dict(
    architecture=TEXT, tag=TEXT, interpolation=TEXT, crop_mode=TEXT, license=TEXT, origin_url=TEXT, paper_name=TEXT,
    source=TEXT, description=TEXTS, paper_ids=TEXTS, notes=TEXTS, first_conv=TEXTS, classifier=TEXTS, label_names=TEXTS,
    label_descriptions=TEXTS, input_size=SIZE, test_input_size=SIZE, min_input_size=SIZE, pool_size=POOL,
    test_pool_size=POOL, crop_pct=CROP, test_crop_pct=CROP, mean=COLOR, std=COLOR,
    num_classes=Kind(_integer(-1, LARGEST), f'an integer from -1 to {LARGEST}'),
    label_offset=Kind(_integer(0, LARGEST), f'an integer from 0 to {LARGEST}'),
    fixed_input_size=Kind(lambda v: isinstance(v, bool), 'true or false'),
    custom_load=Kind(lambda v: isinstance(v, (bool, str)), 'true or false'),
)
MODEL_ARGS = dict(
    num_classes=Kind(_integer(0, LARGEST), f'an integer from 0 to {LARGEST}'),
    in_chans=Kind(_integer(1, SIDE), f'an integer from 1 to {SIDE}'),
    img_size=Kind(lambda v: _list(_integer(1, SIDE), range(2, 3))(v) or _integer(1, SIDE)(v),
                  f'a side or (height, width), each from 1 to {SIDE}'),
)


def config_location(cfg: Any) -> str | None:
    """The folder or Hub repository of the config.json that a pretrained cfg comes from; None for any other cfg."""
    if not isinstance(cfg, Mapping) or cfg.get('source') not in LOCATION:
        return None
    return ('hf-hub:' if cfg['source'] == 'hf-hub' else '') + str(cfg.get(LOCATION[cfg['source']]))


def check_config(
        cfg: Mapping[str, Any],
        model_args: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Raise unless a config.json holds only plain data within limits.

    Args:
        cfg: Its ``pretrained_cfg``, with the location that timm added.
        model_args: Its ``model_args``, if timm passes them separately from the user's arguments.
        kwargs: The arguments of the config and of the user together.

    Returns:
        The cfg without entries that could lead to other weights.

    Raises:
        ValueError: A value is not accepted; the message names file, key, value and the accepted values.
        TypeError: A key is not accepted.
    """
    where = f'{config_location(cfg)}/config.json'
    if not isinstance(model_args, Mapping | None):  # older timm passes the config's own value
        raise TypeError(f'{where}: arguments: pretrained_model_args is no argument of a network.')
    for name, args in (('model_args', model_args or {}), ('arguments', kwargs)):
        for key in args:
            if key in RUNTIME and (name == 'model_args' or key not in TYPED):
                raise TypeError(f'{where}: {name}: {key} is no argument of a network; only its user may give it.')
        _check_plain(where, name, args)
        _check_fields(where, name, args, MODEL_ARGS)
    _check_fields(where, 'pretrained_cfg', _check_keys(where, cfg), FIELDS)
    from ..network.arguments import stn_arguments  # with the layers that it names: only for a config
    try:
        stn_arguments(**{k: v for k, v in (model_args or {}).items() if k.startswith('stn_')})
    except (TypeError, ValueError) as error:
        raise type(error)(f'{where}: model_args: {error}') from error
    return {**cfg, 'custom_load': False}


def _check_keys(where: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that describe a network. Raises if another field is unknown to timm or points to weights."""
    allowed, known = LOCATION[cfg['source']], {f.name for f in fields(PretrainedCfg)}
    for key, value in cfg.items():
        if key in ELSEWHERE and key != allowed and value:
            raise ValueError(f'{where}: pretrained_cfg.{key} must not be set: weights are those beside the config; got '
                             f'{brief.repr(value)}.')
        if key not in known:
            raise TypeError(f'{where}: pretrained_cfg: unknown key {brief.repr(key)}. Accepted: {", ".join(FIELDS)}.')
    return {k: v for k, v in cfg.items() if k in FIELDS}


def _check_fields(where: str, name: str, given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    for key, kind in kinds.items():
        value = plain(given.get(key))
        if value is not None and not kind.accepts(value):
            raise ValueError(f'{where}: {name}.{key} must be {kind.accepted}; got {brief.repr(value)}.')


def _check_plain(where: str, name: str, args: Mapping[str, Any]) -> None:
    """Iterates instead of recursing, because of deep nesting. Types that JSON cannot hold come from the user."""
    for count, (path, value, depth) in enumerate(_values(name, args)):
        small = _integer(-LARGEST, LARGEST)(value) or isinstance(value, bool) or path.startswith(f'{name}.stn_')
        wrong = (
            f'is nested more than {DEPTH} deep' if depth > DEPTH else
            f'is value {count} of {VALUES} that are accepted' if count > VALUES else
            f'has more than {LENGTH} characters' if isinstance(value, str) and len(value) > LENGTH else
            f'must be from -{LARGEST} to {LARGEST}' if isinstance(value, int) and not small else
            'must be finite' if isinstance(value, float) and not math.isfinite(value) else '')
        if wrong:
            raise ValueError(f'{where}: {path} {wrong}; got {brief.repr(value)}.')


def _values(name: str, args: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(path, value, depth) of all keys and values in nested lists and dicts, the outermost first."""
    pending: list[tuple[str, Any, int]] = [(name, args, 0)]
    for path, value, depth in pending:  # grows
        yield path, value, depth
        if depth <= DEPTH:
            keys = list(value) if isinstance(value, Mapping) else []
            pairs = value.items() if keys else enumerate(value if isinstance(value, (list, tuple)) else ())
            pending += [(f'the name of a value in {path}', k, depth + 1) for k in keys]
            pending += [(f'{path}.{str(k)[:LENGTH]}', v, depth + 1) for k, v in pairs]


class Budget(TorchFunctionMode):
    """Context that limits the total elements of newly created tensors. A tensor beyond the limit is never allocated.

    Args:
        where: Location of the config, for the message.
        state_dict: The network's checkpoint, which sets the limit; None allows the largest of timm's networks.

    Raises:
        ValueError: The limit is exceeded.
    """

    def __init__(self, where: str, state_dict: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.where = where
        elements = None if state_dict is None else sum(int(v.numel()) for v in state_dict.values())
        self.elements = 2 ** 33 if elements is None else 4 * elements + SLACK
        self.tensors = 2 ** 20 if state_dict is None else 64 * len(state_dict) + 2 ** 16
        self.made = self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            self._charge(func(*args, **{**(kwargs or {}), 'device': 'meta', 'pin_memory': False}))
        return func(*args, **(kwargs or {}))

    def _charge(self, made: Tensor) -> None:
        self.made, self.count = self.made + made.numel(), self.count + 1
        for what, n, most in (('elements', self.made, self.elements), ('tensors', self.count, self.tensors)):
            if n > most:
                raise ValueError(
                    f'{self.where}: config.json asks for a network of more than {most} {what}, far beyond its weights.')
