"""Traffic signs: tars and tables as published, tracks kept together, augmentation against scipy and Pillow."""
import os

import numpy as np
import pytest
import torch
from gpu_pack import Sources, pack, unpack_signs
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import png, rand, write_signs, write_table, write_tar
from PIL import Image, ImageFilter
from scipy.ndimage import map_coordinates

from timm_stn.data import TASKS
from timm_stn.data.signs import DRAWS, augmented_signs, load_signs, sign_boxes

STILL = torch.full((1, DRAWS), 0.5)  # nothing is changed
STILL[0, 10], STILL[0, 11], STILL[0, 12] = 0.7 / 1.2, 0.7 / 1.1, 1 / 3


@pytest.mark.parametrize('below', ['.', 'gtsrb32'])
def test_pixels_and_boxes(tmp_path, below):
    written = write_signs(tmp_path / below)['test']
    signs, known = load_signs(tmp_path, 'test')
    assert signs.shape == (4, 3, 32, 32) and signs.dtype == torch.uint8 and known.dtype == torch.int64
    for i, name in enumerate(sorted(written, key=lambda name: name[-9:])):  # by number
        assert np.array_equal(signs[i].permute(1, 2, 0).numpy(), written[name]), name
    assert known.tolist() == [[i % 3, 100, 100, 900, 20 * (40 + 3 - i)] for i in range(4)]


def test_tracks_stay_together_in_an_order_of_their_own(tmp_path):
    written = write_signs(tmp_path, tracks=40)['train']
    signs, known = load_signs(tmp_path)
    of = {each.tobytes(): name for name, each in written.items()}
    names = [of[image.permute(1, 2, 0).contiguous().numpy().tobytes()] for image in signs]
    tracks = [name.rpartition('_')[0] for name in names]
    assert sorted(names) == sorted(written) and known[:, 0].tolist() == [int(name[:5]) for name in names]
    assert tracks[::3] == tracks[1::3] == tracks[2::3] and len(set(tracks)) == 40
    assert tracks[::3] != sorted(tracks[::3]) and {track[:5] for track in tracks[-30:]} == {'00000', '00001'}
    assert all(torch.equal(one, other) for one, other in zip(load_signs(tmp_path), (signs, known), strict=True))


def test_a_folder_from_the_environment(tmp_path, monkeypatch):
    write_signs(tmp_path)
    monkeypatch.setenv('TIMM_STN_DATA', str(tmp_path))
    assert len(load_signs()[0]) == 15
    monkeypatch.delenv('TIMM_STN_DATA')
    with pytest.raises(FileNotFoundError, match='TIMM_STN_DATA. It holds test.tar and test-boxes.csv'):
        load_signs(None, 'test')


