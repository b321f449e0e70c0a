"""What the page does with its inputs, without a browser; the server is in test_serve.py."""
import base64
import importlib.util
from io import BytesIO
from pathlib import Path

import pytest
import timm
from makers import needs_weights
from PIL import Image

from timm_stn.app import page
from timm_stn.app.inputs import pixels_of, save_examples
from timm_stn.app.page import DRAW, DROP, Show, build_page, theme
from timm_stn.app.shelf import Network, Shelf

RTS, SIGNS = 'stn_mnist_cnn_rts', 'stn_gtsrb'
pytestmark = needs_weights(SIGNS)
STILL = (0, 1, 0, 0, 0)

needs_gradio = pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='needs gradio')


@pytest.fixture(scope='module')
def shelf():
    return Shelf([RTS, 'stn_mnist_cnn_tc', SIGNS])


@pytest.fixture
def show(shelf):
    return Show(shelf)


@pytest.fixture
def digit(tmp_path):
    return str(save_examples(tmp_path, 1)[0])


def drawn():
    picture = Image.new('L', (280, 280))
    picture.paste(255, (130, 40, 150, 240))
    file = BytesIO()
    picture.save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def test_each_slider_changes_the_pictures(show, digit):
    shown = [show(RTS, digit, '', 'picture', *sliders) for sliders in (
        STILL, (30, 1, 0, 0, 0), (0, 0.8, 0, 0, 0), (0, 1, 0.1, 0, 0), (0, 1, 0, 0.1, 0), (0, 1, 0, 0, 3))]
    assert len({pictures for pictures, _ in shown}) == 6 and all('<img' in pictures for pictures, _ in shown)
    assert shown[0] == show(RTS, digit, '', 'picture', *STILL)
    assert '>7<' in shown[0][1] and 'backbone alone' in shown[0][1]


def test_a_drawing_is_shown_where_one_draws(show, digit):
    pictures, ranking = show(RTS, digit, drawn(), 'drawing', *STILL)
    assert ranking.index('>1<') < ranking.index('>7<') and pictures != show(RTS, digit, '', 'picture', *STILL)[0]
    assert show(RTS, digit, drawn(), 'picture', *STILL) == show(RTS, digit, '', 'picture', *STILL)
    assert show(SIGNS, digit, drawn(), 'drawing', *STILL) == show(SIGNS, digit, '', 'picture', *STILL)


def test_it_says_what_to_do_first(show):
    assert DROP in show(RTS, None, '', 'picture', *STILL)[0] and DRAW in show(RTS, None, '', 'drawing', *STILL)[0]
    assert show(SIGNS, None, '', 'picture', *STILL)[1] == ''


def test_what_is_no_image_is_refused_in_the_page(show, photos):
    pictures, ranking = show(SIGNS, str(photos / 'notes.txt'), '', 'picture', *STILL)
    assert 'role="alert"' in pictures and 'This file cannot be used: not an image' in pictures and ranking == ''
    assert 'role="alert"' in show(RTS, None, 'data:text/html,x', 'drawing', *STILL)[0]


def test_a_file_is_read_once_while_sliders_move(show, photos, monkeypatch):
    reads = []
    monkeypatch.setattr(page, 'pixels_of', lambda *args: reads.append(args) or pixels_of(*args))
    for turn in range(3):
        show(SIGNS, str(photos / 'a.png'), '', 'picture', turn, 1, 0, 0, 0)
    show(RTS, str(photos / 'a.png'), '', 'picture', *STILL)
    assert len(reads) == 2


def test_it_says_of_a_name_of_timm_that_its_transformer_is_untrained(photos):
    untrained = Network(timm.create_model('stn_test_vit', img_size=64), 'stn_test_vit')
    show = Show(Shelf(['stn_test_vit'], load=lambda name: untrained))
    assert 'untrained' in show('stn_test_vit', str(photos / 'a.png'), '', 'picture', *STILL)[0]
    show = Show(Shelf([], untrained))  # of --checkpoint, say
    assert 'untrained' not in show('stn_test_vit', str(photos / 'a.png'), '', 'picture', *STILL)[0]


@needs_gradio
def test_a_page_is_made_without_a_trace(shelf, tmp_path):
    made = build_page(shelf, tmp_path)
    assert not made.analytics_enabled and len(list(tmp_path.glob('digit-*.png'))) == 12
    assert not list(Path(page.__file__).parent.glob('*.pyi')), 'which Gradio writes beside components of others'


@needs_gradio
def test_the_theme_loads_no_fonts():
    assert theme().font == 'system-ui, sans-serif'
