"""The answers of a network as they are written in its pictures. Lengths are units of the layout: 1 / SCALE pixels."""
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import ImageDraw, ImageFont

__all__ = [
    'FAINT', 'GOOD', 'INK', 'RULE', 'SCALE', 'WRONG', 'Caption', 'draw_caption', 'percent', 'width_of', 'wrap',
    'write']

INK, FAINT, RULE = '#1F2430', '#70788A', '#E4E7EC'
GOOD, WRONG = '#138A4B', '#D0312D'
SCALE = 2  # pixels of the picture for each unit of its layout
WIDEST = 320


class Caption(NamedTuple):
    """The answer for one image: names with probabilities, best first, and lines below.

    ``right`` says whether the first is right, None if that is not known; ``truth`` is what to say of a wrong one.
    """
    answers: Sequence[tuple[str, float]]
    note: str = ''
    right: bool | None = None
    truth: str = ''

    @property
    def color(self) -> str:
        return INK if self.right is None else GOOD if self.right else WRONG


def width_of(captions: Sequence[Caption]) -> int:
    """Width of a column in which captions are whole, up to WIDEST."""
    below = max(_length(text, 13) for c in captions for text in (c.note, c.truth))
    if all(_is_short(c) for c in captions):
        least = 62.0 if all(c.right is None for c in captions) else 84.0
    else:
        least = max(190.0, 84 + max(_length(name, 16) for c in captions for name, _ in c.answers))
    return min(math.ceil(max(least, below)), WIDEST)


def _is_short(caption: Caption) -> bool:
    return len(caption.answers) == 1 and len(caption.answers[0][0]) <= 2


def draw_caption(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, caption: Caption) -> None:
    """Draw one short answer in large type, or several as lines with bars in proportion to their probabilities."""
    if _is_short(caption):
        name, probability = caption.answers[0]
        top = y + height // 2 - 36
        write(draw, (x, top), name, 44, caption.color, width)
        write(draw, (x, top + 50), percent(probability), 13, FAINT, width)
        _mark(draw, round(x + min(_length(name, 44), width - 26) + 14), top + 28, caption)
        _notes(draw, x, top + 68, width, caption)
        return
    top = y + max(0, (height - 40 * len(caption.answers) - 20 * (bool(caption.note) + bool(caption.truth))) // 2)
    for k, (name, probability) in enumerate(caption.answers):
        color = caption.color if k == 0 else FAINT
        length, aside = width - 12, 0 if k or caption.right is None else 20
        if aside:
            _mark(draw, x + 7, top + 10, caption)
        write(draw, (x + aside, top), name, 16, color, length - 52 - aside)
        write(draw, (x + length, top + 2), percent(probability), 13, FAINT, 60, anchor='ra')
        for end, shade in ((length, RULE), (round(length * probability), color)):
            draw.rectangle([SCALE * v for v in (x, top + 24, x + end, top + 28)], fill=shade)
        top += 40
    _notes(draw, x, top, width, caption)


def _notes(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, caption: Caption) -> None:
    if caption.truth:
        write(draw, (x, y), caption.truth, 13, caption.color, width)
        y += 18
    write(draw, (x, y), caption.note, 13, FAINT, width)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, caption: Caption) -> None:
    """A tick for a right answer, a cross for a wrong one, about (x, y): not told by colour alone."""
    tick, cross = [((-6, 0), (-2, 4), (6, -5))], [((-5, -5), (5, 5)), ((-5, 5), (5, -5))]
    for stroke in () if caption.right is None else tick if caption.right else cross:
        points = [(SCALE * (x + a), SCALE * (y + b)) for a, b in stroke]
        draw.line(points, fill=caption.color, width=2 * SCALE, joint='curve')


def percent(probability: float) -> str:
    """A probability in percent, rounded down above 50 % so that 99.97 % does not become 100 %."""
    value = 100 * probability
    return f'{math.floor(value * 10) / 10 if value > 50 else value:.1f} %'


def write(
        draw: ImageDraw.ImageDraw,
        at: tuple[float, float],
        text: str,
        size: int,
        color: str,
        width: float,
        anchor: str = 'la',
) -> None:
    """Draw one line of text, truncated to ``width``."""
    kept = shown = _plain(text)[:round(width)]  # a character is wider than one unit
    while kept and _length(shown, size) > width:
        kept = kept[:-1]
        shown = kept.rstrip() + '...'
    font: Any = ImageFont.load_default(size * SCALE)
    draw.text((at[0] * SCALE, at[1] * SCALE), shown, font=font, fill=color, anchor=anchor)


def _plain(text: str) -> str:
    """In one line of characters that are some: names of files may hold any bytes."""
    return ' '.join(text.encode(errors='replace').decode().split())


def _length(text: str, size: int) -> float:
    font: Any = ImageFont.load_default(size * SCALE)
    return float(font.getlength(_plain(text))) / SCALE


def wrap(text: str, size: int, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f'{lines[-1]} {word}' if lines else ''
        if longer and _length(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
