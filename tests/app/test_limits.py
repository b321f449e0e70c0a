"""What is refused before it costs anything."""
import zlib

import pytest
from PIL import Image, ImageFile

from timm_stn.app.limits import MOST_PIXELS, guarded_pillow, open_limited
from timm_stn.view.images import BadImage


def png(path, width, height):
    """A file whose header says so, with pixels that are cut off."""
    def chunk(kind, content):
        return len(content).to_bytes(4, 'big') + kind + content + zlib.crc32(kind + content).to_bytes(4, 'big')

    header = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([8, 2, 0, 0, 0])
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(100))))
    return path


@pytest.fixture
def undecoded(monkeypatch):
    def load(self):
        raise AssertionError('its pixels are decoded')
    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)


@pytest.mark.parametrize('width,height', [(5001, 4000), (20_000, 20_000), (100_000, 100_000)])
@pytest.mark.usefixtures('undecoded')
def test_a_large_image_is_not_decoded(tmp_path, width, height):
    file = png(tmp_path / 'a.png', width, height)
    with pytest.raises(BadImage, match='20,000,000'):
        open_limited(file, 'RGB')
    with guarded_pillow(), pytest.raises(BadImage, match='20,000,000'):
        open_limited(file, 'RGB')


def test_as_many_pixels_as_are_accepted(tmp_path):
    Image.new('1', (5000, MOST_PIXELS // 5000)).save(tmp_path / 'a.png')
    with guarded_pillow():
        assert open_limited(tmp_path / 'a.png', 'L').size == (5000, 4000)


@pytest.mark.parametrize('pixels,fine', [((5000, 4000), True), ((5001, 4000), False)])
def test_pillow_itself_refuses_within(tmp_path, pixels, fine):
    file, before = png(tmp_path / 'a.png', *pixels), Image.MAX_IMAGE_PIXELS
    with guarded_pillow():
        if fine:
            Image.open(file).close()
        else:
            with pytest.raises(Image.DecompressionBombError):
                Image.open(file)
    assert before == Image.MAX_IMAGE_PIXELS


def test_other_files_are_refused_with_a_reason(tmp_path):
    (tmp_path / 'a.png').write_text('no picture')
    (tmp_path / 'b.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / 'c.png').touch()
    for name, why in (('a.png', 'not an image'), ('b.svg', 'not an image'), ('c.png', 'empty')):
        with pytest.raises(BadImage, match=why):
            open_limited(tmp_path / name, 'RGB')
