"""Published archives become what the readers of the data sets read, and lists that do not agree are refused."""
import csv
import gzip
import io
import os
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_archives import (
    cub_files,
    gtsrb_files,
    picture,
    small_cub,
    small_gtsrb,
    small_svhn,
    tree,
    write_svhn,
    write_tgz,
    write_zip,
)
from timm.data import create_dataset

from timm_stn.data.archives import InTheWay, WrongSource, unpack_cub, unpack_gtsrb, unpack_svhn
from timm_stn.data.archives.homes import HOMES
from timm_stn.data.signs import load_signs
from timm_stn.data.svhn import load_svhn
from timm_stn.view.boxes import boxes_of_file, read_boxes

# birds

@pytest.mark.parametrize('source', ['tgz', 'tar', 'zip', 'folder', 'folder above', './'])
def test_birds_are_what_timm_and_the_boxes_reader_read(tmp_path, source):
    photographs = small_cub(tmp_path / 'cub.tgz', classes=3, each=5)
    files, _ = cub_files(classes=3, each=5)
    given = tmp_path / 'cub.tgz'
    if source == 'zip':
        write_zip(given, files)
    elif source == 'tar':
        given.write_bytes(gzip.decompress(given.read_bytes()))
    elif source == './':
        write_tgz(given, {f'./{name}': content for name, content in reversed(files.items())})
    elif source.startswith('folder'):
        shutil.unpack_archive(given, tmp_path / 'by-hand')
        given = tmp_path / 'by-hand' / ('' if source == 'folder above' else 'CUB_200_2011')
    done = unpack_cub([given], tmp_path / 'out', subset=True)
    assert done.counts == {'train': 9, 'test': 6, 'classes': 3} and not done.was_there
    for split in ('train', 'test'):
        own = {each.path: each for each in photographs if each.split == split}
        boxes = read_boxes(tmp_path / 'out' / f'{split}-boxes.csv')
        images = create_dataset('', root=str(tmp_path / 'out' / split))
        found = {images.filename(i): images.reader[i][1] for i in range(len(images))}
        assert found == {path: int(path[:3]) - 1 for path in own}
        for path, photograph in own.items():
            file = tmp_path / 'out' / split / path
            assert file.read_bytes() == photograph.content
            assert boxes_of_file(file, boxes) == [photograph.box]
        rows = list(csv.DictReader((tmp_path / 'out' / f'{split}-boxes.csv').open()))
        for row in rows:
            size = Image.open(io.BytesIO(own[row['file']].content)).size
            assert (int(row['width']), int(row['height'])) == size
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        '.cub.json', 'test', 'test-boxes.csv', 'train', 'train-boxes.csv']


def test_real_photographs_may_be_given(tmp_path):
    sizes = {'001.Crow': (30, 20), '002.Jay': (9, 40)}
    mine = [(folder, [picture(size, k) for k in range(2)]) for folder, size in sizes.items()]
    small_cub(tmp_path / 'cub.tgz', mine)
    unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True)
    assert (tmp_path / 'out' / 'train' / '002.Jay' / 'Jay_0001_1000.jpg').read_bytes() == mine[1][1][0]


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA does not name a folder with cub200-2010')
def test_real_photographs(tmp_path):
    photographs = create_dataset('', root=f'{os.environ["TIMM_STN_DATA"]}/cub200-2010/test.tar')
    contents = [photographs.reader[i][0].read() for i in range(0, 200, 5)]
    small_cub(tmp_path / 'cub.tgz', [(f'{c + 1:03}.Class', contents[c::4]) for c in range(4)])
    assert unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True).counts['train'] == 20
    written = [path.read_bytes() for path in (tmp_path / 'out').glob('*/*/*.jpg')]
    assert sorted(written) == sorted(contents)


def test_fractions_of_pixels_are_kept(tmp_path):
    files, photographs = cub_files()
    name = 'CUB_200_2011/bounding_boxes.txt'
    files[name] = files[name].replace(b'1 12.0 12.0 24.0 24.0 \n', b'1 0.25 1 24.0 1234567.5\n', 1)
    write_tgz(tmp_path / 'cub.tgz', files)
    unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True)
    boxes = read_boxes(tmp_path / 'out' / 'train-boxes.csv')
    assert boxes[photographs[0].path] == [(0.25, 1.0, 24.25, 1234568.5)]


