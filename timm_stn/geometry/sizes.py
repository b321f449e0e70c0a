"""Sides, counts and numbers as arguments give them."""
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ['Kind', 'are_sides', 'as_sides', 'is_count', 'is_number', 'sides_of']


class Kind(NamedTuple):
    """The values that an argument, or a field of a config, may have."""
    accepts: Callable[[Any], bool]
    accepted: str  # as errors name them


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: Any) -> bool:
    """Whether a value is finite; True and False count as 1 and 0, as Python has it."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def are_sides(value: Any, ndim: int) -> bool:
    return isinstance(value, Sequence) and len(value) == ndim and all(is_count(side) for side in value)


def as_sides(size: Any, ndim: int = 2) -> Any:
    """One side, of all axes, as a tuple of `ndim`; a sequence as a tuple; what is neither as it is."""
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
