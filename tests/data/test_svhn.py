"""SVHN, from small files that are made as the published ones are."""
import importlib
import json
import re
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_archives import GREEN, GREY, RED, write_svhn

from timm_stn import cli
from timm_stn.data.svhn import load_svhn


@pytest.mark.parametrize('below', ['', 'svhn'])
@pytest.mark.parametrize('split', ['train', 'test', 'extra'])
@pytest.mark.parametrize('size', [64, 128])
def test_classes_and_shapes(tmp_path, below, split, size):
    write_svhn(tmp_path / below / split)
    images, classes = load_svhn(tmp_path, split, size)
    assert images.shape == (3, 3, size, size) and images.dtype == torch.uint8
    assert classes.dtype == torch.int64
    assert classes.tolist() == [[7, 0, 10, 10, 10], [3, 10, 10, 10, 10], [0, 0, 9, 1, 2]]


def edges(image, colour):
    """Left, top, right and bottom edges of a colour in an image, pixels."""
    seen = (image.float() - torch.tensor(colour)[:, None, None]).abs().amax(dim=0) < 60
    rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
    return columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1


def test_tight_crops(tmp_path):
    """The box of 40 x 40 becomes 52 x 52: 64 / 1.3 = 49.2 of 64 pixels, from 7.4 to 56.6, its digits side by side."""
    images, _ = load_svhn(write_svhn(tmp_path / 'train').parent)
    assert edges(images[0], RED) == pytest.approx((7.4, 7.4, 32, 56.6), abs=1.01)
    assert edges(images[0], GREEN) == pytest.approx((32, 7.4, 56.6, 56.6), abs=1.01)
    assert edges(images[1], RED) == pytest.approx((7.4, 7.4, 56.6, 56.6), abs=1.01)
    assert images[0][:, 0, 0].tolist() == list(GREY)
    # a row of 80 x 20: stretched, as Goodfellow et al. do
    assert edges(images[2], RED)[1::2] == pytest.approx((7.4, 56.6), abs=1.01)
    assert edges(images[2], GREEN)[::2] == pytest.approx((7.4 + 49.2 / 5, 56.6 - 49.2 / 5), abs=1.01)


def test_loose_crops(tmp_path):
    """The box of 40 x 40 becomes 104 x 104: as high as 100 pixels and more, so in the middle; in the width as it is."""
    images, _ = load_svhn(write_svhn(tmp_path / 'train').parent, size=128)
    scale = 128 / 104
    assert edges(images[0], RED) == pytest.approx((32 * scale, 32 * scale, 52 * scale, 72 * scale), abs=1.01)
    # the box of 20 x 20 becomes 52 x 52, from 24 to 76 and from 4 to 56
    assert edges(images[1], RED) == pytest.approx((39.4, 39.4, 88.6, 88.6), abs=1.01)
    moved = [((200, 200), [(0, 160, 20, 20)], [1]), ((200, 200), [(175, 10, 20, 20)], [1])]
    images, _ = load_svhn(write_svhn(tmp_path / 'corners' / 'train', moved).parent, size=128)
    scale = 128 / 52
    assert edges(images[0], RED) == pytest.approx((0, 16 * scale, 20 * scale, 36 * scale), abs=1.01)
    assert edges(images[1], RED) == pytest.approx((27 * scale, 10 * scale, 47 * scale, 30 * scale), abs=1.01)


def test_the_edge_goes_on_beyond_the_image(tmp_path):
    """A box at the image's corner, which reaches beyond it by two pixels as some of SVHN do."""
    entries = [((60, 60), [(-2, -2, 20, 20)], [4])]
    images, classes = load_svhn(write_svhn(tmp_path / 'train', entries).parent)
    assert classes[0, 0] == 4
    assert images[0][:, 0, 0].tolist() == list(RED)  # not black
    assert edges(images[0], RED) == pytest.approx((0, 0, 56.6, 56.6), abs=1.01)


def test_crops_are_antialiased(tmp_path):
    """Stripes of one pixel, shrunk by ten, are their mean."""
    write_svhn(tmp_path / 'train', [((700, 700), [(100, 100, 500, 500)], [4])])
    stripes = np.zeros((700, 700, 3), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / 'train' / '1.png')
    images, _ = load_svhn(tmp_path)
    assert (images.float() - 100).abs().max() < 8


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="split must be 'train', 'extra' or 'test', got 'val'"):
        load_svhn(tmp_path, 'val')
    with pytest.raises(ValueError, match='size must be 64 or 128, got 54'):
        load_svhn(tmp_path, size=54)
    with pytest.raises(FileNotFoundError, match=r'Download extra\.tar\.gz from http://ufldl\.'):
        load_svhn(tmp_path, 'extra')