@pytest.mark.parametrize(('place', 'is_met'), [
    (b'500 600 2000 2100', False), (b'48 0 5 5', False), (b'0 48 5 5', False), (b'-5 0 5 5', False),
    (b'0 -5.5 5 5.5', False), (b'47.5 0 5 5', True), (b'0 47.5 5 5', True), (b'-5 0 5.5 5', True),
    (b'-1 -0.5 50 50', True)])
def test_boxes_may_reach_beyond_their_images_but_not_be_outside(tmp_path, place, is_met):
    files, photographs = cub_files()
    change = changed('bounding_boxes', b'^1 .*', b'1 ' + place)
    change(files)
    write_tgz(tmp_path / 'cub.tgz', files)
    if is_met:
        unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True)
        x, y, width, height = map(float, place.split())
        boxes = read_boxes(tmp_path / 'out' / 'train-boxes.csv')
        assert boxes[photographs[0].path] == [(x, y, x + width, y + height)]
    else:
        with pytest.raises(WrongSource, match='bounding_boxes.txt: the box of .*_0001_0.jpg.* is outside the image of '
                                              '48 x 48 pixels'):
            unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True)
        assert not any((tmp_path / 'out').iterdir())


def changed(name, old, new):
    def change(files):
        path = f'CUB_200_2011/{name}.txt'
        assert re.search(old, files[path], re.MULTILINE)
        files[path] = re.sub(old, new, files[path], count=1, flags=re.MULTILINE)
    return change


def without(name):
    return lambda files: files.pop(f'CUB_200_2011/{name}')


def more(name, content):
    return lambda files: files.update({f'CUB_200_2011/{name}': content})


FIRST = 'images/001.Random_a_Bird/Random_a_Bird_0001_0.jpg'


@pytest.mark.parametrize(('change', 'message'), [
    (without('images.txt'), 'there is no images.txt'),
    (without('train_test_split.txt'), 'there is no train_test_split.txt'),
    (without(FIRST), r'images.txt names .001.Random_a_Bird/Random_a_Bird_0001_0.jpg., and .* \(1 are missing\)'),
    (more('images/001.Random_a_Bird/more.jpg', picture((9, 9))), 'more.jpg. is an image, and not in images.txt'),
    (more(FIRST, b'GIF89a'), 'Random_a_Bird_0001_0.jpg. is no image, or damaged'),
    (more(FIRST, b''), 'Random_a_Bird_0001_0.jpg. is no image, or damaged'),
    (more(FIRST, picture((9, 9), kind='TIFF')), 'is no image, or damaged'),
    (changed('images', rb'^1 ', b'99 '), 'images.txt and image_class_labels.txt differ: image 1 is in one of them'),
    (changed('images', rb'^2 ', b'1 '), 'images.txt, line 2: 1 is there twice'),
    (changed('images', rb'^(1 .*)\n2 .*', rb'\1\n2' + f' {FIRST[7:]}'.encode()), 'images.txt: 1 and 2 have one name'),
    (changed('images', rb'^1 .*', b'1 ../../evil.jpg'), r'image 1, .../../evil.jpg., is of class .1. in'),
    (changed('images', rb'^1 .*', b'1 a b'), "images.txt, line 1: takes a number and 1 more, got '1 a b'"),
    (changed('train_test_split', rb'^1 1', b'1 2'), r"image 1 must have 1 \(train\) or 0 \(test\), got '2'"),
    (changed('train_test_split', rb'^1 1 \n', b''), 'images.txt and train_test_split.txt differ: image 1'),
    (changed('train_test_split', rb'^1 1 \n2 0 \n3 1', b'1 0\n2 0\n3 0'),
     'class .001.Random_a_Bird. has images of only one of train and test'),
    (changed('image_class_labels', rb'^1 1', b'1 2'), 'is of class .2. in .*, and that is .002.Random_b_Bird. in'),
    (changed('image_class_labels', rb'^1 1', b'1 7'), 'is of class .7. in .*, and that is none in classes.txt'),
    (changed('classes', b'002.Random_b_Bird', b'001.Random_a_Bird'), 'classes.txt: 1 and 2 have one name, .001.Ran'),
    (changed('bounding_boxes', rb'^1 .*', b'1 1 2 3'), 'bounding_boxes.txt, line 1: takes a number and 4 more'),
    (changed('bounding_boxes', rb'^1 .*', b'1 1 2 3 x'), 'image 1 must have x, y, width and height'),
    (changed('bounding_boxes', rb'^1 .*', b'1 1 2 3 nan'), 'image 1 must have x, y, width and height'),
    (changed('bounding_boxes', rb'^1 .*', b'1 1 2 0 5'), 'image 1 must have x, y, width and height'),
    (changed('classes', b'a', b'\xff'), 'classes.txt. is no text'),
])
def test_birds_whose_lists_and_images_do_not_agree(tmp_path, change, message):
    files, _ = cub_files()
    change(files)
    write_tgz(tmp_path / 'cub.tgz', files)
    with pytest.raises(WrongSource, match=message) as refused:
        unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True)
    assert str(refused.value).startswith(repr(str(tmp_path / 'cub.tgz'))) and '\n' not in str(refused.value)
    assert not (tmp_path / 'out').exists() or not any((tmp_path / 'out').iterdir())


