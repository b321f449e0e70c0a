"""What birds_result.py makes of a run of train.py, and make_birds_card.py of several."""
import json
import sys
from argparse import Namespace

import birds_result
import pytest
import timm
import torch
from make_birds_card import figure, results, row

import timm_stn  # noqa: F401


@pytest.fixture
def run(tmp_path):
    """A finished one, of two epochs."""
    folder = tmp_path / 'runs' / 'zoom192'
    folder.mkdir(parents=True)
    model = timm.create_model('stn_test_resnet', num_classes=4, stn_size=64)
    args = dict(model='stn_test_resnet', num_classes=4, model_kwargs={'stn_size': 64}, device='cpu', data_dir='/x',
                epochs=2, img_size=96, weight_decay=0.0, pretrained=False, resume='')
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    torch.save(dict(epoch=1, arch='stn_test_resnet', state_dict=model.state_dict(), optimizer=optimizer,
                    args=Namespace(**args), version=2, metric=2.0), folder / 'last.pth.tar')
    (folder / 'args.yaml').write_text('epochs: 2\nmodel: stn_test_resnet\n')
    (folder / 'summary.csv').write_text(
        'epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,1.5,1.4,40.0,90.0,0.1\n1,1.25,1.2,50.0,95.0,0.05\n')
    return folder


def finish(run, monkeypatch, *more):
    monkeypatch.setattr(sys, 'argv', ['birds_result.py', str(run), *more])
    birds_result.main()
    return json.loads((run / 'result.json').read_text())


def test_a_result_and_a_checkpoint_without_the_optimizer(run, monkeypatch):
    before = torch.load(run / 'last.pth.tar', weights_only=False)
    found = finish(run, monkeypatch)
    assert (found['top1'], found['top5'], found['train_loss'], found['device']) == (50.0, 95.0, 1.25, 'cpu')
    model = timm.create_model('stn_test_resnet', num_classes=4, stn_size=64)
    assert found['parameters'] == sum(p.numel() for p in model.parameters()) and 0 < found['multiply_adds'] < 1
    assert found['args']['weight_decay'] == 0 and not {'pretrained', 'resume'} & found['args'].keys()
    after = torch.load(run / 'last.pth.tar', weights_only=False)
    assert before.keys() - after.keys() == {'optimizer'}
    assert all(torch.equal(after['state_dict'][k], v) for k, v in before['state_dict'].items())
    assert finish(run, monkeypatch) == found, 'the same when it is made again'


def test_a_result_names_no_folders_and_has_what_the_caller_knows(run, monkeypatch):
    found = finish(run, monkeypatch, '--weights', 'resnet50.tv_in1k', '--seconds-per-epoch', '61.5')
    assert (found['weights'], found['seconds_per_epoch']) == ('resnet50.tv_in1k', 61.5)
    assert 'data_dir' not in found['args'] and '"/' not in json.dumps(found)
    assert not {'weights', 'seconds_per_epoch'} & finish(run, monkeypatch).keys()


@pytest.mark.parametrize('epochs, rows, message', [(3, 2, 'no finished run'), (2, 1, 'no finished run')])
def test_a_run_that_is_not_finished(run, monkeypatch, epochs, rows, message):
    (run / 'args.yaml').write_text(f'epochs: {epochs}\n')
    (run / 'summary.csv').write_text('\n'.join((run / 'summary.csv').read_text().splitlines()[:rows + 1]) + '\n')
    with pytest.raises(SystemExit, match=message):
        finish(run, monkeypatch)
    assert not (run / 'result.json').exists()


def test_figures_are_of_the_weights_beside_them(run, monkeypatch):
    """train.py writes the figures of an epoch before its checkpoint, and may be cut off between."""
    held = torch.load(run / 'last.pth.tar', weights_only=False)
    torch.save(held | {'epoch': 0}, run / 'last.pth.tar')
    with pytest.raises(SystemExit, match='the checkpoint is of epoch 0, the last figures are of 1'):
        finish(run, monkeypatch)


def test_a_row_of_the_card(run, monkeypatch, tmp_path):
    found = finish(run, monkeypatch)
    other = tmp_path / 'other' / 'zoom192'
    other.mkdir(parents=True)
    (other / 'result.json').write_text(json.dumps(found | {'top1': 56.0}))
    both = results([tmp_path / 'runs', tmp_path / 'other', tmp_path / 'none'], 'zoom192')
    assert figure(both, 'top1') == '53.0 ± 3.0 (2 seeds)' and figure(both[:1], 'top1') == '50.0'
    assert row(both, 2 * found['multiply_adds']).endswith(f'| 50% | {found["parameters"]:,} |')
