"""The training script: its files, and that an interrupted run ends as an uninterrupted one."""
import csv
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_data import write_mnist

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'train_mnist.py'


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('train_mnist', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path):
    write_mnist(tmp_path / 'data', train=70, test=20)
    return ['--data', str(tmp_path / 'data'), '--batch-size', '32', '--epochs', '3', '--set', 'R', '--clip-grad', '1',
            '--ema-decay', '0.9', '--model-kwargs', 'channels=(4, 4)', 'drop_rate=0.5']


def test_files_and_resume(script, arguments, tmp_path, monkeypatch):
    script.main([*arguments, '--output', str(tmp_path / 'whole')])
    result = json.loads((tmp_path / 'whole' / 'result.json').read_text())
    lines = list(csv.DictReader((tmp_path / 'whole' / 'summary.csv').open()))
    assert [line['epoch'] for line in lines] == ['1', '2', '3']
    assert float(lines[-1]['test_error']) == result['test_error'] and len(result['seconds']) == 3
    assert result['args']['model_kwargs'] == {'channels': [4, 4], 'drop_rate': 0.5}

    train_epoch = script.train_epoch

    def interrupted(run, digits, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(run, digits, epoch)

    halves = [*arguments, '--output', str(tmp_path / 'halves')]
    monkeypatch.setattr(script, 'train_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(halves)
    assert not (tmp_path / 'halves' / 'result.json').exists()
    monkeypatch.setattr(script, 'train_epoch', train_epoch)
    script.main(halves)
    whole, resumed = (load_file(tmp_path / name / 'model.safetensors') for name in ('whole', 'halves'))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert not list(tmp_path.glob('*/.*.tmp'))

    with pytest.raises(ValueError, match='other arguments'):
        script.main([*halves, '--lr', '1'])


def test_learning_rate(script):
    factor = script.warmup_cosine(warmup=4, total=20)
    rates = [factor(step) for step in range(21)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[4] and rates[20] == 0
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_diverged_run_stops(script, arguments, tmp_path):
    with pytest.raises(RuntimeError, match='The loss of epoch 1 is'):
        script.main([*arguments, '--output', str(tmp_path / 'run'), '--opt', 'sgd', '--lr', '1e30'])
    assert not (tmp_path / 'run' / 'summary.csv').exists()
