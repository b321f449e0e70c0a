"""measure_bound.py: its crops, and what it measures of a network whose answers are known."""
import json

import measure_bound
import timm
import torch
from records import read
from safetensors.torch import save_file
from torch import nn

import timm_stn  # noqa: F401


class Bright(nn.Module):
    """Class 1 of what is bright on average, else class 0; the surer, the further from grey."""

    def forward(self, x):
        light = x.mean((1, 2, 3))
        return torch.stack([-light, light], 1)


class Looking(nn.Module):
    """Always looks at the lower right."""

    def look(self, images):
        theta = torch.tensor([[0.55, 0.0, 0.45], [0.0, 0.55, 0.45]]).expand(len(images), 2, 3)
        return None, theta


def test_crops_are_the_whole_and_squares_inside_it():
    theta = measure_bound.crops()
    assert theta.shape == (28, 2, 3) and len(theta.flatten(1).unique(dim=0)) == 28
    assert torch.equal(theta[0], torch.eye(2, 3))
    assert ((theta[:, :, 2].abs() + theta[:, 0, :1]) <= 1 + 1e-6).all()


def test_what_each_choice_gives():
    """A bright corner on black: the whole is dark, black is surest, and the answer tells where to look."""
    photos = torch.zeros(4, 3, 224, 224, dtype=torch.uint8)
    photos[:2, :, :130, :130] = 200  # upper left
    photos[2:, :, -124:, -124:] = 200  # lower right
    labels = torch.tensor([1, 0, 1, 1])
    found = measure_bound.measure(Bright(), Looking(), photos, labels)
    assert found == {'whole': 25.0, 'surest': 25.0, 'pointed_at': 75.0, 'any': 100.0}


def test_a_line_of_the_record(tmp_path, monkeypatch, capsys):
    run = tmp_path / 'run'
    run.mkdir()
    small = timm.create_model('tf_efficientnet_lite0', num_classes=200)
    save_file(small.state_dict(), run / 'model.safetensors')
    photos = torch.randint(256, (3, 3, 224, 224), dtype=torch.uint8)
    monkeypatch.setattr(measure_bound, 'load_birds', lambda data, split: (photos, torch.arange(3)))
    for _ in range(2):  # the second replaces the first
        measure_bound.main(['--run', str(run), '--every', '2', '--root', str(tmp_path)])
    line, = read(tmp_path / 'model_cards' / 'results.jsonl')
    assert line == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line['name'] == 'birds-bound-0' and line['images'] == 2 and line['args'] == {'every': 2}
    assert set(line['accuracies']) == {'whole', 'surest', 'pointed_at', 'any'}