def test_a_subset_may_lack_whole_classes(tmp_path):
    files, _ = cub_files()
    files['CUB_200_2011/classes.txt'] += b'4 004.Without_images\n'
    write_tgz(tmp_path / 'cub.tgz', files)
    assert unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out', subset=True).counts['classes'] == 3


@pytest.mark.parametrize('subset', [True, False])
def test_a_set_of_no_images_is_none(tmp_path, subset):
    files, _ = cub_files()
    write_tgz(tmp_path / 'cub.tgz', {name: b'' for name in files if name.count('/') == 1})
    small_svhn(tmp_path / 'train.tar.gz', tmp_path / 'by-hand')
    table = tmp_path / 'by-hand' / 'train' / 'digitStruct.mat'
    write_tgz(tmp_path / 'svhn.tgz', {'train/digitStruct.mat': table.read_bytes()})
    for unpack, name, message in ((unpack_cub, 'cub.tgz', '0 train, 0 test, 0 classes'),
                                  (unpack_svhn, 'svhn.tgz', '0 train')):
        with pytest.raises(WrongSource, match=f'{name}.: nothing can be made of {message}'):
            unpack([tmp_path / name], tmp_path / 'out', subset)
    assert not (tmp_path / 'out').exists()


def test_counts_of_the_whole_set_are_demanded(tmp_path, monkeypatch):
    small_cub(tmp_path / 'cub.tgz')
    with pytest.raises(WrongSource, match='the set has 5,994 train, 5,794 test, 200 classes, and this has 6 train, 6'):
        unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr('timm_stn.data.archives.cub.COUNTS', {'train': 6, 'test': 6, 'classes': 3})
    assert not unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out').was_there
    monkeypatch.undo()
    with pytest.raises(InTheWay, match='holds a part of the set, 6 train, 6 test, 3 classes, made with --subset'):
        unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'out')


# signs

def test_signs_are_what_load_signs_reads(tmp_path):
    zips, rows = small_gtsrb(tmp_path)
    contents = gtsrb_files()[0]
    done = unpack_gtsrb(zips, tmp_path / 'out', subset=True)
    assert done.counts == {'train': 27, 'test': 5, 'classes': 3}
    assert sorted(tree(tmp_path / 'out')) == [
        '.gtsrb.json', 'test-boxes.csv', 'test.tar', 'train-boxes.csv', 'train.tar']
    signs, known = load_signs(tmp_path / 'out', 'test')
    tests = sorted(path for path in rows if 'Final_Test' in path)
    assert len(signs) == len(tests) == 5
    for path, sign, (answer, *box) in zip(tests, signs, known.tolist()):
        width, height, *sides, true = rows[path]
        image = Image.open(io.BytesIO(contents[1][path]))
        small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(sign.permute(1, 2, 0).numpy(), small) and answer == true
        assert box == [round(1000 * side / length) for side, length in zip(sides, (width, height) * 2)]
    signs, known = load_signs(tmp_path / 'out')
    assert len(signs) == 27 and torch.bincount(known[:, 0]).tolist() == [12, 9, 6]
    images = create_dataset('', root=str(tmp_path / 'out' / 'train.tar'))
    assert len(images) == 27 and images[26][1] == 2


