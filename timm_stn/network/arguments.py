"""The flat, JSON-able ``stn_`` arguments: those of a network, and what they come to for each of its transformers."""
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, cast

from ..geometry.sizes import Kind, are_sides, as_sides, plain
from ..geometry.transforms import get_transform
from ..modules.localization import Source, parse_source
from ..modules.poses import Poses
from ..modules.settings import (
    ANY,
    BOOL,
    FIELDS,
    POSITIVE_INTEGER,
    SHARE,
    TransformerSettings,
    argument,
    check_kind,
    one_of,
)

__all__ = [
    'DEFAULTS', 'InputTransformer', 'StnArguments', 'argument_table', 'hint', 'split_arguments',
    'stn_arguments']

INPUT = 'input'
RESOLVED = 'resolved'  # among a stage's settings: what its defaults came to
STAGES, CHARACTERS = 128, 200  # at most, so that no config.json makes a network that exhausts memory or time
IMAGE_SIZE = Kind(
    lambda value: value is None or are_sides(as_sides(value), 2), 'a positive integer, or two of them (height, width)')
STAGES_TAKE = "stn_stages takes 'input', feature indices or module names, got {!r}."


@dataclass(frozen=True)
class InputTransformer:
    """The transformer that warps the input, after all that decides where its theta comes from."""
    stage: int | str  # its name among ``stn_stages``
    settings: TransformerSettings  # whose ``localization`` is a network by itself
    features_of: int | str | None = None  # stage of the backbone whose features that network sees; None: it sees images
    learns: bool = False  # gradients of theta reach the backbone (Finnveden et al. 2020)
    is_salient: bool = False  # glimpses start where those features respond
    poses: Poses | None = None  # it looks through the one in which the network is most certain


