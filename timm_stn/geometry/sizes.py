"""Sides and counts, as arguments give them: one number or several."""
from collections.abc import Sequence
from typing import Any

__all__ = ['are_sides', 'as_sides', 'is_count']


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def are_sides(value: Any, ndim: int) -> bool:
    return isinstance(value, Sequence) and len(value) == ndim and all(is_count(side) for side in value)


def as_sides(size: Any, ndim: int = 2) -> Any:
    """One side for all axes as `ndim` of them, several as a tuple; what is neither as it is."""
    if isinstance(size, int):
        return (size,) * ndim
    return tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else size
