"""The README's picture is what the network of this checkout draws of the digits of this checkout."""
import importlib
import json

import numpy as np
import pytest
from PIL import Image, features

from timm_stn.cli import digits
from timm_stn.names.weights import WEIGHTS
from timm_stn.view import caption

AGAIN = 'run scripts/release/make_demo_picture.py'


@pytest.fixture(scope='module')
def script():
    return importlib.import_module('make_demo_picture')


def distance(a, b, side=16):
    """Largest difference of the means of blocks of pixels: a little of one line does not count, another word does."""
    if a.size != b.size:
        return 255
    a, b = (np.asarray(x.convert('RGB'), float)[:x.height // side * side, :x.width // side * side] for x in (a, b))
    return abs((a - b).reshape(len(a) // side, side, -1, side, 3).mean((1, 3))).max()


def test_it_is_made_from_these_weights_and_digits(script):
    with Image.open(script.PICTURE) as picture:
        assert json.loads(picture.info['made from']) == script.made_from(), AGAIN


@pytest.mark.skipif(not features.check('freetype2'), reason='this Pillow draws other letters')
def test_it_is_what_is_drawn_now(script):
    with Image.open(script.PICTURE) as picture:
        assert distance(picture, script.draw()) < 4, AGAIN


def test_another_picture_is_found(script, monkeypatch, tmp_path):
    script.main(['--output', str(tmp_path / 'd.png')])
    with Image.open(tmp_path / 'd.png') as picture:
        assert json.loads(picture.info['made from']) == script.made_from() and distance(picture, script.draw()) == 0
        for module, name, other in (
                (digits, 'FOOTER', digits.FOOTER.replace('rotated', 'turned')), (caption, 'GOOD', '#138A5B')):
            with monkeypatch.context() as changed:
                changed.setattr(module, name, other)
                assert distance(picture, script.draw()) > 4
    (tmp_path / WEIGHTS).write_bytes(b'other')
    (tmp_path / digits.EXAMPLES).write_bytes(b'digits')
    before = script.made_from()
    monkeypatch.setattr(script, 'card_folder', lambda name: tmp_path)
    assert all(before[name] != found for name, found in script.made_from().items())
