"""Families of spatial transforms: parameters -> matrix, grid, mapped points; identity, inverse and composition.

Conventions as in `timm_stn.geometry.grid`: a transform maps output coordinates to source coordinates, in xy(z) order,
in [-1, 1] with half-pixel centres. Zero parameters are the identity of every family.
"""
from difflib import get_close_matches
from typing import Any

from .affine import Affine, Affine3d, Projective
from .base import Transform
from .compose import chain
from .diffeomorphic import Diffeomorphic
from .linear import Attention, Rotation, ScaleTranslation, Similarity, Translation
from .matrix import compose_matrices, guard, invert_matrix, map_points_matrix, matrix_grid
from .tps import ThinPlateSpline
from .zoom import Zoom

__all__ = [
    'Transform',
    'compose_matrices',
    'get_transform',
    'guard',
    'invert_matrix',
    'map_points_matrix',
    'matrix_grid',
    'transform_names',
]

_FAMILIES: dict[str, type[Transform]] = {
    family.name: family for family in (
        Affine,
        Translation,
        Rotation,
        Attention,
        ScaleTranslation,
        Similarity,
        Projective,
        ThinPlateSpline,
        Diffeomorphic,
        Zoom,
        Affine3d,
    )
}


def transform_names() -> list[str]:
    """Names that `get_transform` accepts; `a+b` chains two of them."""
    return list(_FAMILIES)


def get_transform(transform: str | Transform, **settings: Any) -> Transform:
    """The transform with a given name.

    Args:
        transform: One of `transform_names`, with a lattice for the families that have one ('tps:5x5', rows x columns);
            or several joined by '+' ('affine+tps': an image is warped by affine, then the result by tps); or a
            `Transform`, which is returned unchanged.
        **settings: `lattice=(rows, columns)` for the families that have one.

    Raises:
        ValueError: The name is unknown, or the family does not accept the settings.
    """
    if isinstance(transform, Transform):
        if settings:
            raise ValueError(f'{transform!r} takes no settings any more, got {sorted(settings)}')
        return transform
    if not isinstance(transform, str):
        raise ValueError(f'transform must be a name, as in affine+tps, got {transform!r}')
    parts = [part.strip() for part in transform.split('+')]
    if '' in parts:
        raise ValueError(f"transform must be a name, or several joined by '+', as in affine+tps, got {transform!r}")
    if settings and len(parts) > 1:
        raise ValueError(f'settings go into the parts of {transform!r} (as in tps:5x5), got {sorted(settings)}')
    return chain([_single(part, settings) for part in parts])


def _single(text: str, settings: dict[str, Any]) -> Transform:
    name, _, lattice = text.partition(':')
    if name not in _FAMILIES:
        close = get_close_matches(name, _FAMILIES, n=1, cutoff=0)[0]
        raise ValueError(f'unknown transform {name!r}; did you mean {close!r}? Known: {", ".join(_FAMILIES)}')
    if lattice:
        settings = {'lattice': _lattice(text, lattice), **settings}
    try:
        return _FAMILIES[name](**settings)
    except TypeError:
        raise ValueError(f'{name!r} does not take the settings {settings}') from None


def _lattice(text: str, lattice: str) -> tuple[int, ...]:
    sides = lattice.split('x')
    if not all(side.isdecimal() for side in sides):
        raise ValueError(f'{text!r} must end in rows x columns, as in tps:5x5')
    return tuple(int(side) for side in sides)