@dataclass(frozen=True)
class StnArguments:
    """Checked ``stn_`` arguments, without prefix; see :func:`stn_arguments`.

    ``stages`` has each stage's own settings, ``resolved`` what its defaults came to, ``transformers`` the settings of
    all transformers where a stage has none of its own.
    """
    stages: Mapping[int | str, Mapping[str, object]] = argument(
        (INPUT,), ANY,
        "any of `'input'`, feature indices (negative too), module names; or a mapping from stage to settings that "
        'override the other arguments (as JSON: `[[stage, settings], ...]`)')
    glimpses: int = argument(
        1, POSITIVE_INTEGER,
        'number of parallel transformers on the input; each feeds one stream through the backbone', most=64)
    towers: str = argument(
        'shared', one_of('shared', 'separate'),
        'all streams share one backbone (`shared`), or each has its own (`separate`)')
    join: str = argument(
        'mean', one_of('mean', 'concat', 'channels'),
        "`mean`: average the streams' logits, with the backbone's own kind of classifier; `concat`: concatenate their "
        "features, as in the paper's birds network, before a linear classifier; `channels`: one stream, an image with "
        "the channels of all glimpses, as in the paper's addition of digits; their localization network must be one of "
        "its own, as `conv`")
    whole: bool = argument(
        False, BOOL,
        'adds the whole image, shrunk to `stn_size`, as a first stream; if its features also tell where to look '
        '(`shared:`, `saliency:`), evaluation computes them once')
    size: int | Sequence[int] | None = argument(
        None, IMAGE_SIZE,
        'output size of the input transformer; the backbone is built for it', most=8192, shown='as the input')
    stream_drop: float = argument(
        0.0, SHARE,
        'in training, the share of images that one stream, drawn at random, answers alone, so that each learns to')
    target: str = argument(
        'stage', one_of('stage', 'input'),
        '`stage`: warp the features; `input`: regress theta from the features and warp the input (Finnveden et al. '
        '2020)')
    transformers: Mapping[str, object] = field(default_factory=dict)
    resolved: Mapping[int | str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, f in NETWORK.items():
            check_kind(f'stn_{name}', getattr(self, name), f.metadata['kind'])
        if self.input_stage is None:
            for name in ('glimpses', 'size', 'towers', 'join', 'whole', 'stream_drop'):
                value = getattr(self, name)
                if value != DEFAULTS[f'stn_{name}']:
                    raise ValueError(f"stn_{name}={value!r} needs 'input' in stn_stages, got {list(self.stages)}.")
        self._check_stacked()
        if self.stream_drop and self.streams == 1:
            raise ValueError(f'stn_stream_drop={self.stream_drop!r} needs several streams: stn_glimpses above 1, or '
                             'stn_whole=True.')
        if self.target == INPUT and (len(self.stages) != 1 or INPUT in self.stages):
            raise ValueError(f"stn_target='input' takes one feature stage in stn_stages, got {list(self.stages)}.")
        for stage in self.stages:
            source = self.source(stage)
            if stage != INPUT and source.needs_network:
                of = '<stage>' if source.on_features else '<n>'
                raise ValueError(f"stn_localization='{source.kind}:{of}' is for the input, not for stage {stage!r}.")

    def _check_stacked(self) -> None:
        if self.stacked == 1:
            return
        if self.stream_drop:
            raise ValueError(f'stn_stream_drop={self.stream_drop!r} needs several streams, and '
                             "stn_join='channels' makes one.")
        if self.towers != 'shared':
            raise ValueError(f"stn_join='channels' needs stn_towers='shared', for there is one stream; "
                             f'got {self.towers!r}.')
        if self.asks_backbone or self.source(INPUT).needs_network:
            asks = "stn_target='input'" if self.target == INPUT else ''
            asks = asks or f'stn_localization={self.settings(INPUT).localization!r}'
            raise ValueError("stn_join='channels': the backbone takes all glimpses at once, and cannot see the image "
                             f"to tell where to look; {asks} asks it: use stn_localization='conv', or another network.")

    @property
    def images(self) -> int:
        """Number of images that are made of each input: the glimpses, and the whole."""
        return self.glimpses + bool(self.whole)

    @property
    def stacked(self) -> int:
        """Number of images that the backbone sees as one, side by side in its channels."""
        return self.images if self.join == 'channels' else 1

    @property
    def streams(self) -> int:
        """Number of images that the backbone sees of each input."""
        return self.images // self.stacked

    @property
    def input_stage(self) -> int | str | None:
        """The stage whose transformer warps the input; None where there is none."""
        if self.target == INPUT:
            return next(iter(self.stages))
        return INPUT if INPUT in self.stages else None

    @property
    def feature_stages(self) -> list[int | str]:
        """The stages whose transformers warp features."""
        return [stage for stage in self.stages if stage != self.input_stage]

    @property
    def asks_backbone(self) -> bool:
        """theta of the input comes from the backbone's own features."""
        on_features = INPUT in self.stages and self.source(INPUT).on_features
        return self.target == INPUT or on_features or self.wants_saliency

    @property
    def wants_saliency(self) -> bool:
        """``auto`` stands for ``saliency:<stage>`` for glimpses, or to zoom, where the backbone has such a stage."""
        if INPUT not in self.stages or self.source(INPUT).kind != 'auto':
            return False
        settings = self.settings(INPUT)
        return settings.scales[0] < 1 or get_transform(settings.transform).has_density

    @property
    def json(self) -> dict[str, object]:
        """All arguments as JSON stores them."""
        stages = [
            [stage, {**own, **({RESOLVED: dict(self.resolved[stage])} if self.resolved.get(stage) else {})}]
            for stage, own in self.stages.items()]
        network = {name: getattr(self, name) for name in NETWORK}
        values = {f'stn_{name}': _plain(value) for name, value in {**network, **self.transformers}.items()}
        return deepcopy({**values, 'stn_stages': stages})

    def source(self, stage: int | str) -> Source:
        """What regresses the theta of a stage's transformer."""
        return parse_source(self.settings(stage).localization)

    def settings(self, stage: int | str) -> TransformerSettings:
        """What a stage's transformer is made with: what all have, overridden by the stage's own.

        What a stage's defaults came to counts where there is still a default.

        Raises:
            ValueError: A value is not accepted.
        """
        common = dict(self.transformers)
        if stage != self.input_stage:
            common.update({name: FIELDS[name].default for name in ('scale', 'jitter')})  # of glimpses of the image
        resolved = {k: v for k, v in self.resolved.get(stage, {}).items() if common[k] == FIELDS[k].default}
        try:
            return TransformerSettings(**cast('dict[str, Any]', {**common, **resolved, **self.stages[stage]}))
        except ValueError as error:
            name = str(error).partition(' ')[0]
            own = f'stn_stages: stage {stage!r}: ' if name in self.stages[stage] else 'stn_'
            raise ValueError(f'{own}{error}') from None

    def input_transformer(self) -> InputTransformer | None:
        """What the transformer of the input is made with; ``stn_target='input'`` is one on features that learns."""
        stage = self.input_stage
        if stage is None:
            return None
        settings, source = self.settings(stage), self.source(stage)
        if isinstance(settings.scale, (list, tuple)) and source.kind != 'saliency':
            raise ValueError(f"stn_scale={settings.scale!r}: two numbers need stn_localization='saliency:<stage>', "
                             f'got {settings.localization!r}.')
        if self.target == INPUT:
            return InputTransformer(stage, settings, features_of=stage, learns=True)
        if source.on_features:
            settings, of = replace(settings, localization='moments'), _stage(source.of)
            return InputTransformer(stage, settings, features_of=of, is_salient=source.kind == 'saliency')
        if source.poses is not None:
            self._check_search(settings)
            return InputTransformer(stage, settings, poses=source.poses)
        return InputTransformer(stage, settings)

    def _check_search(self, settings: TransformerSettings) -> None:
        needed = {
            'stn_scale=1': settings.scales == (1, 1), 'stn_glimpses=1': self.glimpses == 1,
            'stn_iterations=1': settings.iterations == 1, "stn_join='mean'": self.join == 'mean',
            "stn_towers='shared'": self.towers == 'shared',
            'stn_bound not to be True': settings.bound is not True,
            'stn_transform with a matrix': get_transform(settings.transform).linear}
        for name, is_so in needed.items():
            if not is_so:
                raise ValueError(f'stn_localization={settings.localization!r}, a search for the pose, needs {name}.')

    def resolve(self, stage: int | str, **settings: object) -> 'StnArguments':
        """These, and what a stage's defaults came to, so that they mean the same whatever the defaults of tomorrow."""
        found = {name: _plain(value) for name, value in settings.items()}
        if len(self.stages) == 1 and not self.stages[stage] and not self.resolved.get(stage):
            return replace(self, transformers={**self.transformers, **found})
        return replace(self, resolved={**self.resolved, stage: {**self.resolved.get(stage, {}), **found}})


NETWORK: dict[str, Field] = {f.name: f for f in fields(StnArguments) if f.metadata}
ARGUMENTS: dict[str, Field] = {f'stn_{name}': f for name, f in {**NETWORK, **FIELDS}.items()}
DEFAULTS: dict[str, object] = {name: f.default for name, f in ARGUMENTS.items()}


def stn_arguments(**given: object) -> StnArguments:
    """Check ``stn_`` arguments.

    Args:
        **given: Any of ``DEFAULTS``; None means the default.

    Raises:
        TypeError: An argument is unknown.
        ValueError: A value is not accepted; the message names argument, value and what is accepted.
    """
    split_arguments(given)
    values = {**DEFAULTS, **{k: plain(v) for k, v in given.items() if v is not None}}
    for name, value in values.items():
        _check_most(name, value, ARGUMENTS[name].metadata['most'])
    stages, resolved = _parse_stages(values.pop('stn_stages'))
    network = cast('dict[str, Any]', {name: values[f'stn_{name}'] for name in NETWORK if name != 'stages'})
    return StnArguments(stages, **network, transformers={n: values[f'stn_{n}'] for n in FIELDS}, resolved=resolved)


def split_arguments(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments to (those that start with ``stn_``, the others).

    Raises:
        TypeError: A ``stn_`` argument is unknown; the message has the nearest valid one.
    """
    ours = {k: v for k, v in kwargs.items() if k.startswith('stn_')}
    for key in ours:
        if key not in DEFAULTS:
            raise TypeError(f'unknown argument {key!r}.{hint(key, DEFAULTS)}')
    return ours, {k: v for k, v in kwargs.items() if k not in ours}


def argument_table() -> str:
    """The table of arguments, in Markdown."""
    rows = ['| argument | default | values |', '| --- | --- | --- |']
    for name, f in ARGUMENTS.items():
        shown = f.metadata['shown'] or f'`{f.default!r}`'
        rows.append(f"| `{name}` | {shown} | {f.metadata['meaning']} |")
    return '\n'.join(rows)


Stages = dict[int | str, dict[str, object]]


def _parse_stages(stages: object) -> tuple[Stages, Stages]:
    """Stages with their own settings, and with what their defaults came to."""
    if isinstance(stages, (str, int)):
        stages = (stages,)
    if not isinstance(stages, Iterable):
        raise ValueError(STAGES_TAKE.format(stages))
    pairs = stages.items() if isinstance(stages, Mapping) else [_pair(s) for s in stages]
    if len(pairs) > STAGES:
        raise ValueError(f'stn_stages takes at most {STAGES} stages, got {len(pairs)}.')
    found: Stages = {}
    resolved: Stages = {}
    for given, settings in pairs:
        stage = _stage(given)
        if stage in found:
            raise ValueError(f'stn_stages names {stage!r} twice.')
        found[stage], resolved[stage] = _split_settings(stage, settings)
    if not found:
        raise ValueError("stn_stages is empty; it takes 'input', feature indices or module names.")
    return found, {stage: settings for stage, settings in resolved.items() if settings}


def _pair(entry: object) -> tuple[object, object]:
    if isinstance(entry, (list, tuple)):
        if len(entry) != 2:
            raise ValueError(f'stn_stages takes stages or [stage, settings] pairs, got {entry!r}.')
        return entry[0], entry[1]
    return entry, {}


def _stage(stage: object) -> int | str:
    """A stage as it is named inside: an index, also where it came as text, or a module's name."""
    if isinstance(stage, bool) or not isinstance(stage, (int, str)):
        raise ValueError(STAGES_TAKE.format(stage))
    _check_most('stn_stages: the name of a stage', stage, None)
    return int(stage) if isinstance(stage, str) and re.fullmatch(r'-?\d+', stage) else stage


def _split_settings(stage: int | str, settings: object) -> tuple[dict[str, object], dict[str, object]]:
    if not isinstance(settings, Mapping | None):
        raise ValueError(f'stn_stages takes stages or [stage, settings] pairs, got [{stage!r}, {settings!r}].')
    own = dict(settings or {})
    resolved = own.pop(RESOLVED, {})
    if not isinstance(resolved, Mapping):
        raise ValueError(f'stn_stages: {RESOLVED} of stage {stage!r} must have settings, got {resolved!r}.')
    for key, value in (*own.items(), *resolved.items()):
        if key not in FIELDS:
            raise TypeError(f'stn_stages: unknown setting {key!r} of stage {stage!r}.{hint(key, FIELDS)}')
        _check_most(f'stn_stages: {key} of stage {stage!r}', value, FIELDS[key].metadata['most'])
    return own, dict(resolved)


def _check_most(name: str, value: object, most: float | None) -> None:
    """Only what is too much; types are checked with the settings of each stage."""
    if isinstance(value, str) and len(value) > CHARACTERS:
        raise ValueError(f'{name} must have at most {CHARACTERS} characters, got {len(value)}: {value[:40]!r} ...')
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(n, (int, float)) and n > (math.inf if most is None else most) for n in numbers):
        raise ValueError(f'{name} must be at most {most}, got {value!r}.')


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def hint(key: object, accepted: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, and all that are accepted."""
    near, = get_close_matches(str(key), accepted, 1, cutoff=0)
    return f" Did you mean {near!r}? Accepted: {', '.join(accepted)}."
