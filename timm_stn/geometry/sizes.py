"""Sides, counts and numbers as arguments give them: those of numpy and torch are as good as Python's own."""
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grid import has_values

__all__ = ['Kind', 'are_numbers', 'are_sides', 'as_sides', 'is_count', 'is_number', 'plain', 'sides_of']


class Kind(NamedTuple):
    """The values that an argument, or a field of a config, may have."""
    accepts: Callable[[Any], bool]
    accepted: str  # as errors name them


def plain(value: Any) -> Any:
    """Numbers of numpy and torch, and arrays of them, as Python's own, also within lists, tuples and mappings.

    Other sequences and mappings, as configs have them, become lists and dicts; all else stays what it is.
    """
    if isinstance(value, int) or (isinstance(value, Tensor) and (value.is_meta or not has_values(value))):
        return value
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(map(plain, value)) if isinstance(value, tuple) else [plain(v) for v in value]
    return value


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: Any) -> bool:
    """Whether a value is finite; True and False count as 1 and 0, as Python has it."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def are_numbers(value: Any) -> bool:
    """Whether a value is a finite number, or a list or tuple of some, or of such lists."""
    return all(map(are_numbers, value)) and bool(value) if isinstance(value, (list, tuple)) else is_number(value)


def are_sides(value: Any, ndim: int) -> bool:
    return isinstance(value, Sequence) and len(value) == ndim and all(is_count(side) for side in value)


def as_sides(size: Any, ndim: int = 2) -> Any:
    """One side, of all axes, as a tuple of `ndim`; a sequence as a tuple; what is neither as it is."""
    if not isinstance(size, torch.Size):  # whose sides may be unknown, in traced programs
        size = plain(size)
    if isinstance(size, int):
        return (size,) * ndim
    return tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else size


def sides_of(size: Any, ndim: int, name: str) -> tuple[int, ...]:
    """One side or `ndim` of them as a tuple of `ndim`.

    Raises:
        ValueError: `size` is neither; the message starts with `name`.
    """
    sides = as_sides(size, ndim)
    if not are_sides(sides, ndim):
        raise ValueError(f'{name} must be {ndim} positive integers, or one, got {size!r}.')
    return tuple(sides)
