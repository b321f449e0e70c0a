"""A picture of where a network looks: how images are read for it, and how its answers are named."""
import numpy as np
import pytest
import timm
import torch
from makers import create
from PIL import Image
from timm.data import ImageNetInfo

from timm_stn.view.draw import COLORS
from timm_stn.view.sheet import best_answers, class_names, data_config, read_images, sheet_of, short_name


def answers_by_numpy(logits):
    """Classes and probabilities, best first."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    order = np.argsort(-p, 1)
    return order, np.take_along_axis(p, order, 1)


@pytest.mark.parametrize(('classes', 'shown'), [(2, 1), (10, 1), (11, 3), (40, 3)])
def test_answers_are_the_largest_shares_of_softmax(classes, shown):
    logits = np.random.default_rng(0).normal(size=(5, classes)) * 3
    order, shares = answers_by_numpy(logits)
    found = best_answers(torch.from_numpy(logits), [f'class {i}' for i in range(classes)])
    assert [[name for name, _ in row] for row in found] == [[f'class {i}' for i in row[:shown]] for row in order]
    np.testing.assert_allclose([[p for _, p in row] for row in found], shares[:, :shown], rtol=1e-5)


def test_classes_without_a_name_have_their_number_and_nothing_is_said_of_nan():
    assert best_answers(torch.tensor([[0.0, 9.0]]), ['only'])[0][0][0] == '1'
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match='not finite'):
            best_answers(torch.tensor([[0.0, bad]]), ['a', 'b'])


def test_names_of_classes_are_the_cfgs_or_imagenets_or_numbers():
    model = create('stn_test_resnet')
    imagenet = ImageNetInfo('imagenet-1k')
    assert class_names(model)[:2] == [imagenet.index_to_description(i).split(',')[0] for i in (0, 1)]
    assert len(class_names(model)) == 1000 and class_names(model)[0] == 'tench'
    model = create('stn_test_resnet', num_classes=3)
    assert class_names(model) == ['0', '1', '2']
    model.pretrained_cfg['label_names'] = ['ant', 'bee', 'cat']
    assert class_names(model) == ['ant', 'bee', 'cat']
    model.pretrained_cfg['label_names'] = ['ant', 'bee']  # of another classifier
    assert class_names(model) == ['0', '1', '2']


def test_images_are_read_as_the_network_takes_them(photos):
    """In the colours, the size and with the mean and deviation of its config; in grey with those of the colours."""
    Image.new('RGB', (50, 40), (255, 0, 102)).save(photos / 'flat.png')
    config = data_config(create('stn_test_resnet'))
    size, colour = config['input_size'], np.array([1.0, 0.0, 0.4])
    image, = read_images([photos / 'flat.png'], config)
    assert tuple(image.shape) == tuple(size)
    expected = (colour - np.array(config['mean'])) / np.array(config['std'])
    np.testing.assert_allclose(image[:, 5, 5], expected, rtol=1e-5, atol=1e-6)
    grey = data_config(create('stn_test_resnet', in_chans=1))
    assert grey['mean'] == pytest.approx((np.mean(config['mean']),)) and grey['input_size'] == (1, *size[1:])
    image, = read_images([photos / 'flat.png'], grey)
    luma = round(255 * 0.299 + 102 * 0.114) / 255  # as Pillow makes grey, ITU-R 601-2
    np.testing.assert_allclose(image[0, 5, 5], (luma - grey['mean'][0]) / grey['std'][0], rtol=0.02)
    with pytest.raises(ValueError, match='images have 1 or 3 channels, and the model takes 4'):
        data_config(create('stn_test_resnet', in_chans=4))


def test_a_picture_has_an_outline_for_every_glimpse(photos):
    model = create('stn_test_resnet', stn_glimpses=2, stn_scale=0.5, stn_transform='translation', num_classes=3)
    pixels = np.asarray(sheet_of(model, [photos / 'a.png', photos / 'b.jpg'], 'mine'))
    colours = {tuple(c) for c in pixels.reshape(-1, 3).tolist()}
    drawn = [tuple(int(c[i:i + 2], 16) for i in (1, 3, 5)) in colours for c in COLORS[:3]]
    assert drawn == [True, True, False]
    with pytest.raises(OSError):
        sheet_of(model, [photos / 'notes.txt'], 'mine')
    assert timm.data.resolve_model_data_config(model)['input_size'] == (3, 160, 160), 'the config stays as it was'


@pytest.mark.parametrize(('name', 'expected'), [
    ('a.png', 'a.png'), ('x' * 26, 'x' * 26), ('abcdefghijklmnopqrstuvwxyz.jpeg', 'abcdefghijkl...uvwxyz.jpeg')])
def test_long_names_lose_their_middle(name, expected):
    assert short_name(name) == expected and len(short_name(name)) <= 26
