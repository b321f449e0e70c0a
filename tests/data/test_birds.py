"""Birds: what is read from folders and tars, and crops against scipy."""
import tarfile

import numpy as np
import pytest
import torch
from makers import rand
from PIL import Image
from scipy.ndimage import map_coordinates

from timm_stn.data import TASKS, birds


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three species of four plain photographs each, whose colour tells which; one of them is not square."""
    monkeypatch.setattr(birds, 'CLASSES', 3)
    for split in ('train', 'test'):
        for label, species in enumerate(('001.Albatross', '002.Finch', '003.Owl')):
            (tmp_path / split / species).mkdir(parents=True)
            for i in range(4):
                size = (300, 150) if (label, i) == (2, 3) else (224, 224)
                Image.new('RGB', size, (10 * label, i, 7)).save(tmp_path / split / species / f'{i}.png')
    return tmp_path


def read(folder, split='train'):
    images, labels = birds.load_birds(folder, split)
    assert images.dtype == torch.uint8 and images.shape == (12, 3, 224, 224) and labels.dtype == torch.int64
    assert (images.amax((2, 3)) == images.amin((2, 3))).all()
    assert (images[:, 0, 0, 0] == 10 * labels).all() and (images[:, 2] == 7).all()
    return images[:, :2, 0, 0].tolist()


def test_folders_and_tars_hold_the_same(folder, tmp_path_factory, monkeypatch):
    of_folders, other = read(folder), tmp_path_factory.mktemp('tars')
    (other / 'cub200-2010').mkdir()
    for split in ('train', 'test'):
        with tarfile.open(other / 'cub200-2010' / f'{split}.tar', 'w') as tar:
            tar.add(folder / split, split)
    assert read(other) == of_folders
    assert birds.bird_names(other) == birds.bird_names(folder) == ['Albatross', 'Finch', 'Owl']
    monkeypatch.setenv('TIMM_STN_DATA', str(other))
    assert read(None) == of_folders


def test_training_birds_come_in_a_fair_order_that_is_always_the_same(folder):
    found = read(folder)
    assert found == read(folder) and sorted(found) == sorted(read(folder, 'test')) and found != sorted(found)
    assert read(folder, 'test') == sorted(found)


def test_images_of_something_else_are_refused(folder, monkeypatch):
    monkeypatch.setattr(birds, 'CLASSES', 200)
    with pytest.raises(ValueError, match='test: images of 200 classes are needed, and there are 3'):
        birds.load_birds(folder, 'test')


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'no test or test.tar in .*, nor in cub200-2010 below it. It n'):
        birds.load_birds(tmp_path, 'test')
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        birds.load_birds(tmp_path, 'val')
    monkeypatch.delenv('TIMM_STN_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match='pass one as `data`, or name it in TIMM_STN_DATA'):
        birds.load_birds()


def test_crops_against_scipy():
    images, u = rand(6, 3, 20, 16), rand(6, birds.CROP_DRAWS, seed=1)
    found = birds.random_crops(images, u)
    for image, crop, (area, aspect, x, y, mirror) in zip(images, found, u.tolist(), strict=True):
        side, ratio = (0.35 + 0.65 * area) ** 0.5, (4 / 3) ** (aspect - 0.5)
        half = [min(1, side * ratio), min(1, side / ratio)]
        middle = [(2 * place - 1) * (1 - h) for place, h in zip((x, y), half)]
        columns, rows = ((2 * np.arange(n) + 1) / n - 1 for n in (16, 20))
        columns = (-columns if mirror >= 0.5 else columns) * half[0] + middle[0]
        rows = rows * half[1] + middle[1]
        where = np.meshgrid(((rows + 1) * 20 - 1) / 2, ((columns + 1) * 16 - 1) / 2, indexing='ij')
        expected = [map_coordinates(channel.double().numpy(), where, order=1, mode='nearest') for channel in image]
        torch.testing.assert_close(crop, torch.tensor(np.stack(expected)).float(), rtol=0, atol=1e-5)
    assert 1 <= (u[:, 4] >= 0.5).sum() <= 5, 'some are mirrored'


def test_as_tasks():
    photos, labels = (rand(4, 3, 224, 224) * 255).to(torch.uint8), torch.tensor([5, 7, 1, 1])
    task, index = TASKS['BIRDS'], torch.tensor([2, 0])
    u = rand(2, task.draws)
    x, y = task.make(photos, labels, index, u)
    assert torch.equal(x, photos[index] / 255) and y.tolist() == [1, 5]
    x, y = task.to_train_on(photos, labels, index, u)
    assert torch.equal(x, birds.random_crops(photos[index] / 255, u)) and y.tolist() == [1, 5]
    assert TASKS['R'].to_train_on is TASKS['R'].make