def test_the_resizing_keeps_places(tmp_path):
    """A bright square in the box of a sign is in that box of the small image, to a pixel of it."""
    files, rows = gtsrb_files(tests=1)
    path = 'GTSRB/Final_Test/Images/00000.ppm'
    width, height, x1, y1, x2, y2, _ = rows[path]
    image = Image.new('RGB', (width, height))
    image.paste((255, 255, 255), (x1, y1, x2, y2))
    file = io.BytesIO()
    image.save(file, 'PPM')
    files[1][path] = file.getvalue()
    for i, part in enumerate(files):
        write_zip(tmp_path / f'{i}.zip', part)
    unpack_gtsrb([tmp_path / f'{i}.zip' for i in range(3)], tmp_path, subset=True)
    signs, known = load_signs(tmp_path, 'test')
    bright = (signs[0, 0] > 127).nonzero()
    found = [*bright.min(0).values.flip(0).tolist(), *(bright.max(0).values.flip(0) + 1).tolist()]
    assert found == pytest.approx([at * 32 / 1000 for at in known[0, 1:].tolist()], abs=1)


def edited(part, path, old, new):
    def change(files):
        assert re.search(old, files[part][path], re.MULTILINE)
        files[part][path] = re.sub(old, new, files[part][path], count=1)
    return change


TABLE = 'GTSRB/Final_Training/Images/00001/GT-00001.csv'
SMALL = picture((9, 9), kind='PPM')
SIGN = 'GTSRB/Final_Training/Images/00001/00001_00000.ppm'


