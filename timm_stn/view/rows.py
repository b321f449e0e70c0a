"""Rows of looks as one picture: an image in each, and what each network made of it."""
from collections.abc import Collection, Iterable, Sequence

from PIL import Image

from .caption import SCALE
from .draw import draw_panels, reach_of
from .gallery import Sight, Viewed
from .lattice import border, lines
from .sheet import TILE
from .tiles import draw_outlines, framed

__all__ = ['picture_of_rows', 'reach_of_all', 'tiles_of', 'told_of']

UNTRAINED = 'Nothing was trained to look in {} ({}), and its answer is that of the plain model, of the whole image.'
KINDS = {
    'grid': 'Thin lines: the sampling grid, nine by nine.', 'boxes': 'White: true boxes.',
    'masks': 'Tinted: true masks.'}


def picture_of_rows(
        rows: Sequence[Sequence[Sight]],
        viewed: Sequence[Viewed],
        told: Sequence[str],
        grid: bool = False,
) -> Image.Image:
    """One picture of all images: a row for each, with what each network made of it.

    Args:
        rows: For each image the sights of the networks.
        viewed: The networks.
        told: Sentences for the footer.
        grid: Draw the lines of the sampling grids, too.
    """
    first, reaches = rows[0], [reach_of_all(column) for column in zip(*rows)]
    drawn = ([tiles_of(sight, TILE * SCALE, reach, grid) for sight, reach in zip(row, reaches)] for row in rows)
    return draw_panels(
        drawn, [[sight.caption for sight in row] for row in rows], [sight.titles for sight in first],
        [len(sight.seen) for sight in first], [v.name for v in viewed] if len(viewed) > 1 else (), ' '.join(told), TILE)


def told_of(row: Sequence[Sight], viewed: Sequence[Viewed], shown: Collection[str] = ()) -> list[str]:
    """Sentences that explain what is drawn.

    Args:
        row: What each network made of one image.
        viewed: The networks.
        shown: What else is drawn: ``grid``, ``boxes``, ``masks``.
    """
    alike = len({sight.told for sight in row}) == 1 < len(row)
    told = [row[0].told[0].upper() + row[0].told[1:]] if alike else [
        f'{v.name}: {sight.told}' for v, sight in zip(viewed, row)]
    untrained = [UNTRAINED.format(v.name, v.way) for v in viewed if v.way]
    return [*told, *untrained, *(text for kind, text in KINDS.items() if kind in shown)]


def reach_of_all(sights: Iterable[Sight]) -> float:
    """The largest coordinate that all their tiles are to show."""
    return reach_of(border(sight.lattice) for sight in sights)


def tiles_of(sight: Sight, side: int, reach: float, grid: bool = False) -> list[Image.Image]:
    """The tiles of a look: the input with all that is drawn on it, and what was seen.

    Args:
        sight: The look.
        side: Pixels of each tile.
        reach: The largest coordinate that is shown.
        grid: Draw the lines of the sampling grid, too.
    """
    bent = lines(sight.lattice) if grid else None
    tiles = [draw_outlines(sight.image, border(sight.lattice), side, reach, sight.boxes, bent)]
    for picture, g in zip(sight.seen, sight.frames):
        tiles.append(framed(picture, side, g, sight.boxes, None if g is None else sight.lattice[g]))
    return tiles
