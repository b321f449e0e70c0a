"""MNIST from idx files."""
import gzip
import hashlib
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from makers import generator, idx, write_mnist

from timm_stn import data as mnist_data
from timm_stn.data import load_mnist, mnist
from timm_stn.data.mnist import read_idx


@pytest.mark.parametrize('layout', ['', 'mnist', 'MNIST/raw', 'raw'])
@pytest.mark.parametrize('compress', [True, False])
def test_load_mnist(tmp_path, layout, compress):
    arrays = write_mnist(tmp_path / layout, compress=compress)
    for split, prefix in (('train', 'train'), ('test', 't10k')):
        images, labels = load_mnist(tmp_path, split)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images[:, 0].numpy(), arrays[prefix][0])
        assert np.array_equal(labels.numpy(), arrays[prefix][1])


def test_data_folder_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv('TIMM_STN_DATA', str(tmp_path))
    assert len(load_mnist()[0]) == 30
    monkeypatch.delenv('TIMM_STN_DATA')
    with pytest.raises(FileNotFoundError, match='TIMM_STN_DATA'):
        load_mnist()


def test_missing_files_say_what_to_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r't10k-images-idx3-ubyte\.gz.*https://'):
        load_mnist(tmp_path, 'test')
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load_mnist(tmp_path, 'val')


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda raw: gzip.compress(raw)[:-20], 'corrupt or truncated gzip'),
    (lambda raw: b'<html>no such file</html>', 'corrupt or truncated gzip'),
    (lambda raw: gzip.compress(raw[:-1]), 'its header declares 23536'),
    (lambda raw: gzip.compress(raw + b'\0'), 'its header declares 23536'),
    (lambda raw: gzip.compress(raw[:9]), 'truncated within its header'),
    (lambda raw: gzip.compress(b''), 'not an idx file'),
    (lambda raw: gzip.compress(b'\0\0\x0d' + raw[3:]), 'not an idx file of unsigned bytes'),
    (lambda raw: gzip.compress(idx(np.zeros((30, 27, 28)))), 'expected images of 28 x 28'),
    (lambda raw: gzip.compress(idx(np.zeros((29, 28, 28)))), '29 images, but .* 30 labels'),
])
def test_damaged_images(tmp_path, damage, message):
    write_mnist(tmp_path)
    path = tmp_path / 'train-images-idx3-ubyte.gz'
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(ValueError, match=message) as error:
        load_mnist(tmp_path)
    assert str(path) in str(error.value)


def test_damaged_labels(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / 'train-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx(np.full(30, 10))))
    with pytest.raises(ValueError, match='one label from 0 to 9'):
        load_mnist(tmp_path)


def test_read_idx_of_a_huge_declaration_allocates_nothing(tmp_path):
    path = tmp_path / 'images'
    path.write_bytes(struct.pack('>4I', 0x803, 2 ** 31, 2 ** 31, 2 ** 31))
    with pytest.raises(ValueError, match='its header declares'):
        read_idx(path)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder that stands for the server."""
    folder = tmp_path / 'published'
    write_mnist(folder)
    monkeypatch.setattr(mnist, 'SOURCE', f'{folder.as_uri()}/')
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in mnist.FILES}
    monkeypatch.setattr(mnist, 'FILES', digests)
    return folder


def test_download(tmp_path, published):
    assert len(load_mnist(tmp_path / 'new', 'test', download=True)[0]) == 20
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['MNIST']
    assert {p.name for p in (tmp_path / 'new' / 'MNIST' / 'raw').iterdir()} == set(mnist.FILES)
    shutil.rmtree(published)
    assert len(load_mnist(tmp_path / 'new', download=True)[0]) == 30  # is there: nothing is asked


@pytest.mark.parametrize('damage', [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(path.read_bytes().replace(b'\x1f\x8b', b'\x1f\x8c', 1)),
])
@pytest.mark.parametrize('number', range(4))
def test_a_download_that_fails_leaves_nothing(tmp_path, published, damage, number):
    name = list(mnist.FILES)[number]
    damage(published / name)
    with pytest.raises(RuntimeError, match=f'{name} cannot be downloaded: '):
        load_mnist(tmp_path / 'new', 'test', download=True)
    assert not list((tmp_path / 'new').iterdir())


@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='TIMM_STN_DATA names no folder with MNIST')
def test_real_mnist():
    images, labels = load_mnist(split='train')
    assert images.shape == (60000, 1, 28, 28) and labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    held_out, classes = mnist_data.test_set('RTS')
    assert held_out.shape == (10000, 1, 42, 42) and classes[:5].tolist() == [7, 2, 1, 0, 4]
    digits, _ = load_mnist(split='test')
    scale = 0.7 + 0.5 * torch.rand(10000, 4, generator=generator())[:, 1]
    kept = held_out.sum((1, 2, 3)) / (digits.float().sum((1, 2, 3)) / 255 * scale ** 2)
    assert kept.min() > 0.93 and kept.quantile(0.01) > 0.98
