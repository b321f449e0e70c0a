"""A picture of where a network looks: how images are read for it, and how its answers are named."""
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from makers import create
from PIL import Image

from timm_stn.view.classes import Classes
from timm_stn.view.draw import COLORS
from timm_stn.view.images import BadImage
from timm_stn.view.sheet import best_answers, captions, data_config, read_images, sheet_of, short_name, some


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


def test_captions_say_what_is_right_where_the_class_is_known():
    logits = torch.tensor([[1.0, 3, 2], [1, 3, 2], [1, 3, 2], [3, 3, 0]])
    paths = [Path(f'{i}.png') for i in range(4)]
    said = captions(logits, Classes(['ant', 'bee', 'bee'], {}), paths, [1, 2, None, 1])  # two classes of one name
    assert [c.right for c in said] == [True, False, None, True], 'of two best answers either is right'
    assert [c.truth for c in said] == ['', 'is bee', '', ''] and said[1].note == '1.png'
    assert [c.answers[0][0] for c in said[:3]] == ['bee'] * 3


def test_files_that_cannot_be_read_are_skipped_and_named(photos):
    (photos / 'cut.png').write_bytes((photos / 'a.png').read_bytes()[:200])
    paths = [photos / name for name in ('cut.png', 'a.png', 'gone.png', 'b.jpg', 'notes.txt', 'more/c.png')]
    config = data_config(create('stn_test_resnet'))
    read = read_images(paths, config)
    assert read.chosen == [1, 3, 5] and len(read.pixels) == 3 and len(read.bad) == 3
    assert all(line.startswith(f'{path}: ') for line, path in zip(read.bad, paths[::2]))
    few = read_images(paths, config, order=[4, 5, 0, 1, 3], count=2)
    assert few.chosen == [1, 5] and len(few.bad) == 2 and torch.equal(few.pixels, read.pixels[[0, 2]])
    with pytest.raises(BadImage, match='no image can be read; .*cut.png: image file is truncated; .*gone.png: No such'):
        read_images(paths[:3:2], config)


def test_what_is_not_shown_as_it_is_is_said_once_with_the_files(photos):
    for i in range(7):
        Image.fromarray(np.full((20, 20), 999 * i, dtype=np.uint16)).save(photos / f'{i}.png')
    paths = [*(photos / f'{i}.png' for i in range(7)), photos / 'a.png']
    read = read_images(paths, data_config(create('stn_test_resnet')))
    note, = read.notes
    assert '16 bits' in note and note.endswith(': 0.png, 1.png, 2.png, 3.png, 4.png, 2 more')
    assert some(['a', 'b']) == 'a; b' and some(list('abcdefg')) == 'a; b; c; d; e; 2 more'


def test_images_are_read_as_the_network_takes_them(photos):
    """In the colours, the size and with the mean and deviation of its config; in grey with those of the colours."""
    Image.new('RGB', (50, 40), (255, 0, 102)).save(photos / 'flat.png')
    config = data_config(create('stn_test_resnet'))
    size, colour = config['input_size'], np.array([1.0, 0.0, 0.4])
    image, = read_images([photos / 'flat.png'], config).pixels
    assert tuple(image.shape) == tuple(size)
    expected = (colour - np.array(config['mean'])) / np.array(config['std'])
    np.testing.assert_allclose(image[:, 5, 5], expected, rtol=1e-5, atol=1e-6)
    grey = data_config(create('stn_test_resnet', in_chans=1))
    assert grey['mean'] == pytest.approx((np.mean(config['mean']),)) and grey['input_size'] == (1, *size[1:])
    image, = read_images([photos / 'flat.png'], grey).pixels
    luma = round(255 * 0.299 + 102 * 0.114) / 255  # as Pillow makes grey, ITU-R 601-2
    np.testing.assert_allclose(image[0, 5, 5], (luma - grey['mean'][0]) / grey['std'][0], rtol=0.02)
    with pytest.raises(ValueError, match='images have 1 or 3 channels, and the model takes 4'):
        data_config(create('stn_test_resnet', in_chans=4))


def test_a_picture_has_an_outline_for_every_glimpse(photos):
    model = create('stn_test_resnet', stn_glimpses=2, stn_scale=0.5, stn_transform='translation', num_classes=3)
    picture, lines = sheet_of(model, [photos / 'a.png', photos / 'b.jpg'], 'mine')
    pixels = np.asarray(picture)
    colours = {tuple(c) for c in pixels.reshape(-1, 3).tolist()}
    drawn = [tuple(int(c[i:i + 2], 16) for i in (1, 3, 5)) in colours for c in COLORS[:3]]
    assert drawn == [True, True, False] and not lines
    with pytest.raises(ValueError, match='notes.txt: not an image'):
        sheet_of(model, [photos / 'a.png', photos / 'notes.txt'], 'mine')
    _, lines = sheet_of(model, [photos / 'notes.txt', photos / 'a.png', photos / 'b.jpg'], 'mine', count=1)
    assert len(lines) == 1 and 'notes.txt: not an image' in lines[0]
    assert timm.data.resolve_model_data_config(model)['input_size'] == (3, 160, 160), 'the config stays as it was'


@pytest.mark.parametrize(('name', 'expected'), [
    ('a.png', 'a.png'), ('x' * 26, 'x' * 26), ('abcdefghijklmnopqrstuvwxyz.jpeg', 'abcdefghijkl...uvwxyz.jpeg')])
def test_long_names_lose_their_middle(name, expected):
    assert short_name(name) == expected and len(short_name(name)) <= 26
