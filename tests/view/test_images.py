"""Image files: all kinds against numpy, files that hold no picture, and in which order files are taken."""
import io
import os
import random
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from timm.utils import natural_key

from timm_stn.view.images import BadImage, find_images, folder_name, in_turn, natural, open_image

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
GREY, ALPHA = COLOURS[..., 0], RNG.integers(0, 256, (30, 40), dtype=np.uint8)
DEEP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
SHARES = RNG.random((30, 40), dtype=np.float32)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def coded(pixels, suffix):
    """A file by OpenCV, which writes 16 bits a channel; RGB."""
    return io.BytesIO(cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes())


def of(array, kind, mode=None, **options):
    image = Image.fromarray(array)
    return partial(saved, image.convert(mode) if mode else image, kind, **options)


def on_white(colours, alpha):
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def by_range(values):
    values = values.astype(float)
    return (values - values.min()) / (values.max() - values.min()) * 255


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return dict(exif=exif)


INK = np.dstack([255 - COLOURS, 0 * GREY])
INTEGERS = DEEP.astype(np.int32) * 7 - 5
PALETTE = Image.fromarray(COLOURS).quantize(16)
INDEX, INKS = np.asarray(PALETTE), np.array(PALETTE.getpalette()).reshape(-1, 3)[:16]
MORE = dict(save_all=True, append_images=[Image.fromarray(COLOURS[::-1])])
KINDS = {  # name: (writes the file, its pixels, how far from them, what is noted)
    'png': (of(COLOURS, 'PNG'), COLOURS, 0, ''),
    'grey': (of(GREY, 'PNG'), GREY, 0, ''),
    'one bit': (of(GREY > 99, 'PNG'), 255 * (GREY > 99), 0, ''),
    '16 bits, png': (of(DEEP, 'PNG'), np.round(DEEP / 257), 0, 'divided by 257'),
    '16 bits, tiff': (of(DEEP, 'TIFF'), np.round(DEEP / 257), 0, 'divided by 257'),
    '16 bits, big-endian': (of(DEEP.astype('>u2'), 'TIFF'), np.round(DEEP / 257), 0, 'divided by 257'),
    '16 bits, zero is white': (of(65535 - DEEP, 'TIFF', tiffinfo={ExifTags.Base.PhotometricInterpretation: 0}),
                               np.round(DEEP / 257), 0, 'divided by 257'),
    'zero is white': (of(GREY, 'TIFF', tiffinfo={ExifTags.Base.PhotometricInterpretation: 0}), GREY, 0, ''),
    '16 bits, jpeg 2000': (of(DEEP, 'JPEG2000'), np.round(DEEP / 257), 0, 'divided by 257'),
    '16 bits, pgm': (of(DEEP, 'PPM'), np.round(DEEP / 257), 0, 'divided by 257'),
    '16 bits, colours': (partial(coded, COLOURS * np.uint16(257), '.png'), COLOURS, 0, 'the upper 8'),
    '16 bits, colours, tiff': (partial(coded, COLOURS * np.uint16(257), '.tiff'), COLOURS, 0, 'the upper 8'),
    '32 bits': (of(INTEGERS, 'TIFF'), by_range(INTEGERS), 0.51, 'the lowest number'),
    'shares': (of(SHARES * 0.5, 'TIFF'), SHARES * 127.5, 0.51, 'from 0 to 1'),
    'floats': (of(SHARES * 9 - 4, 'TIFF'), by_range(SHARES * 9 - 4), 0.51, 'the lowest number'),
    'all the same': (of(np.full((3, 4), 7, dtype=np.float32), 'TIFF'), np.zeros((3, 4)), 0, 'the lowest number'),
    'rgba': (of(np.dstack([COLOURS, ALPHA]), 'PNG'), on_white(COLOURS, ALPHA), 1, 'transparent'),
    'rgba, webp': (of(np.dstack([COLOURS, ALPHA]), 'WEBP', lossless=True, exact=True), on_white(COLOURS, ALPHA), 1,
                   'transparent'),
    'opaque': (of(COLOURS, 'PNG', 'RGBA'), COLOURS, 0, ''),
    'la': (of(np.dstack([GREY, ALPHA]), 'PNG'), on_white(GREY[..., None], ALPHA)[..., 0], 1, 'transparent'),
    'palette': (partial(saved, PALETTE, 'PNG'), INKS[INDEX], 0, ''),
    'palette, one transparent': (partial(saved, PALETTE, 'PNG', transparency=3),
                                 np.where((INDEX == 3)[..., None], 255, INKS[INDEX]), 0, 'transparent'),
    'palette, alphas': (partial(saved, PALETTE, 'PNG', transparency=bytes(range(0, 256, 16))),
                        on_white(INKS[INDEX], INDEX * 16), 1, 'transparent'),
    'grey, one transparent': (of(GREY, 'PNG', transparency=9), np.where(GREY == 9, 255, GREY), 0, 'transparent'),
    'cmyk': (partial(saved, Image.frombytes('CMYK', (40, 30), INK.tobytes()), 'TIFF'), COLOURS, 0, 'CMYK'),
    'gif': (of(INKS[INDEX].astype(np.uint8), 'GIF'), INKS[INDEX], 0, ''),
    'gif, moving': (of(COLOURS, 'GIF', **MORE), COLOURS, 80, 'the first of several'),
    'tiff, pages': (of(COLOURS, 'TIFF', **MORE), COLOURS, 0, 'the first of several'),
    'png, moving': (of(COLOURS, 'PNG', **MORE), COLOURS, 0, 'the first of several'),
    'webp, moving': (of(COLOURS, 'WEBP', lossless=True, **MORE), COLOURS, 0, 'the first of several'),
    'mpo, with a preview': (of(COLOURS, 'MPO', quality=100, subsampling=0, **MORE), COLOURS, 9, ''),
    'upright': (of(COLOURS, 'PNG', **turned(1)), COLOURS, 0, ''),
    'upside down': (of(COLOURS, 'PNG', **turned(3)), COLOURS[::-1, ::-1], 0, 'EXIF'),
    'on its side': (of(COLOURS, 'WEBP', lossless=True, **turned(6)), np.rot90(COLOURS, -1), 0, 'EXIF'),
    'on its side, jpeg': (of(COLOURS, 'JPEG', quality=100, subsampling=0, **turned(8)), np.rot90(COLOURS), 9, 'EXIF'),
    'on its side, 16 bits': (of(DEEP, 'PNG', **turned(6)), np.round(np.rot90(DEEP, -1) / 257), 0, 'EXIF'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_pixels_are_those_of_the_file_and_what_is_not_is_said(kind, tmp_path):
    write, pixels, away, said = KINDS[kind]
    content = write()
    found, notes = open_image(content)
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    assert found.mode == 'RGB' and np.abs(np.asarray(found, dtype=float) - expected).max() <= away
    assert all(said in note for note in notes) if len(notes) == 1 else said in ' '.join(notes)
    assert bool(notes) == bool(said)
    (tmp_path / 'a').write_bytes(content.getvalue())
    assert np.array_equal(np.asarray(open_image(tmp_path / 'a')[0]), np.asarray(found))
    grey, _ = open_image(content, 'L')
    luma = np.asarray(found, dtype=float) @ (0.299, 0.587, 0.114)  # ITU-R 601-2
    assert grey.mode == 'L' and np.abs(np.asarray(grey) - luma).max() < 1.01


def make(path, content):
    path.write_bytes(content.getvalue() if isinstance(content, io.BytesIO) else content)


PNG, JPEG = of(COLOURS, 'PNG')().getvalue(), of(COLOURS, 'JPEG')().getvalue()
BAD = {  # name: (makes the file, reason)
    'cut.jpg': (lambda p: make(p, JPEG[:900]), 'truncated'),
    'cut.png': (lambda p: make(p, PNG[:900]), 'truncated'),
    'empty.png': (lambda p: make(p, b''), 'empty'),
    'text.jpg': (lambda p: make(p, b'hello, world'), 'not an image of these formats: PNG, JPEG, '),
    'paper.png': (lambda p: make(p, of(COLOURS, 'PDF')()), 'not an image'),
    'paper.pdf': (lambda p: make(p, of(COLOURS, 'PDF')()), 'not an image'),
    'drawing.eps': (lambda p: make(p, of(COLOURS, 'EPS')()), 'not an image'),
    'icon.png': (lambda p: make(p, of(COLOURS, 'ICO')()), 'not an image'),
    'nan.tif': (lambda p: make(p, of(np.full((3, 4), np.nan, dtype=np.float32), 'TIFF')()), 'not finite'),
    'line.png': (lambda p: make(p, of(np.zeros((1, 60000), dtype=np.uint8), 'PNG')()), '60000 x 1 pixels'),
    'gone.png': (lambda p: None, 'No such file'),
    'link.png': (lambda p: p.symlink_to('nowhere.png'), 'No such file'),
    'itself.png': (lambda p: p.symlink_to(p), 'symbolic links'),
    'folder.png': (lambda p: p.mkdir(), 'directory'),
    'pipe.png': (os.mkfifo, 'not a file'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_files_say_why(name, tmp_path):
    BAD[name][0](tmp_path / name)
    with pytest.raises(BadImage, match=BAD[name][1]):
        open_image(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    make(tmp_path / 'a.png', PNG)

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Not for you')

    monkeypatch.setattr(Image, 'open', refuse)
    with pytest.raises(BadImage, match='^Not for you$'):
        open_image(tmp_path / 'a.png')


def test_large_ones_are_read_and_bombs_are_not(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)  # Pillow warns above it, and refuses twice as much
    make(tmp_path / 'a.png', of(COLOURS, 'PNG')())
    assert open_image(tmp_path / 'a.png')[0].size == (40, 30) and not recwarn
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    with pytest.raises(BadImage, match='bomb'):
        open_image(tmp_path / 'a.png')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'TIFF', 'WEBP', 'BMP', 'PPM', 'JPEG2000'])
def test_damaged_files_raise_nothing_else(kind):
    chance, content = random.Random(0), of(COLOURS, kind)().getvalue()
    for _ in range(60):
        damaged = bytearray(content[:chance.choice((len(content), chance.randrange(1, len(content))))])
        for _ in range(chance.randrange(8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert open_image(io.BytesIO(damaged))[0].mode == 'RGB'
        except BadImage as error:
            assert str(error)


def test_images_of_a_folder_in_natural_order(tmp_path):
    names = ('b/2.png', 'b/10.JPG', 'a10/x.webp', 'a2/x.tiff', '1.jpeg', 'b/notes.txt', 'b/paper.pdf', 'b/x.eps')
    for name in (*names, 'dir.png/in.png', '²/³.png'):
        (tmp_path / 'all' / name).parent.mkdir(parents=True, exist_ok=True)
        make(tmp_path / 'all' / name, PNG)
    (tmp_path / 'all' / 'b' / 'gone.png').symlink_to('nowhere.png')
    (tmp_path / 'all' / 'b' / 'up').symlink_to('..')  # a circle
    (tmp_path / 'all' / 'b' / 'itself').symlink_to('itself')
    (tmp_path / 'far').mkdir()
    make(tmp_path / 'far' / 'f.png', PNG)
    (tmp_path / 'all' / 'c').symlink_to(tmp_path / 'far')
    bad = []
    found = [path.relative_to(tmp_path / 'all').as_posix() for path in find_images(tmp_path / 'all', bad)]
    assert found == ['1.jpeg', 'a2/x.tiff', 'a10/x.webp', 'b/2.png', 'b/10.JPG', 'b/gone.png', 'c/f.png',
                     'dir.png/in.png', '²/³.png'] and not bad


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        make(tmp_path / name / '1.png', PNG)
    scan = os.scandir

    def refusing(path):
        if os.path.basename(path) == 'a':
            raise PermissionError(13, 'Not for you')
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refusing)
    bad = []
    assert [*find_images(tmp_path, bad)] == [tmp_path / 'b' / '1.png'] and bad == [(tmp_path / 'a', 'Not for you')]


def test_the_order_is_timms():
    names = ['10', '2', 'B', 'a', 'a10b3', 'a2', '', '007', 'Z9', 'é1', '３']
    assert sorted(names, key=natural) == sorted(names, key=natural_key)


@pytest.mark.parametrize(('groups', 'count', 'order'), [
    ('aaabbc', 6, [0, 3, 5, 1, 4, 2]), ('aaabbc', 3, [0, 3, 5, 1, 4, 2]), ('aaa', 2, [0, 1, 2]), ('', 3, []),
    ('abcdef', 2, [0, 3, 1, 2, 4, 5]), ('abab', 1, [0, 1, 2, 3])])
def test_groups_take_turns(groups, count, order):
    assert in_turn(groups, count) == order


@pytest.mark.parametrize('count', [1, 3, 7, 24, 99])
def test_few_of_many_groups_are_far_apart(count):
    groups = [str(i // 3) for i in range(600)]
    first = np.array(in_turn(groups, count)[:count]) // 3
    assert sorted(in_turn(groups, count)) == [*range(600)] and np.diff([*first, 200]).min() >= 200 // count
    assert np.diff([*first, 200]).max() <= -(-200 // count)


def test_the_folder_of_a_file_has_a_name(tmp_path, monkeypatch):
    (tmp_path / 'jay').mkdir()
    monkeypatch.chdir(tmp_path / 'jay')
    assert folder_name(tmp_path / 'jay' / 'a.png') == 'jay'
    for path in ('a.png', './a.png', '../jay/a.png', '../owl/../jay/a.png'):
        assert folder_name(type(tmp_path)(path)) == 'jay'
