"""From files and drawings to what networks take."""
import numpy as np
import pytest
import timm
import torch
from makers import ROOT
from PIL import Image

from timm_stn.app.inputs import as_digit, digit_pieces, example_digits, pixels_of, save_examples, takes_digits
from timm_stn.view.images import BadImage
from timm_stn.view.sheet import data_config, denormalized, read_images

RTS, SIGNS = 'stn_mnist_cnn_rts', 'stn_gtsrb'


def drawn(box, ground=255, ink=0, size=(280, 200)):
    picture = Image.new('L', size, ground)
    picture.paste(ink, box)
    return picture


def center(image):
    shares = image / image.sum()
    return [float((shares.sum(1 - axis) * torch.arange(image.shape[axis])).sum()) for axis in (0, 1)]


@pytest.mark.parametrize('ground,ink', [(255, 0), (0, 255), (200, 90), (30, 160)])
def test_a_bar_becomes_twenty_pixels_of_white_in_the_middle(ground, ink):
    digit = as_digit(drawn((200, 20, 220, 120), ground, ink), 42)
    assert digit.shape == (1, 42, 42) and digit.max() == 1 and digit.min() == 0
    rows, columns = (digit[0] > 0.5).nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == 20 and columns.max() - columns.min() + 1 == 4  # 100 : 20
    assert center(digit[0]) == pytest.approx([20.5, 20.5], abs=0.51)


def test_it_has_its_centre_of_mass_in_the_middle_as_mnist():
    picture = drawn((20, 20, 120, 120))
    picture.paste(255, (40, 20, 120, 100))  # an L, whose mass is lower left of its box's centre
    found = center(as_digit(picture, 28)[0])
    assert found == pytest.approx([13.5, 13.5], abs=0.51)


def test_made_digits_stay_as_they_are_made():
    """Enlarged and inverted, a digit gives the same digit again."""
    for digit in digit_pieces()[:10]:
        big = Image.fromarray((255 - digit[0] * 255).byte().numpy()).resize((280, 280), Image.Resampling.NEAREST)
        again = as_digit(big, 28)
        assert (again - digit).abs().mean() < 0.02 and again.shape == digit.shape


def test_what_is_a_digit_already_is_left_as_it_is(tmp_path):
    digits = example_digits()
    assert digits.shape == (64, 1, 42, 42)
    config = data_config(timm.create_model(RTS))
    for path, digit in zip(save_examples(tmp_path, 5), digits):
        assert torch.equal(pixels_of(path, config, True), digit)


@pytest.mark.parametrize('level', [0, 255, 100])
def test_nothing_drawn_is_black(level):
    assert not as_digit(Image.new('L', (300, 100), level), 28).any()


def test_which_networks_take_digits():
    assert takes_digits(RTS) and takes_digits('stn_mnist_cnn_tc')
    assert not any(map(takes_digits, ('stn_mnist_add', SIGNS, 'stn_resnet50', 'stn_resnet50.a1_in1k')))


def test_photographs_go_through_timms_transform(photos):
    config = data_config(timm.create_model('stn_test_resnet'))
    path = photos / 'b.jpg'
    expected = read_images([path], config).pixels[0]
    found = pixels_of(path, config, False)
    assert torch.allclose(found, denormalized(expected, config), atol=1e-6) and found.shape == (3, 160, 160)
    assert 0 <= found.min() < found.max() <= 1


def test_a_grey_photograph_is_grey_for_a_network_of_one_channel(photos):
    config = data_config(timm.create_model('stn_test_resnet', in_chans=1))
    assert pixels_of(photos / 'a.png', config, False).shape == (1, 160, 160)


def test_what_is_no_image_is_refused(photos):
    for digits, name in ((True, RTS), (False, SIGNS)):
        with pytest.raises(BadImage, match='not an image of these formats'):
            pixels_of(photos / 'notes.txt', data_config(timm.create_model(name)), digits)


def test_it_is_upright_as_exif_says(tmp_path):
    """A picture whose top is red, stored on its side."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :, 0] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'a.png', exif=exif)
    found = pixels_of(tmp_path / 'a.png', data_config(timm.create_model(SIGNS)), False)
    assert found[0, 4].mean() > 0.9 and found[0, -4].mean() < 0.1


def test_examples_are_those_of_the_card():
    assert (ROOT / 'model_cards' / RTS / 'examples.png').is_file() and example_digits().max() == 1
