"""What measure_looking.py measures, on few and tiny pictures."""
import io
import math
import tarfile

import measure_looking
import numpy as np
import pytest
import torch
from makers import rand
from PIL import Image


def picture(seed, side=20):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, 'JPEG')
    return data.getvalue()


@pytest.fixture
def birds(tmp_path):
    """An archive of two classes of seven pictures, split."""
    folder = tmp_path / 'cub200-2010'
    folder.mkdir()
    with tarfile.open(folder / 'train.tar', 'w') as tar:
        for label in ('001.a', '002.b'):
            for i in range(7):
                data = picture(i)
                member = tarfile.TarInfo(f'{label}/{i}.jpg')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    measure_looking.main(['split', '--data', str(tmp_path), '--output', str(tmp_path / 'split')])
    return tmp_path / 'split'


def test_every_fifth_picture_is_held_back(birds):
    parts = [birds / 'train', birds / 'test']
    names = {p.name: sorted(f.relative_to(p).as_posix() for f in p.rglob('*.jpg')) for p in parts}
    assert names['test'] == ['001.a/4.jpg', '002.b/4.jpg'] and len(names['train']) == 12
    images, labels = measure_looking.load_birds(birds / 'train', 5)
    assert images.shape == (5, 3, 224, 224) and images.abs().max() <= 1 and set(labels.tolist()) <= {0, 1}


@pytest.mark.parametrize('canvas', ['grey', 'blurred'])
@pytest.mark.parametrize('scale', [0.25, 1.0])
def test_a_birds_centre_is_within_it(canvas, scale):
    images = torch.full((3, 3, 224, 224), 0.9)
    if canvas == 'blurred':
        images[2] = -0.9  # and the canvas of the first
    scattered = measure_looking.scatter(images, scale, canvas)
    side = round(448 * scale)
    for i, image in enumerate(scattered):
        bird = (image[0] - images[i, 0, 0, 0]).abs() < 1e-3
        if canvas == 'blurred' and i > 0:
            continue  # on a canvas of its own colour
        assert bird.sum() == side * side
        rows, columns = (bird.any(d).nonzero().flatten() for d in (1, 0))
        middle = [(c[0] + c[-1] + 1) / 448 - 1 for c in (columns.float(), rows.float())]
        theta = torch.zeros(3, 2, 3)
        theta[i, :, 2] = torch.tensor(middle)
        assert measure_looking.within(theta, scattered, images, scale) >= 1 / 3
        theta[:, :, 2] = 5.0
        assert measure_looking.within(theta, scattered, images, scale) == 0


def test_two_birds_are_apart():
    images = torch.full((3, 3, 224, 224), 0.9)
    images[1] = -0.9
    scattered, middles = measure_looking.two_each(images, 0.375)
    assert middles.shape == (3, 2, 2) and (middles[:, 0] - middles[:, 1]).abs().amax(1).min() >= 2 * 168 / 448
    for i in range(3):
        for bird, (x, y) in zip((i, i - 2), middles[i]):
            row, column = (int((c + 1) * 224) for c in (y, x))
            assert (scattered[i, :, row, column] - images[bird, 0, 0, 0]).abs().max() < 1e-3


def test_birds_are_turned_by_the_angle():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 8] = 1.0  # on the right
    turned = measure_looking.timm_stn.warp(x, measure_looking.rotation(torch.tensor([math.pi / 2])))
    assert turned.sum() == pytest.approx(1, abs=1e-4) and turned[0, 0].flatten().argmax() in (4, 76)


def test_tables_are_printed(birds, monkeypatch, capsys):
    def network(checkpoint, **arguments):
        size = dict(img_size=arguments.pop('img_size') // 4)
        arguments['stn_size'] = 64 if 'stn_size' in arguments else None
        if arguments.get('stn_localization', '').startswith('saliency'):
            arguments['stn_localization'] = 'saliency:2'
        given = {k: v for k, v in arguments.items() if v is not None}
        return measure_looking.timm.create_model('stn_test_resnet', num_classes=2, **size, **given).eval()

    monkeypatch.setattr(measure_looking, 'birds_network', network)
    monkeypatch.setattr(measure_looking, 'SCALES', (0.5, 1.0))
    measure_looking.main(['find', '--birds', str(birds / 'train'), '--count', '4', '--side', '64', '--looks', '1', '2'])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 3 and all(row.count('|') == 1 + 3 + 2 * 3 for row in rows)
    measure_looking.main(['pairs', '--birds', str(birds / 'train'), '--count', '4', '--side', '64'])
    share, both = capsys.readouterr().out.splitlines()[2].split('|')[1:3]
    assert 0 <= float(both.split('±')[0]) <= float(share) <= 100
    measure_looking.main(['turn', '--birds', str(birds / 'train'), '--count', '4', '--poses', '4', '--pictures', '32'])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split('|')[1].strip() for row in rows[2:]] == ['as it is', 'orbit:4, pictures of 32']


def test_digits(monkeypatch, capsys):
    images = (255 * rand(300, 1, 28, 28)).to(torch.uint8)
    monkeypatch.setattr(measure_looking, 'load_mnist', lambda *a: (images, torch.arange(300) % 10))
    options = ['--held-back', '100', '--seeds', '2', '--epochs', '1', '--poses', '4']
    measure_looking.main(['digits', '--data', 'x', *options])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split('|')[1].strip() for row in rows[2:]] == ['as it is', 'orbit:4']
    assert all(0 <= float(cell.split('±')[0]) <= 100 for cell in rows[3].split('|')[2:4])
