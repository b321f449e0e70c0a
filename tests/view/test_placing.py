"""Where pixels of files come to lie: compared with pixels that went through timm's own transform."""
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from timm_stn.view.placing import placing

CONFIG = dict(interpolation='bilinear', mean=(0.5, 0.4, 0.3), std=(1.0, 1.0, 1.0))


def edges(marked, axis):
    """First and last edge of a bright bar in an image (H, W), in fractions of a pixel: by the area that it covers."""
    profile = marked.mean(axis=1 - axis)
    profile = profile / profile.max()
    middle = np.flatnonzero(profile > 0.9)
    middle = (middle[0] + middle[-1]) // 2
    return middle - profile[:middle].sum(), middle + profile[middle:].sum()


def found(size, box, config):
    """The box in the network's input, found in the pixels of an image in which it is marked in green."""
    image = Image.new('RGB', size, 'black')
    left, top, right, bottom = box
    image.paste((0, 255, 0), (left, top, right, bottom))
    pixels = create_transform(**config, is_training=False)(image) + torch.tensor(config['mean'])[:, None, None]
    marked = (pixels[1] - pixels[0]).clamp_min(0).numpy()
    (x1, x2), (y1, y2) = edges(marked, 1), edges(marked, 0)
    height, width = marked.shape
    return [2 * x1 / width - 1, 2 * y1 / height - 1, 2 * x2 / width - 1, 2 * y2 / height - 1]


@pytest.mark.parametrize('mode', ['center', 'squash', 'border'])
@pytest.mark.parametrize('crop_pct', [1.0, 0.875, 0.5])
@pytest.mark.parametrize('size', [(200, 200), (301, 200), (160, 333), (40, 31)])
@pytest.mark.parametrize('input_size', [(96, 96), (64, 128), (127, 90)])
def test_a_marked_box_is_found_where_it_is_said_to_be(mode, crop_pct, size, input_size):
    config = dict(CONFIG, input_size=(3, *input_size), crop_pct=crop_pct, crop_mode=mode)
    w, h = size
    box = [round(0.42 * w), round(0.4 * h), round(0.6 * w), round(0.55 * h)]
    said = placing(size, config).to_input(torch.tensor(box).double().reshape(2, 2)).flatten().clamp(-1, 1).tolist()
    tolerance = [0.15 * 2 / length for length in (input_size[1], input_size[0])] * 2  # of a pixel of the input
    assert (np.abs(np.subtract(said, found(size, box, config))) < tolerance).all()


def test_a_border_that_timm_trims():
    config = dict(CONFIG, input_size=(3, 80, 80), crop_pct=1.0, crop_mode='squash', crop_border_pixels=10)
    assert placing((100, 180), config).to_input(torch.tensor([[10.0, 10.0], [90.0, 170.0]])).tolist() == [
        [-1, -1], [1, 1]]


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (50, 1), (2, 3), (96, 96), (97, 97), (4000, 3000)])
def test_the_whole_of_a_squashed_image_is_the_input_and_there_is_a_way_back(size):
    config = dict(CONFIG, input_size=(3, 96, 96), crop_pct=1.0, crop_mode='squash')
    corners = torch.tensor([[0.0, 0.0], list(size)], dtype=torch.float64)
    placed = placing(size, config)
    torch.testing.assert_close(placed.to_input(corners), torch.tensor([[-1.0, -1], [1, 1]], dtype=torch.float64))
    torch.testing.assert_close(placed.to_file(placed.to_input(corners)), corners)


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic', 'lanczos'])
def test_the_interpolation_moves_nothing(interpolation):
    config = dict(CONFIG, input_size=(3, 50, 50), crop_pct=0.9, interpolation=interpolation)
    assert placing((120, 90), config) == placing((120, 90), dict(config, interpolation='hamming'))


def test_one_channel_lies_as_three():
    three = dict(CONFIG, input_size=(3, 50, 50), crop_pct=0.9, crop_mode='border')
    one = dict(three, input_size=[1, 50, 50], mean=(0.5,), std=(1.0,))
    assert placing((120, 90), one) == placing((120, 90), three)