@pytest.mark.parametrize(('boxes', 'labels', 'message'), [
    ([(5, 5, 10, 10)], [0], 'labels must be from 1 to 10, 1.png has 0'),
    ([(5, 5, 10, 10)] * 2, [3, 11], 'labels must be from 1 to 10, 1.png has 11'),
    ([(5, 5, 10, 10)], [1.5], 'labels must be from 1 to 10, 1.png has 1.5'),
    ([(5, 5, 0, 10)], [1], '1.png has a box of 0 x 10 pixels'),
    ([(50, 5, 10, 10)], [1], r'the box \(50.0, 5.0, 10.0, 10.0\) .* lies outside the image of 50 x 40'),
    ([(5, -10, 10, 10)], [1], 'lies outside the image'),
    ([], [], '1.png has no digits'),
])
def test_what_is_no_sequence(tmp_path, boxes, labels, message):
    write_svhn(tmp_path / 'train', [((50, 40), [(5, 5, 10, 10)] * max(len(boxes), 1), labels or [1])])
    write_boxes(tmp_path / 'train', boxes, labels)
    with pytest.raises(ValueError, match=message):
        load_svhn(tmp_path)


def write_boxes(folder, boxes, labels):
    """Boxes anew, with no picture of them."""
    with h5py.File(folder / 'digitStruct.mat', 'r+') as file:
        group = file[file['digitStruct/bbox'][0, 0]]
        columns = zip(*boxes) if boxes else [()] * 4
        for key, values in zip(('left', 'top', 'width', 'height', 'label'), (*columns, labels)):
            del group[key]
            group[key] = np.array(values, np.float64)[:, None]


def _cut(path):
    path.write_bytes(path.read_bytes()[:700])


def _without(key):
    def damage(path):
        with h5py.File(path, 'r+') as file:
            del file[key]
    return damage


def _null(path):
    with h5py.File(path, 'r+') as file:
        file['digitStruct/bbox'][0, 0] = h5py.Reference()


@pytest.mark.parametrize('damage', [
    _cut, _without('digitStruct'), _without('digitStruct/bbox'), _null,
    lambda path: path.write_bytes(b'MATLAB 5.0 MAT-file'),
])
def test_damaged_struct(tmp_path, damage):
    path = write_svhn(tmp_path / 'train') / 'digitStruct.mat'
    damage(path)
    with pytest.raises(ValueError, match=r'not the digitStruct\.mat of SVHN, or damaged') as error:
        load_svhn(tmp_path)
    assert str(path) in str(error.value)


def test_names_stay_in_the_folder(tmp_path):
    write_svhn(tmp_path / 'train')
    with h5py.File(tmp_path / 'train' / 'digitStruct.mat', 'r+') as file:
        file['#refs#/evil'] = np.array([[ord(c)] for c in '../1.png'], np.uint16)
        file['digitStruct/name'][0, 0] = file['#refs#/evil'].ref
    with pytest.raises(ValueError, match=r"'\.\./1\.png' is no name of a file in its folder"):
        load_svhn(tmp_path)


def test_missing_and_damaged_images(tmp_path):
    path = write_svhn(tmp_path / 'train') / '2.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r'2\.png: no image, or damaged'):
        load_svhn(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'2\.png, which digitStruct\.mat names: unpack the whole archive'):
        load_svhn(tmp_path)


def test_without_h5py(tmp_path, monkeypatch):
    write_svhn(tmp_path / 'train')
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match=r'pip install "timm-stn\[svhn\]"'):
        load_svhn(tmp_path)


# training

@pytest.mark.parametrize(('model', 'kwargs'), [
    ('svhn_cnn', []),
    ('stn_svhn_cnn', ["stn_stages=['input',0,1,2]", 'stn_localization=fc:hidden=32,depth=2', 'stn_lr_scale=0.1'])])
def test_a_network_is_trained_and_tested_on_it(tmp_path, model, kwargs):
    """On train and extra, and on test, of which every sequence that is not read as a whole counts as an error."""
    for split in ('train', 'extra', 'test'):
        write_svhn(tmp_path / 'svhn' / split)
    script = importlib.import_module('train_task')
    script.main([
        '--model', model, '--model-kwargs', 'width=0.15', 'drop_rate=0.0', *kwargs, '--set', 'SVHN64', '--data',
        str(tmp_path), '--output', str(tmp_path / 'run'), '--epochs', '4', '--batch-size', '6', '--lr', '0.002'])
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    losses = [line.split(',')[2] for line in (tmp_path / 'run' / 'summary.csv').read_text().splitlines()[1:]]
    assert result['train_loss'] < 1 < 2 < float(losses[0]) and len(result['test_errors']) == 4
    args = script.parse_args(['--set', 'SVHN64', '--data', str(tmp_path), '--output', 'none'])
    images, labels, tested, _ = script.digits_of(args)
    assert len(images) == len(labels) == 6 and len(tested) == 3


def test_a_network_is_measured_on_it(tmp_path, capsys):
    write_svhn(tmp_path / 'test')
    argv = ['eval', 'svhn_cnn', '--no-pretrained', '--set', 'SVHN64', '--data', str(tmp_path)]
    argv += ['--model-kwargs', 'width=0.05']
    assert cli.main(argv) == 0
    assert re.search(r'svhn_cnn on SVHN64: test error .* of 3 wrong', capsys.readouterr().out)
    for more, message in ((['--download'], 'argument --download: downloads MNIST, and --set SVHN64 is not made of it'),
                          (['--data', str(tmp_path / 'none')], 'argument --data: FileNotFoundError')):
        with pytest.raises(SystemExit):
            cli.main([*argv, *more])
        assert message in capsys.readouterr().err
