"""Masks: which is of which file, what counts as the object, and where it lies in the input and in what was seen."""
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from timm.data import create_transform

from timm_stn.view.images import BadImage, open_image
from timm_stn.view.lattice import SIDE
from timm_stn.view.masks import find_masks, mask_as_seen, mask_in_input, mask_of_file, read_mask

HERE = np.random.default_rng(0).random((12, 16)) < 0.4


def test_masks_are_found_by_their_names_without_endings(tmp_path):
    for name in ('a/x.png', 'x.png', 'a.b.tif', 'a/y.bmp'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('1', (4, 4)).save(tmp_path / name)
    masks = find_masks(tmp_path)
    assert set(masks) == {'a/x', 'x', 'a.b', 'a/y'}
    for file, mask in (('/data/a/x.jpg', 'a/x.png'), ('/data/b/x.jpg', 'x.png'), ('/data/a.b.jpg', 'a.b.tif'),
                       ('/data/b/y.jpg', None), ('/data/xx.jpg', None)):
        assert mask_of_file(tmp_path / file, masks) == (mask and tmp_path / mask)
    for empty in ('none', 'a/x.png'):
        with pytest.raises(BadImage):
            find_masks(tmp_path / empty)


def palette():
    image = Image.fromarray(HERE.astype(np.uint8) * 7, 'P')
    image.putpalette([0, 0, 0] * 256)  # numbers of objects, all shown in black
    return image


@pytest.mark.parametrize('image', [
    Image.fromarray(HERE), Image.fromarray(HERE.astype(np.uint8)), Image.fromarray(HERE.astype(np.uint16) * 300),
    Image.fromarray(HERE.astype(np.float32) / 9), palette(),
    Image.fromarray(np.dstack([HERE * 0, HERE * 0, HERE]).astype(np.uint8)),
    Image.fromarray(np.dstack([HERE, HERE, HERE, HERE * 0 + 255]).astype(np.uint8)),
    Image.fromarray(np.dstack([HERE, HERE * 0 + 255]).astype(np.uint8)),
], ids=['1', '8 bits', '16 bits', 'floats', 'palette', 'blue', 'rgba', 'la'])
def test_what_is_not_zero_is_the_object(image, tmp_path):
    image.save(tmp_path / 'm.tif' if image.mode == 'F' else tmp_path / 'm.png')
    mask = read_mask(next(tmp_path.iterdir()), (16, 12))
    assert mask.mode == 'L' and (np.asarray(mask) == HERE * 255).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_masks_are_turned_as_their_images_are(tmp_path, orientation):
    """Also those of a square, or turned upside down, whose size is the same."""
    square = np.pad(HERE, ((0, max(HERE.shape) - HERE.shape[0]), (0, max(HERE.shape) - HERE.shape[1])))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(square.astype(np.uint8) * 255)
    stored.save(tmp_path / 'm.png', exif=exif)
    upright, _ = open_image(tmp_path / 'm.png', 'L')
    assert (np.asarray(read_mask(tmp_path / 'm.png', upright.size)) == np.asarray(upright)).all()


def test_masks_are_upright_and_of_the_size_of_their_image(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(HERE.astype(np.uint8) * 255).rotate(90, expand=True).save(tmp_path / 'm.png', exif=exif)
    assert (np.asarray(read_mask(tmp_path / 'm.png', (16, 12))) == HERE * 255).all()
    with pytest.raises(BadImage, match='16 x 12 pixels, and its image has 20 x 20'):
        read_mask(tmp_path / 'm.png', (20, 20))
    (tmp_path / 'n.png').write_text('')
    with pytest.raises(BadImage):
        read_mask(tmp_path / 'n.png', (20, 20))


@pytest.mark.parametrize('mode', ['center', 'squash', 'border'])
def test_a_mask_goes_the_way_of_its_image(mode):
    """That of a red object in a blue image, whose mean fills the border, is what of it is red."""
    config = dict(input_size=(3, 40, 60), crop_pct=0.9, crop_mode=mode, mean=(0.0, 0.0, 1.0), std=(1.0, 1.0, 1.0),
                  interpolation='bicubic')
    here = np.kron(HERE, np.ones((10, 10), dtype=bool))
    image = Image.fromarray(np.dstack([here, here & False, ~here]).astype(np.uint8) * 255)
    pixels = create_transform(**config, is_training=False)(image)
    mask = mask_in_input(Image.fromarray(here.astype(np.uint8) * 255), config)
    torch.testing.assert_close(mask, pixels[0], atol=1e-6, rtol=0)
    assert mask.std() > 0.3


def test_a_mask_as_it_was_seen():
    """Through a look at the right half, upside down."""
    side = torch.linspace(-1, 1, SIDE)
    points = torch.cartesian_prod(side, side).flip(-1) * torch.tensor([0.5, -1.0]) + torch.tensor([0.5, 0.0])
    mask = torch.from_numpy(HERE).float()
    torch.testing.assert_close(mask_as_seen(mask, points, (12, 8)), mask[:, 8:].flip(0), atol=1e-5, rtol=0)
    outside = points + torch.tensor([2.0, 0.0])
    assert not mask_as_seen(torch.ones(12, 16), outside, (12, 8))[:, 1:].any()
