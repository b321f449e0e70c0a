"""The flat, JSON-able ``stn_`` arguments: their defaults, their checks, and what each stage makes of them."""
import math
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from ..geometry.sizes import are_sides

__all__ = ['DEFAULTS', 'StnArguments', 'scales_of', 'split_arguments']

DEFAULTS: dict[str, Any] = dict(
    stn_stages=('input',),
    stn_transform='affine',
    stn_glimpses=1,
    stn_towers='shared',
    stn_join='mean',
    stn_whole=False,
    stn_scale=1.0,
    stn_bound='auto',
    stn_size=None,
    stn_localization='auto',
    stn_localization_size=None,
    stn_target='stage',
    stn_iterations=1,
    stn_mode='bilinear',
    stn_padding_mode='border',
    stn_fill=None,
    stn_antialias=False,
    stn_lr_scale=10.0,
    stn_penalty=0.0,
    stn_freeze_steps=0,
)
NETWORK = ('stages', 'glimpses', 'towers', 'join', 'whole', 'size', 'target')  # of the network, not of one stage
RESOLVED = 'resolved'  # among a stage's settings: what its defaults came to
FROM_FEATURES = ('saliency:', 'shared:')  # localization networks on the backbone's own features
CHOICES = dict(
    stn_towers=('shared', 'separate'), stn_join=('mean', 'concat'), stn_whole=(False, True),
    stn_target=('stage', 'input'),
)
# Upper limits, so that no value from a config.json makes a network that exhausts memory or time.
MOST = dict(glimpses=64, scale=1e6, size=8192, localization_size=1024, iterations=64, freeze_steps=2 ** 53)
STAGES, CHARACTERS = 128, 200


