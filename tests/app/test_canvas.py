"""What the canvas gives."""
import base64
from io import BytesIO

import pytest
from PIL import Image

from timm_stn.app import canvas
from timm_stn.app.canvas import drawing_of
from timm_stn.view.images import BadImage


def said(picture, kind='PNG'):
    file = BytesIO()
    picture.save(file, kind)
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def test_a_drawing_is_its_pixels():
    picture = Image.new('RGBA', (280, 280), 'black')
    picture.paste('white', (100, 50, 120, 200))
    found = drawing_of(said(picture))
    assert found.mode == 'L' and found.size == (280, 280)
    assert found.getbbox() == (100, 50, 120, 200) and found.getpixel((110, 100)) == 255


@pytest.mark.parametrize('value', [None, '', said(Image.new('RGB', (280, 280)))], ids=['none', 'empty', 'black'])
def test_nothing_drawn(value):
    assert drawing_of(value) is None


@pytest.mark.parametrize('value,why', [
    ('data:image/svg+xml;base64,AAAA', 'no drawing of the canvas'), ('http://localhost/a.png', 'no drawing'),
    (canvas.PREFIX + '?', 'no drawing'), (canvas.PREFIX + 'AAAA', 'not an image'),
    (canvas.PREFIX + 'A' * canvas.MOST_CHARACTERS, 'no drawing'),
    (said(Image.new('1', (10_000, 10_000))), 'at most 20,000,000'),
], ids=['svg', 'address', 'no base64', 'no image', 'long', 'large'])
def test_other_things_are_refused(value, why):
    with pytest.raises(BadImage, match=why):
        drawing_of(value)


def test_the_page_draws_as_large_as_mnists_pens():
    """A digit of the whole canvas has strokes of about 1.5 pixels in MNIST's box of 20."""
    assert 1 < canvas.PEN / canvas.SIDE * 20 < 2
    assert f'width="{canvas.SIDE}"' in canvas.TEMPLATE and "'change'" in canvas.SCRIPT