def test_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'No train.tar and train-boxes.csv .*nor in gtsrb32/ below it\). Down'):
        load_signs(tmp_path)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load_signs(tmp_path, 'val')
    good, row = png(np.zeros((32, 32, 3), np.uint8)), ['00001/00000.png', 40, 40, 4, 4, 36, 36, 1]
    cases = [
        ({row[0]: good}, [], 'test-boxes.csv: there are no lines'),
        ({row[0]: good}, [row, [*row]], None),  # the same twice
        ({row[0]: good}, [['other.png', *row[1:]]], r'differ in their files: 00001/00000.png is in one of them'),
        ({row[0]: good, 'more.png': good}, [row], 'more.png is in one of them'),
        ({row[0]: good[:60]}, [row], '00001/00000.png is no image, or damaged'),
        ({row[0]: b'text'}, [row], '00001/00000.png is no image, or damaged'),
        ({row[0]: png(np.zeros((32, 31, 3), np.uint8))}, [row], 'has 31 x 32 pixels, not 32 x 32'),
        ({row[0]: good}, [[*row[:7], 43]], 'line 2: classes are 0 to 42, got 43'),
        ({row[0]: good}, [[*row[:5], 41, 36, 1]], r'line 2: the box \(4, 4, 41, 36\) does not lie in an image of 40 x'),
        ({row[0]: good}, [[*row[:5], 4, 36, 1]], r'line 2: the box'),
        ({row[0]: good}, [[*row[:7], 'one']], 'line 2: not whole numbers'),
        ({row[0]: good}, [row[:7]], 'line 2: not whole numbers'),
    ]
    for files, rows, message in cases:
        write_tar(tmp_path / 'test.tar', files)
        write_table(tmp_path / 'test-boxes.csv', rows)
        if message is None:
            assert len(load_signs(tmp_path, 'test')[0]) == 1
            continue
        with pytest.raises(ValueError, match=message):
            load_signs(tmp_path, 'test')
    (tmp_path / 'test-boxes.csv').write_text('file,class\n')
    with pytest.raises(ValueError, match=r"columns must be file, width, .*, class, got \['file', 'class'\]"):
        load_signs(tmp_path, 'test')
    write_table(tmp_path / 'test-boxes.csv', [row])
    (tmp_path / 'test.tar').write_bytes(b'not a tar' * 200)
    with pytest.raises(ValueError, match='test.tar: no tar, or damaged'):
        load_signs(tmp_path, 'test')


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA does not name a folder with gtsrb32')
def test_the_benchmark():
    """The counts of Stallkamp et al. 2012, section III: of both splits, and of the smallest and largest classes."""
    signs, known = load_signs(None, 'test')
    assert len(signs) == 12_630 and known[:, 0].unique().tolist() == list(range(43))
    assert torch.bincount(known[:, 0])[[0, 2]].tolist() == [60, 750]
    assert (known[:, 1:3] < known[:, 3:]).all() and known[:, 1:].min() >= 0 and known[:, 1:].max() <= 1000


def test_boxes_from_edge_to_edge():
    known = torch.tensor([[7, 0, 250, 500, 1000], [8, 100, 200, 300, 400]])
    boxes = sign_boxes(known, torch.tensor([1, 0]), torch.rand(2, DRAWS))
    torch.testing.assert_close(boxes, torch.tensor([[-0.8, -0.6, -0.4, -0.2], [-1, -0.5, 0, 1]]))


# augmentation

@pytest.fixture(scope='module')
def signs():
    y, x = torch.meshgrid(torch.arange(32.), torch.arange(32.), indexing='ij')
    waves = [torch.stack([(x / (3 + i) + c).sin() * (y / 5 - c).cos() for c in range(3)]) for i in range(6)]
    return (127.5 * (1 + torch.stack(waves))).to(torch.uint8), torch.cat((torch.arange(6)[:, None] * 7, torch.tensor(
        [[100, 100, 900, 900]] * 6)), dim=1)


def test_the_task_shows_signs_as_they_are(signs):
    task, index = TASKS['SIGNS'], torch.tensor([4, 0, 4])
    images, classes = task.make(*signs, index, rand(3, task.draws))
    assert torch.equal(images, signs[0][index].float() / 255) and classes.tolist() == [28, 0, 28]
    assert (task.size, task.channels, task.classes, task.outputs) == (32, 3, 43, 43)
    assert task.to_train_on is augmented_signs and task.load is load_signs


def test_no_change_in_the_middle_of_all_ranges(signs):
    images, classes = augmented_signs(*signs, torch.tensor([2]), STILL)
    torch.testing.assert_close(images, signs[0][2:3] / 255, rtol=0, atol=1e-5)
    assert classes.tolist() == [14]


