"""Class names of a run's folder of images, in the order of timm's labels."""
import numpy as np
import pytest
from PIL import Image

from timm_stn.publish.class_names import class_names


@pytest.fixture
def data(tmp_path):
    def make(*names, split='train'):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / split / name / 'a.png')
        return tmp_path
    return make


@pytest.mark.parametrize('split,given', [('train', {}), ('training', {}), ('mine', dict(train_split='mine')), ('', {})])
def test_names_in_the_order_of_labels(data, split, given):
    root = data('c10', 'c9', 'Ä b', split=split)
    assert class_names(dict(data_dir=str(root), **given), 3) == ['c9', 'c10', 'Ä b']
    assert class_names(dict(data=str(root), data_dir=None, dataset='', **given), 3) == ['c9', 'c10', 'Ä b']


def test_a_file_of_classes(data, tmp_path):
    root = data('a', 'b', 'c')
    (tmp_path / 'classes.txt').write_text('c\na\n')
    for place in (tmp_path / 'classes.txt', '../classes.txt'):  # by itself, or from the images' folder
        assert class_names(dict(data_dir=str(root), class_map=str(place)), 2) == ['c', 'a']


def test_what_is_not_known_is_not_told(data, tmp_path):
    root = str(data('a', 'b'))
    assert class_names(dict(data_dir=root), 2) == ['a', 'b']
    assert class_names(dict(data_dir=root), 3) == [], 'other classes than the network has'
    assert class_names(dict(data_dir=root, dataset='hfds/acme/birds'), 2) == [], 'data from elsewhere'
    assert class_names(dict(data_dir=root, class_map='no.txt'), 2) == []
    assert class_names(dict(data_dir=str(tmp_path / 'gone')), 2) == [] and class_names({}, 2) == []
    (tmp_path / 'empty').mkdir()
    assert class_names(dict(data_dir=str(tmp_path / 'empty')), 2) == []


def test_names_that_are_no_text(data):
    root = data('a', 'b\udcff')
    assert class_names(dict(data_dir=str(root)), 2) == ['a', 'b?']