def split_arguments(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments to (those that start with ``stn_``, the others).

    Raises:
        TypeError: A ``stn_`` argument is unknown; the message has the nearest valid one.
    """
    ours = {k: v for k, v in kwargs.items() if k.startswith('stn_')}
    for key in ours:
        if key not in DEFAULTS:
            raise TypeError(f'unknown argument {key!r}.{_hint(key, DEFAULTS)}')
    return ours, {k: v for k, v in kwargs.items() if k not in ours}


class StnArguments:
    """Resolved ``stn_`` arguments.

    Args:
        **given: Any of ``DEFAULTS``; None means the default.

    Raises:
        TypeError: An argument is unknown.
        ValueError: A value is not accepted; the message names argument, value and what is accepted.
    """

    def __init__(self, **given: Any) -> None:
        split_arguments(given)
        self.values = {**DEFAULTS, **{k: v for k, v in given.items() if v is not None}}
        for key, accepted in CHOICES.items():
            if self.values[key] not in accepted:
                raise ValueError(f'{key} must be one of {accepted}, got {self.values[key]!r}.')
        for key, value in self.values.items():
            _check_most(key, value, key[4:])
        self.stages = _parse_stages(self.values['stn_stages'])
        self.values['stn_stages'] = [[stage, settings] for stage, settings in self.stages.items()]
        self._check_together()

    def _check_together(self) -> None:
        glimpses = self.values['stn_glimpses']
        if not isinstance(glimpses, int) or isinstance(glimpses, bool) or glimpses < 1:
            raise ValueError(f'stn_glimpses must be a positive integer, got {glimpses!r}.')
        size = self.values['stn_size']
        if size is not None and not are_sides((size, size) if isinstance(size, int) else size, 2):
            raise ValueError(f'stn_size must be a positive integer, or two of them (height, width), got {size!r}.')
        if 'input' not in self.stages and not self.to_input:
            for key in ('stn_glimpses', 'stn_size', 'stn_towers', 'stn_join', 'stn_whole'):
                value = self.values[key]
                if value != DEFAULTS[key]:
                    raise ValueError(f"{key}={value!r} needs 'input' in stn_stages, got {list(self.stages)}.")
        if self.to_input and (len(self.stages) != 1 or 'input' in self.stages):
            raise ValueError(f"stn_target='input' takes one feature stage in stn_stages, got {list(self.stages)}.")
        stages = [s for s in self.stages if s != 'input']
        for stage in stages:
            kind = str(self.settings(stage)['localization'])
            if kind.startswith(FROM_FEATURES):
                name = kind.split(':')[0]
                raise ValueError(f"stn_localization='{name}:<stage>' is for the input, not for stage {stage!r}.")

    @property
    def streams(self) -> int:
        """Number of images that the backbone sees of each input: the glimpses, and the whole."""
        return int(self.values['stn_glimpses']) + bool(self.values['stn_whole'])

    @property
    def to_input(self) -> bool:
        return bool(self.values['stn_target'] == 'input')

    @property
    def shared(self) -> bool:
        """theta comes from the backbone's own features."""
        kinds = [str(self.settings(stage)['localization']) for stage in self.stages]
        return self.to_input or any(kind.startswith(FROM_FEATURES) for kind in kinds) or self.wants_saliency('input')

    def wants_saliency(self, stage: int | str) -> bool:
        """``auto`` stands for ``saliency:<stage>`` for glimpses of the image, where the backbone has such a stage."""
        if stage != 'input' or stage not in self.stages:
            return False
        settings = self.settings(stage)
        return settings['localization'] == 'auto' and scales_of(settings['scale'])[0] < 1

    @property
    def json(self) -> dict[str, Any]:
        """All arguments as JSON stores them."""
        return {k: list(v) if isinstance(v, tuple) else deepcopy(v) for k, v in self.values.items()}

    def settings(self, stage: int | str) -> dict[str, Any]:
        """What one stage's transformer is made with: the arguments without prefix, overridden by the stage's own.

        What a stage's defaults came to counts where there is still a default.
        """
        flat = {k[4:]: v for k, v in self.values.items() if k[4:] not in NETWORK}
        if stage != 'input' and not self.to_input:
            flat['scale'] = DEFAULTS['stn_scale']  # stn_scale is that of glimpses of the image
        own = self.stages[stage]
        resolved = {k: v for k, v in own.get(RESOLVED, {}).items() if flat[k] == DEFAULTS[f'stn_{k}']}
        return {**flat, **resolved, **{k: v for k, v in own.items() if k != RESOLVED}}

    def resolve(self, stage: int | str, **settings: Any) -> None:
        """Record what a stage's defaults came to, so that they mean the same whatever the defaults of tomorrow."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
        if len(self.stages) > 1 or self.stages[stage]:
            self.stages[stage].setdefault(RESOLVED, {}).update(plain)
        else:
            self.values.update({f'stn_{k}': v for k, v in plain.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__['values']['stn_' + name]
        except KeyError:
            raise AttributeError(name) from None


def scales_of(scale: Any) -> tuple[float, float]:
    """Least and largest base scale of glimpses, from one number or two.

    Raises:
        ValueError: ``scale`` is neither.
    """
    pair = scale if isinstance(scale, (list, tuple)) else (scale, scale)
    numbers = len(pair) == 2 and all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in pair)
    if not numbers or not 0 < pair[0] <= pair[1] < math.inf:
        raise ValueError(f'stn_scale must be a positive number, or two, least and largest, got {scale!r}.')
    return float(pair[0]), float(pair[1])


def _parse_stages(stages: Any) -> dict[int | str, dict[str, Any]]:
    if isinstance(stages, (str, int)):
        stages = (stages,)
    if not isinstance(stages, Iterable):
        raise ValueError(f"stn_stages takes 'input', feature indices or module names, got {stages!r}.")
    pairs = stages.items() if isinstance(stages, Mapping) else [_pair(s) for s in stages]
    if len(pairs) > STAGES:
        raise ValueError(f'stn_stages takes at most {STAGES} stages, got {len(pairs)}.')
    out: dict[int | str, dict[str, Any]] = {}
    for stage, settings in pairs:
        stage = _stage(stage)
        if stage in out:
            raise ValueError(f'stn_stages names {stage!r} twice.')
        out[stage] = _check_settings(stage, settings)
    if not out:
        raise ValueError("stn_stages is empty; it takes 'input', feature indices or module names.")
    return out


def _pair(entry: Any) -> tuple[Any, Any]:
    if isinstance(entry, (list, tuple)):
        if len(entry) != 2:
            raise ValueError(f'stn_stages takes stages or [stage, settings] pairs, got {entry!r}.')
        return entry[0], entry[1]
    return entry, {}


def _stage(stage: Any) -> int | str:
    if isinstance(stage, bool) or not isinstance(stage, (int, str)):
        raise ValueError(f"stn_stages takes 'input', feature indices or module names, got {stage!r}.")
    _check_most('stn_stages: the name of a stage', stage, '')
    return int(stage) if isinstance(stage, str) and re.fullmatch(r'-?\d+', stage) else stage


def _check_most(name: str, value: Any, key: str) -> None:
    """Only what is too much: types are checked where values are used."""
    if isinstance(value, str) and len(value) > CHARACTERS:
        raise ValueError(f'{name} must have at most {CHARACTERS} characters, got {len(value)}: {value[:40]!r} ...')
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(n, (int, float)) and n > MOST.get(key, math.inf) for n in numbers):
        raise ValueError(f'{name} must be at most {MOST[key]}, got {value!r}.')


def _check_settings(stage: int | str, settings: Any) -> dict[str, Any]:
    accepted = [k[4:] for k in DEFAULTS if k[4:] not in NETWORK]
    if not isinstance(settings, Mapping | None):
        raise ValueError(f'stn_stages takes stages or [stage, settings] pairs, got [{stage!r}, {settings!r}].')
    own = dict(settings or {})
    resolved = own.pop(RESOLVED, {})
    if not isinstance(resolved, Mapping):
        raise ValueError(f'stn_stages: {RESOLVED} of stage {stage!r} must have settings, got {resolved!r}.')
    for key, value in (*own.items(), *resolved.items()):
        if key not in accepted:
            raise TypeError(f'stn_stages: unknown setting {key!r} of stage {stage!r}.{_hint(key, accepted)}')
        _check_most(f'stn_stages: {key} of stage {stage!r}', value, key)
    return {**own, RESOLVED: dict(resolved)} if resolved else own


def _hint(key: Any, accepted: Iterable[str]) -> str:
    near, = get_close_matches(str(key), accepted, 1, cutoff=0)
    return f" Did you mean {near!r}? Accepted: {', '.join(accepted)}."