def test_an_image_depends_on_its_own_row(signs):
    index, u = torch.tensor([5, 1, 3, 1]), rand(4, DRAWS)
    images, classes = augmented_signs(*signs, index, u)
    assert images.shape == (4, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert (images[1] - images[3]).abs().max() > 0.05, 'one sign twice'
    for i in range(4):
        one, answer = augmented_signs(*signs, index[i:i + 1], u[i:i + 1])
        torch.testing.assert_close(one, images[i:i + 1], rtol=0, atol=1e-6)
        assert answer == classes[i]


def test_bytes_are_shares_of_255(signs):
    index, u = torch.tensor([3]), rand(1, DRAWS)
    one, other = (augmented_signs(kind, signs[1], index, u)[0] for kind in (signs[0], signs[0] / 255))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize('seed', range(3))
def test_the_warp_is_that_of_scipy(signs, seed):
    """Rotation after shear, of scaled coordinates; then the shift, over the tilt's denominator."""
    u = STILL.clone()
    u[:, :9] = rand(1, 9, seed=seed)
    found, _ = augmented_signs(*signs, torch.tensor([1]), u)
    a, k, sx, sy, s, dx, dy = 2 * u[0, :7].double().numpy() - 1
    tilt = 0.2 * u[0, 7:9].double().numpy() - 0.1
    turn = np.array([[np.cos(0.21 * a), -np.sin(0.21 * a)], [np.sin(0.21 * a), np.cos(0.21 * a)]])
    linear = turn @ np.array([[1, 0.15 * k], [0, 1]]) @ np.diag(np.exp(0.11 * np.array([sx + s, sy + s])))
    axis = (np.arange(32) + 0.5) / 16 - 1
    xy = np.stack(np.meshgrid(axis, axis))
    read = np.einsum('ij,jhw->ihw', linear, xy) + 6 / 32 * np.array([dx, dy])[:, None, None]
    read = read / (1 + np.einsum('j,jhw->hw', tilt, xy))
    pixels = ((read + 1) * 16 - 0.5)[::-1]  # y, x
    for c in range(3):
        expected = map_coordinates(signs[0][1, c].double().numpy() / 255, pixels, order=1, mode='nearest')
        assert np.abs(found[0, c].numpy() - expected).max() < 1e-3


def test_the_blur_is_that_of_pillow(signs):
    u = STILL.clone()
    u[:, 12] = 1.0
    found, _ = augmented_signs(*signs, torch.tensor([0]), u)
    image = Image.fromarray(signs[0][0].permute(1, 2, 0).numpy()).filter(ImageFilter.BoxBlur(1))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(found[0, :, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=1 / 255)


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0, 1), shift=st.floats(0, 1), more=st.floats(0, 1))
def test_contrast_then_brightness(signs, gain, shift, more):
    u = STILL.clone()
    u[0, 10], u[0, 11], u[0, 13] = gain, shift, more
    found, _ = augmented_signs(*signs, torch.tensor([3]), u)
    image = signs[0][3].double().numpy() / 255
    expected = image.mean() + (image - image.mean()) * np.exp(1.2 * gain - 0.7)
    expected = expected * np.exp(1.1 * shift - 0.7) + 0.2 * more - 0.1
    assert np.abs(found[0].numpy() - expected.clip(0, 1)).max() < 1e-4


def test_numbers_of_another_shape(signs):
    with pytest.raises(ValueError, match=r'u must have shape \(2, 14\), got \(2, 3\)'):
        augmented_signs(*signs, torch.tensor([0, 1]), torch.rand(2, 3))


def test_a_pack_for_a_gpu_holds_the_same_signs(tmp_path):
    """Unpacked, but for the loss of JPEG, which is large for noise; names, order and boxes are exact."""
    write_signs(tmp_path / 'data' / 'gtsrb32')
    pack(Sources(tmp_path / 'data'), tmp_path / 'pack', ['signs'])
    unpack_signs(tmp_path / 'pack', tmp_path / 'signs', 'signs')
    for split in ('train', 'test'):
        (images, known), (packed, same) = (load_signs(tmp_path / folder, split) for folder in ('data', 'signs'))
        assert torch.equal(known, same)
        near = (images[:, None].float() - packed[None].float()).square().mean((2, 3, 4)).argmin(1)
        assert near.tolist() == list(range(len(images))), 'each is nearest to itself'
