"""Several networks and many images: what is kept of each, and in which order."""
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import create
from PIL import Image

from timm_stn import wrap
from timm_stn.view import gallery
from timm_stn.view.classes import Classes
from timm_stn.view.gallery import Files, Trouble, Truths, Viewed, sights
from timm_stn.view.images import BadImage
from timm_stn.view.masks import find_masks
from timm_stn.view.observe import observe
from timm_stn.view.sheet import read_images

CLASSES = Classes(['ant', 'bee', 'cat'], {'bees': 1})


def viewed(name='mine', **kwargs):
    return Viewed(create('stn_test_resnet', num_classes=3, **kwargs), name, CLASSES)


@pytest.fixture
def files(photos):
    paths = [photos / name for name in ('notes.txt', 'a.png', 'b.jpg', 'more/c.png', 'gone.png')]
    return Files(paths, ['', '', 'bees', '', ''])


def test_what_is_kept_is_what_the_network_made_of_it(files):
    network = viewed(stn_transform='similarity')
    network.model.spatial_transformers()['input'].localization.regression.bias.data.uniform_(-0.05, 0.05)
    trouble = Trouble()
    found = dict(sights([network], files, range(5), 9, Truths(), trouble))
    read = read_images(files.paths, network.config)
    with torch.inference_mode():
        look = observe(network.model, read.pixels)
    assert list(found) == read.chosen == [1, 2, 3] and trouble.bad == read.bad
    for k, (sight,) in enumerate(found.values()):
        torch.testing.assert_close(sight.theta, look.theta[k], atol=1e-5, rtol=0)
        torch.testing.assert_close(sight.lattice, look.lattice[k], atol=1e-5, rtol=0)
        mean, std = (torch.tensor(network.config[key])[:, None, None] for key in ('mean', 'std'))
        expected = ((read.pixels[k] * std + mean).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(sight.image) - expected).max() <= 0.51
    assert [sight.truth for sight, in found.values()] == [None, 1, None]


def test_networks_may_differ_in_all_they_take(files):
    others = [viewed(), viewed('grey', in_chans=1, img_size=64), viewed('two', stn_glimpses=2, stn_scale=0.5)]
    found = dict(sights(others, files, [3, 1, 2], 2, Truths(), Trouble()))
    assert set(found) == {1, 3}, 'so many, in the order given'
    row = found[1]
    assert [sight.image.size for sight in row] == [(160, 160), (64, 64), (160, 160)]
    assert [len(sight.seen) for sight in row] == [1, 1, 2] and [len(sight.place) for sight in row] == [1, 1, 2]
    grey = np.asarray(row[1].image)
    assert (grey == grey[..., :1]).all() and not (np.asarray(row[0].image) == np.asarray(row[0].image)[..., :1]).all()


def test_batches_hold_fewer_large_images():
    assert viewed().batch == gallery.BATCH > viewed(img_size=1024).batch == 1


def test_a_plain_network_answers_as_it_is(files):
    plain = create('test_resnet', num_classes=3).eval()
    wrapped = wrap(plain, transform='translation', scale=(0.25, 0.5))
    network = Viewed(wrapped, 'plain', CLASSES, None, 'saliency:3')
    (sight,), = (row for _, row in sights([network], files, [1], 1, Truths(), Trouble()))
    pixels = read_images(files.paths[1:2], network.config).pixels
    with torch.inference_mode():
        best = plain(pixels).softmax(1)[0].max()
        through = wrapped(pixels).softmax(1)[0].max()
    assert sight.caption.answers[0][1] == pytest.approx(float(best), abs=1e-5)
    assert abs(best - through) > 1e-4, 'which is not what it answers through the look'


def test_boxes_and_masks_go_to_the_input_and_the_look_to_the_file(files, tmp_path):
    network = viewed()
    folder = tmp_path / 'masks'
    folder.mkdir()
    Image.new('1', (120, 90), 1).save(folder / 'a.png')
    Image.new('1', (5, 5), 1).save(folder / 'b.png')
    truths, trouble = Truths({'a.png': [(15, 0, 105, 90)]}, find_masks(folder)), Trouble()
    network.config.update(crop_pct=1.0)
    rows = dict(sights([network], files, [1, 2], 2, truths, trouble))
    torch.testing.assert_close(rows[1][0].boxes, torch.tensor([[-1.0, -1, 1, 1]]), atol=0.01, rtol=0)
    corners = torch.tensor([[[15.0, 0], [105, 0], [105, 90], [15, 90]]])  # the middle of 120 x 90 pixels
    torch.testing.assert_close(rows[1][0].place, corners, atol=0.5, rtol=0)
    assert not len(rows[2][0].boxes) and trouble.met == {'boxes', 'masks'} == truths.asked()
    note, = trouble.lines()
    assert note.startswith('masks that are not shown: ') and '5 x 5 pixels, and its image has 90 x 120' in note
    plain = dict(sights([network], files, [1, 2], 2, Truths(), Trouble()))
    changed = [[np.asarray(one) != np.asarray(other) for one, other in zip(
        [rows[i][0].image, *rows[i][0].seen], [plain[i][0].image, *plain[i][0].seen])] for i in (1, 2)]
    assert all(tile.any() for tile in changed[0]) and not any(tile.any() for tile in changed[1])


def test_nothing_to_show(files):
    with pytest.raises(BadImage, match='no image can be read; .*notes.txt: not an image'):
        list(sights([viewed()], Files([files.paths[0]], ['']), [0], 5, Truths(), Trouble()))
    network = viewed()
    network.model.backbone.fc.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match='not finite'):
        list(sights([network], Files([Path(files.paths[1])], ['']), [0], 5, Truths(), Trouble()))


def test_a_picture_that_a_transform_makes_nothing_of_is_skipped(files, photos):
    Image.new('RGB', (2, 900)).save(photos / 'thin.png')
    network, trouble = viewed(), Trouble()
    network.config['crop_mode'] = 'border'
    rows = dict(sights([network], Files([photos / 'thin.png', files.paths[1]], ['', '']), [0, 1], 5, Truths(), trouble))
    assert list(rows) == [1] and len(trouble.bad) == 1 and 'thin.png: 2 x 900 pixels: ' in trouble.bad[0]
