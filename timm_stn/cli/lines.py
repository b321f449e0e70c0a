"""What `timm-stn show` says: a line of JSON for each image and network, and how many are right."""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..view.gallery import Sight, Viewed

__all__ = ['Said', 'count_of', 'said_of']


class Said(NamedTuple):
    """What is said of one image: the lines of JSON, for each network whether it is right (None: that is not known), and
    whether the network does not name the class of the image's folder."""
    lines: list[str]
    right: list[bool | None]
    unnamed: list[bool]


def said_of(path: Path, is_of_class: bool, viewed: Sequence[Viewed], row: Sequence[Sight]) -> Said:
    """What is said of an image; ``is_of_class``: it is in the folder of a class."""
    lines = [json.dumps(_line(path, v, sight, len(viewed) > 1)) for v, sight in zip(viewed, row, strict=True)]
    return Said(lines, [s.caption.right for s in row], [s.truth is None and is_of_class for s in row])


def _line(path: Path, viewed: Viewed, sight: Sight, several: bool) -> dict[str, Any]:
    (answer, probability), *_ = sight.caption.answers
    truth = sight.truth
    return {
        'file': str(path), **({'model': viewed.name} if several else {}), 'answer': answer,
        'probability': round(probability, 6),
        **({} if truth is None else {'class': viewed.classes.names[truth], 'right': sight.caption.right}),
        **({'as': viewed.way} if viewed.way else {}),
        'stage': sight.stage, 'theta': _numbers(sight.theta, 6), 'box': _numbers(sight.place, 2)}


def _numbers(values: Tensor, digits: int) -> Any:
    """Those of all glimpses as nested lists; of one glimpse, its own alone."""
    rounded = (values.double() * 10 ** digits).round() / 10 ** digits
    return (rounded[0] if len(rounded) == 1 else rounded).tolist()


def count_of(viewed: Sequence[Viewed], said: Sequence[Said], bad: int, left: int) -> str:
    """How many images there are, how many answers are right, how many files cannot be read or are not shown."""
    each = [_rights([s.right[k] for s in said], sum(s.unnamed[k] for s in said)) for k in range(len(viewed))]
    if len(viewed) > 1:
        each = [f'{v.name}: {rights}' for v, rights in zip(viewed, each) if rights]
    parts = (
        f'{len(said)} images', '; '.join(each), bad and f'{bad} skipped that cannot be read',
        left and f'{left} more not shown (--count)')
    return ', '.join(part for part in parts if part)


def _rights(right: Sequence[bool | None], unnamed: int) -> str:
    if not {True, False} & {*right}:
        return ''
    return f'{right.count(True)} right, {right.count(False)} wrong' + (
        f', {unnamed} of classes that the model does not name' if unnamed else '')
