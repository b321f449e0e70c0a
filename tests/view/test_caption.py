"""The answers in a picture: their marks, colours and texts."""
import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from timm_stn.view.caption import GOOD, INK, WRONG, Caption, draw_caption, percent, width_of, wrap

SHORT, LONG = [('7', 0.5)], [('a jay', 0.5), ('an owl', 0.25), ('a tit', 0.125)]


def drawn(caption, width=200, height=176):
    picture = Image.new('RGB', (2 * width, 2 * height), '#FFFFFF')
    draw_caption(ImageDraw.Draw(picture), 4, 0, width - 4, height, caption)
    return np.asarray(picture)


def count(pixels, color):
    return int((pixels == ImageColor.getrgb(color)).all(-1).sum())


@pytest.mark.parametrize('answers', [SHORT, LONG])
def test_right_and_wrong_differ_in_colour_and_in_shape(answers):
    unknown, right, wrong = (drawn(Caption(answers, right=right)) for right in (None, True, False))
    assert count(unknown, INK) and not count(unknown, GOOD) and not count(unknown, WRONG)
    assert count(right, GOOD) and not count(right, WRONG) and count(wrong, WRONG) and not count(wrong, GOOD)
    dark = [(pixels != 255).any(-1) for pixels in (unknown, right, wrong)]
    assert (dark[1] != dark[2]).sum() > 20 and (dark[0] != dark[1]).sum() > 20


@pytest.mark.parametrize('answers', [SHORT, LONG])
def test_what_it_is_and_the_note_are_both_there(answers):
    bare, note, both = (drawn(Caption(answers, note, False, truth)) for note, truth in (
        ('', ''), ('a.png', ''), ('a.png', 'is an owl')))
    assert count(both, WRONG) > count(note, WRONG) == count(bare, WRONG)
    assert (note != bare).any() and (both[-20:] == 255).all(), 'within its row'


def test_columns_are_as_wide_as_names_up_to_a_limit():
    names = ['jay', 'a jay of some length or other', 'a jay ' * 40]
    widths = [width_of([Caption([(name, 0.5)] * 3)]) for name in names]
    assert widths == sorted(widths) and widths[0] == 190 and widths[0] < widths[1] < widths[2] == 320
    assert width_of([Caption(SHORT)]) == 62 < width_of([Caption(SHORT, right=True)]) < width_of(
        [Caption(SHORT, 'a file with a name that is long.png')])


@pytest.mark.parametrize('name', ['\udcff.png', 'two\nlines', '', '\t', 'ж鳥🐦', 'x' * 5000])
def test_any_name_is_drawn(name):
    assert drawn(Caption([(name, 0.5)] * 3, name, False, name)).shape == (352, 400, 3)
    assert width_of([Caption([(name, 0.5)], name)]) <= 320 and wrap(name, 13, 100) is not None


@pytest.mark.parametrize('probability,text', [(1.0, '100.0 %'), (0.9999, '99.9 %'), (0.5, '50.0 %'), (0.0004, '0.0 %')])
def test_percent(probability, text):
    assert percent(probability) == text
