"""The co-localisation script: its loss and IoU by hand, its images, and that an interrupted run goes on."""
import csv
import importlib
import json

import numpy as np
import pytest
import torch
from makers import rand, randn, write_mnist

from timm_stn.data import load_mnist


@pytest.fixture(scope='module')
def script():
    return importlib.import_module('train_colocalisation')


@pytest.fixture
def arguments(tmp_path):
    write_mnist(tmp_path / 'data', train=120, test=20)
    return ['--data', str(tmp_path / 'data'), '--images', '4', '--steps', '2', '--encoder-epochs', '1']


@pytest.mark.parametrize('weight', [1.0, 0.25])
def test_loss_is_the_mean_over_pairs(script, weight):
    seen, random = randn(5, 7).double(), randn(5, 7, seed=1).double()
    e, r = seen.numpy(), random.numpy()
    hinges = [max(0, weight * np.sum((e[n] - e[m]) ** 2) - np.sum((e[n] - r[n]) ** 2) + 1)
              for n in range(5) for m in range(5) if m != n]
    assert 0 in hinges and max(hinges) > 0
    assert script.triplet_loss(seen, random, 1.0, weight).item() == pytest.approx(np.mean(hinges))


def test_iou_by_hand(script):
    box = torch.tensor([[0.5, 0.0, 0.0]])
    others = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.0, 0.0], [0.5, 0.5, 0.5], [0.2, -0.9, 0.0]])
    found = script.iou(box.expand(5, -1), others)
    torch.testing.assert_close(found, torch.tensor([1, 1 / 3, 1 / 4, 1 / 7, 0]))


@pytest.mark.parametrize('kind', ['T', 'TC'])
def test_true_boxes_hold_the_digits(script, arguments, tmp_path, kind):
    digits, labels = load_mnist(tmp_path / 'data')
    args = script.parse_args([*arguments, '--output', 'none', '--set', kind])
    images, boxes = script.make_images(digits, labels, 3, args)
    assert images.shape == (4, 1, 84, 84) and images.max() <= 1
    seen = script.crop(images, boxes)
    own = digits[labels == 3].float() / 255
    apart = (seen[:, None] - own[None]).abs().flatten(2)  # (images, digits, pixels)
    same = (apart < 1e-4).double().mean(2).amax(1)
    assert (same == 1).all() if kind == 'T' else (same > 0.5).all() and (same < 1).any()
    outside = images.clone()
    for image, (x, y) in zip(outside, ((boxes[:, 1:] + 1) * 42 - 14).round().int().tolist()):
        image[:, y:y + 28, x:x + 28] = 0
    assert bool(outside.any()) == (kind == 'TC')
    again, _ = script.make_images(digits, labels, 3, args)
    assert torch.equal(images, again)


def test_networks(script):
    model = script.transformer(0.4)
    assert sum(p.numel() for p in model.parameters()) == 5947
    boxes = script.boxes_of(model.regress(rand(2, 1, 84, 84)))
    torch.testing.assert_close(boxes, torch.tensor([[0.4, 0.0, 0.0]]).expand(2, -1))
    images = rand(2, 1, 84, 84)
    torch.testing.assert_close(script.crop(images, boxes), model(images))


def test_a_blur_keeps_the_sum(script):
    spot = torch.zeros(1, 1, 31, 31)
    spot[..., 15, 15] = 1
    image = script.blurred(spot, 2.0)
    assert image.sum() == pytest.approx(1, abs=1e-5) and image[0, 0, 15, 15] == pytest.approx(1 / (8 * np.pi), rel=0.01)
    assert (image.sum((0, 1, 2)) * (torch.arange(31.) - 15) ** 2).sum() == pytest.approx(4, rel=0.05)
    assert script.blurred(spot, 0.0) is spot


def test_files_and_resume(script, arguments, tmp_path, monkeypatch):
    arguments = [*arguments, '--classes', '3', '5']
    script.main([*arguments, '--output', str(tmp_path / 'whole')])
    result = json.loads((tmp_path / 'whole' / 'result.json').read_text())
    lines = list(csv.DictReader((tmp_path / 'whole' / 'summary.csv').open()))
    assert [line['class'] for line in lines] == ['3', '5'] and result['parameters'] == 5947
    assert [float(line['accuracy']) for line in lines] == result['accuracy'] and len(result['seconds']) == 2
    assert result['test_error'] == 100 - result['mean_accuracy'] == 100 - sum(result['accuracy']) / 2

    localise = script.localise

    def interrupted(images, encoder, digit, args):
        if digit == 5:
            raise KeyboardInterrupt
        return localise(images, encoder, digit, args)

    halves = [*arguments, '--output', str(tmp_path / 'halves')]
    monkeypatch.setattr(script, 'localise', interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(halves)
    assert not (tmp_path / 'halves' / 'result.json').exists()

    def remaining(images, encoder, digit, args):
        assert digit == 5
        return localise(images, encoder, digit, args)

    monkeypatch.setattr(script, 'localise', remaining)
    script.main(halves)
    for digit in (3, 5):
        whole, resumed = (torch.load(tmp_path / name / 'boxes' / f'{digit}.pt') for name in ('whole', 'halves'))
        assert torch.equal(whole['boxes'], resumed['boxes']) and whole['line']['loss'] == resumed['line']['loss']
    assert not list(tmp_path.glob('*/.*.tmp'))

    with pytest.raises(ValueError, match='other arguments'):
        script.main([*halves, '--lr', '1'])
    monkeypatch.setattr(script, 'localise', localise)
    monkeypatch.setattr(script, 'train_encoder', None)  # is not trained again
    script.main([*arguments, '--output', str(tmp_path / 'given'), '--encoder', str(tmp_path / 'whole' / 'encoder.pt')])
    given = json.loads((tmp_path / 'given' / 'result.json').read_text())
    assert given['accuracy'] == result['accuracy']


@pytest.mark.parametrize(('more', 'message'), [
    (['--classes', '10'], 'invalid choice'),
    (['--set', 'R'], 'invalid choice'),
    (['--images', '1'], '--images must be at least 2'),
    (['--steps', '0'], '--steps must be at least 1'),
])
def test_wrong_arguments(script, arguments, more, message, capsys):
    with pytest.raises(SystemExit):
        script.main([*arguments, '--output', 'none', *more])
    assert message in capsys.readouterr().err


def test_too_many_images(script, arguments, tmp_path):
    with pytest.raises(SystemExit, match='--images 100: there are'):
        script.main([*arguments, '--output', str(tmp_path / 'run'), '--images', '100', '--encoder-epochs', '0'])


def test_a_diverged_run_stops(script, arguments, tmp_path):
    with pytest.raises(RuntimeError, match='The loss of class 3 is'):
        script.main([*arguments, '--classes', '3', '--margin', 'nan', '--output', str(tmp_path / 'run')])
    assert not (tmp_path / 'run' / 'summary.csv').exists()
