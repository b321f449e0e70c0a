"""Whose a parameter is, told by its name: the only file that knows how keys of a state dict begin.

| key | whose |
| --- | --- |
| ``backbone.*``, ``towers.<i>.*`` | a backbone's, under timm's own name |
| ``stn.*``, ``*.stn.*``, ``*_stn.*`` | a transformer's |
| ``classifier.*`` | the joined classifier's, over all streams |
"""
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

__all__ = [
    'CHILD', 'CLASSIFIER', 'as_tuple', 'base_name', 'is_classifiers', 'is_transformers', 'is_whole', 'pattern_here',
    'prefix_of', 'prefixed', 'split_backbone', 'unjoined', 'within_backbone']

CHILD = 'stn'
CLASSIFIER = 'classifier.'
IS_BACKBONE = r'(?:backbone|towers\.\d+)\.'
IS_TRANSFORMER = rf'(?:.*[._])?{CHILD}\.'


def is_transformers(key: str) -> bool:
    return re.match(IS_TRANSFORMER, key) is not None


def is_classifiers(key: str) -> bool:
    return key.startswith(CLASSIFIER)


def is_whole(keys: Iterable[str]) -> bool:
    """Whether these are keys of a whole network, not of a plain backbone."""
    return any(key.startswith('backbone.') for key in keys)


def prefix_of(tower: int) -> str:
    """What the keys of a stream's backbone begin with."""
    return f'towers.{tower}.' if tower else 'backbone.'


WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')


def base_name(key: str) -> str:
    """timm's own name of a backbone's parameter or module: ``fc.weight`` for ``backbone.fc.weight``.

    Empty for those of a transformer, and of one classifier over several streams. What DDP, FSDP, torch.compile and
    activation checkpointing put into names counts for nothing.

    Raises:
        TypeError: ``key`` is no text.
    """
    if not isinstance(key, str):
        raise TypeError(f'key must be the name of a parameter or module, got {key!r}')
    key = re.sub(r'^(module\.)+', '', '.'.join(part for part in key.split('.') if part not in WRAPPERS))
    match = re.match(IS_BACKBONE, key)
    return key[match.end():] if match and not is_transformers(key) else ''


def unjoined(key: str, classifier: str) -> str:
    """A key of an older checkpoint, whose classifier was behind the mean over streams: the backbone has it now."""
    return f'{prefix_of(0)}{classifier}.{key[len(CLASSIFIER):]}' if is_classifiers(key) else key


def within_backbone(key: str) -> str:
    """A key as the state dict of a backbone alone has it, transformers at stages included; empty for others."""
    match = re.match(IS_BACKBONE, key)
    return key[match.end():] if match else ''


def split_backbone(state_dict: dict[str, Tensor], tower: int) -> dict[str, Tensor]:
    """One backbone's part of a whole network's weights, under timm's own names."""
    prefix = prefix_of(tower)
    return {k[len(prefix):]: v for k, v in state_dict.items() if k.startswith(prefix) and not is_transformers(k)}


def prefixed(names: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    """Parameter names of the first backbone as they are here; None, a name or several."""
    if not names:
        return names if names is None or isinstance(names, str) else tuple(names)
    return prefix_of(0) + names if isinstance(names, str) else tuple(prefix_of(0) + n for n in names)


def pattern_here(pattern: Any) -> Any:
    """A regular expression over a backbone's names (or several, as timm's group matchers have them) over names here."""
    if isinstance(pattern, str):
        return rf'{IS_BACKBONE}(?!{IS_TRANSFORMER})(?:' + re.sub(r'(^|\||\()\^', r'\1', pattern) + ')'
    return [(pattern_here(p[0]), *p[1:]) for p in pattern] if pattern is not None else None


def as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names as a pretrained cfg has them (none, one or several) as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names or ())