@pytest.mark.parametrize(('change', 'message'), [
    (lambda files: files[0].pop(SIGN), 'the tables name .Final_Training/Images/00001/00001_00000.ppm., and there is'),
    (lambda files: files[0].update({SIGN.replace('1_00000', '7_00000'): SMALL}), 'is in no table'),
    (lambda files: files[0].update({SIGN: SMALL}), r'has 9 x 9 pixels, and \d+ x \d+ in its table'),
    (lambda files: files[0].update({SIGN: files[0][SIGN][:-20]}), '00001_00000.ppm. is no image, or damaged'),
    (lambda files: files[2].pop('GT-final_test.csv'), 'it holds nothing of GTSRB'),
    (lambda files: files[2].update(files[1]), 'is there twice'),
    (lambda files: files[0].pop(TABLE), 'is in no table'),
    (edited(0, TABLE, b'ClassId', b'Class'), "GT-00001.csv: the columns must be Filename;.*;ClassId, got 'Filename"),
    (edited(0, TABLE, rb';1\r', b';2\r'), 'GT-00001.csv, line 2: class 2 in the folder of another'),
    (edited(0, TABLE, rb';5;', b';x;'), 'GT-00001.csv, line 2: not whole numbers'),
    (edited(0, TABLE, rb';5;', b';99;'), 'GT-00001.csv, line 2: no box within'),
    (edited(0, TABLE, rb';1\r', b'\r'), 'GT-00001.csv, line 2: not whole numbers'),
    (edited(0, TABLE, rb'_00001', b'_00000'), '00001_00000.ppm. is there twice'),
    (edited(2, 'GT-final_test.csv', rb';0\r', b';43\r'), 'GT-final_test.csv, line 2: no box .*, or no class'),
    (edited(2, 'GT-final_test.csv', rb'00001', b'../00001'), 'name .Final_Test/Images/../00001.ppm., and there is'),
])
def test_signs_whose_lists_and_images_do_not_agree(tmp_path, change, message):
    files, _ = gtsrb_files()
    change(files)
    for i, part in enumerate(files):
        write_zip(tmp_path / f'{i}.zip', part)
    with pytest.raises(WrongSource, match=message):
        unpack_gtsrb([tmp_path / f'{i}.zip' for i in range(3)], tmp_path / 'out', subset=True)
    assert not (tmp_path / 'out').exists() or not any((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(('left', 'message'), [
    ([0, 1], 'there is no GT-final_test.csv: of the three archives, one is missing'),
    ([0, 2], 'there is no Final_Test/Images/'), ([1, 2], 'there is no Final_Training/Images/00000/')])
def test_all_three_archives_of_signs_are_needed(tmp_path, left, message):
    zips, _ = small_gtsrb(tmp_path)
    with pytest.raises(WrongSource, match=message):
        unpack_gtsrb([zips[i] for i in left], tmp_path / 'out', subset=True)


def test_another_split_of_signs_is_refused(tmp_path):
    zips, _ = small_gtsrb(tmp_path)
    write_zip(zips[0], {'GTSRB/Training/00000/00000_00000.ppm': picture((9, 9), kind='PPM')})
    with pytest.raises(WrongSource, match="it holds torchvision's GTSRB-Training_fixed.zip, another split, of 26,640"):
        unpack_gtsrb(zips, tmp_path / 'out', subset=True)


# house numbers

@pytest.mark.parametrize('source', ['archive', 'folder'])
def test_house_numbers_are_what_load_svhn_reads(tmp_path, source):
    for split in ('train', 'test'):
        small_svhn(tmp_path / f'{split}.tar.gz', tmp_path / 'by-hand', split)
    given = [tmp_path / 'test.tar.gz', tmp_path / 'train.tar.gz'] if source == 'archive' else [tmp_path / 'by-hand']
    first, second = unpack_svhn(given, tmp_path / 'out', subset=True)
    assert {**first.counts, **second.counts} == {'train': 4, 'test': 4}
    written = {path: content for path, content in tree(tmp_path / 'out').items() if '/' in path}
    assert written == tree(tmp_path / 'by-hand')
    for split in ('train', 'test'):
        found, expected = load_svhn(tmp_path / 'out', split), load_svhn(tmp_path / 'by-hand', split)
        assert len(found[0]) == 3 and all(map(torch.equal, found, expected))


def test_splits_of_house_numbers_come_one_after_another(tmp_path):
    for split in ('train', 'extra'):
        small_svhn(tmp_path / f'{split}.tar.gz', tmp_path / 'by-hand', split)
    unpack_svhn([tmp_path / 'train.tar.gz'], tmp_path / 'out', subset=True)
    done = unpack_svhn([tmp_path / 'train.tar.gz', tmp_path / 'extra.tar.gz'], tmp_path / 'out', subset=True)
    assert [each.was_there for each in done] == [True, False]
    assert len(load_svhn(tmp_path / 'out', 'extra')[0]) == 3


@pytest.mark.parametrize('with_h5py', [True, False])
def test_house_numbers_whose_list_and_images_do_not_agree(tmp_path, monkeypatch, with_h5py):
    small_svhn(tmp_path / 'train.tar.gz', tmp_path / 'by-hand')
    files = {f'train/{name}': content for name, content in tree(tmp_path / 'by-hand' / 'train').items()}
    if not with_h5py:
        monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    for change, message in (({'train/7.png': files['train/1.png']}, r'.(7.png. is no image of|5.png. is mis)'),
                            ({'train/2.png': None}, r'\d.png. is (missing|no image)'),
                            ({'train/digitStruct.mat': None}, 'there is no train/digitStruct.mat'),
                            ({'train/3.png': b'<svg>'}, 'train/3.png. is no image, or damaged'),
                            ({'test/1.png': files['train/1.png']}, 'it holds files of two splits, train and test'),
                            ({'train/digitStruct.mat': b'MATLAB'}, 'digitStruct.mat is not that of SVHN' * with_h5py)):
        content = {name: each for name, each in {**files, **change}.items() if each is not None}
        write_tgz(tmp_path / 'wrong.tar.gz', content)
        if not message:  # nobody can tell
            continue
        with pytest.raises(WrongSource, match=message):
            unpack_svhn([tmp_path / 'wrong.tar.gz'], tmp_path / 'out', subset=True)
        assert not any((tmp_path / 'out').glob('*')) and not any((tmp_path / 'out').glob('.*'))
    with pytest.raises(WrongSource, match="train is in '.*train.tar.gz', too"):
        unpack_svhn([tmp_path / 'train.tar.gz'] * 2, tmp_path / 'out', subset=True)
    with pytest.raises(WrongSource, match='the set has 33,402 train, and this has 4 train'):
        unpack_svhn([tmp_path / 'train.tar.gz'], tmp_path / 'out')


def test_house_numbers_that_are_named_twice(tmp_path):
    """As many names as images, once each is counted once."""
    folder = write_svhn(tmp_path / 'by-hand' / 'train')
    with h5py.File(folder / 'digitStruct.mat', 'r+') as file:
        names = file['digitStruct/name'][:, 0]
        file[names[2]][:, 0] = file[names[1]][:, 0]
    (folder / '3.png').unlink()
    write_tgz(tmp_path / 'train.tar.gz', {f'train/{path.name}': path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(WrongSource, match="train.tar.gz': train/digitStruct.mat names '2.png' twice"):
        unpack_svhn([tmp_path / 'train.tar.gz'], tmp_path / 'out', subset=True)
    assert not any((tmp_path / 'out').iterdir())


# any

def test_each_set_knows_the_others(tmp_path):
    small_cub(tmp_path / 'cub.tgz')
    zips, _ = small_gtsrb(tmp_path)
    small_svhn(tmp_path / 'svhn.tar.gz', tmp_path / 'by-hand')
    write_zip(tmp_path / 'other.zip', {'a.txt': b'a'})
    (tmp_path / 'bare').mkdir()
    given = {'cub': tmp_path / 'cub.tgz', 'gtsrb': zips[0], 'svhn': tmp_path / 'svhn.tar.gz'}
    for unpack, own in ((unpack_cub, 'cub'), (unpack_gtsrb, 'gtsrb'), (unpack_svhn, 'svhn')):
        for key, path in given.items():
            if key != own:
                with pytest.raises(WrongSource, match=re.escape(f'{str(path)!r}: it holds {HOMES[key].title}')):
                    unpack([path], tmp_path / 'out')
        with pytest.raises(WrongSource, match=re.escape(f'it holds nothing of {HOMES[own].title}')):
            unpack([tmp_path / 'other.zip'], tmp_path / 'out')
        with pytest.raises(WrongSource, match=re.escape(f'it holds nothing of {HOMES[own].title}')):
            unpack([tmp_path / 'bare'], tmp_path / 'out')
        with pytest.raises(WrongSource, match='gone.tgz.: no such file'):
            unpack([tmp_path / 'gone.tgz'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_folder_may_hold_several_sets(tmp_path):
    small_cub(tmp_path / 'cub.tgz')
    shutil.unpack_archive(tmp_path / 'cub.tgz', tmp_path / 'all')
    zips, _ = small_gtsrb(tmp_path)
    for path in zips:
        shutil.unpack_archive(path, tmp_path / 'all')
    small_svhn(tmp_path / 'svhn.tar.gz', tmp_path / 'all')
    for unpack in (unpack_cub, unpack_gtsrb, unpack_svhn):
        unpack([tmp_path / 'all'], tmp_path / unpack.__name__, subset=True)
    assert {path.name for path in tmp_path.glob('unpack_*/[!.]*')} == {
        'train', 'test', 'train.tar', 'test.tar', 'train-boxes.csv', 'test-boxes.csv'}


def test_bars_run_to_their_ends(tmp_path, monkeypatch):
    """Of a tar.gz by megabytes that were read, else by files."""
    bars = []

    def progress(items, what, total=None, unit='it'):
        bars.append([what, total or len(items), unit, 0])
        for item in items:
            bars[-1][-1] += 1
            yield item

    monkeypatch.setattr('timm_stn.data.archives.members.progress', progress)
    files, _ = cub_files()
    big = {name: content + os.urandom(2 ** 18) if name.endswith('.jpg') else content for name, content in files.items()}
    write_tgz(tmp_path / 'cub.tgz', big)
    unpack_cub([tmp_path / 'cub.tgz'], tmp_path / 'one', subset=True)
    assert bars == [[f'{doing} cub.tgz', 4, 'MB', 4] for doing in ('checking', 'unpacking')]
    write_zip(tmp_path / 'cub.zip', files)
    unpack_cub([tmp_path / 'cub.zip'], tmp_path / 'two', subset=True)
    assert bars[2:] == [[f'{doing} cub.zip', len(files), 'file', len(files)] for doing in ('checking', 'unpacking')]
