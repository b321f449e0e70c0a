"""docs/app.png, and the script that takes it; the page itself is opened in tests/app/test_browser.py."""
import importlib

from makers import ROOT
from PIL import Image


def test_the_picture_is_small_and_of_the_whole_page():
    script = importlib.import_module('make_app_picture')
    assert script.PICTURE == ROOT / 'docs' / 'app.png' and script.PICTURE.stat().st_size < 200_000
    with Image.open(script.PICTURE) as picture:
        assert picture.size == (script.WIDTH, script.HEIGHT)


def test_it_is_written_whole(monkeypatch, tmp_path, capsys):
    script = importlib.import_module('make_app_picture')
    monkeypatch.setattr(script, 'missing', lambda: '')
    monkeypatch.setattr(script, 'picture', lambda: Image.new('RGB', (20, 10), 'red'))
    script.main(['--output', str(tmp_path / 'a.png')])
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.size == (20, 10) and picture.convert('RGB').getpixel((0, 0)) == (255, 0, 0)
    assert f'{tmp_path / "a.png"}: ' in capsys.readouterr().out
