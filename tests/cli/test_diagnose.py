"""`timm-stn diagnose`: what it prints and draws, on folders and on our own sets, and how it refuses."""
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import MODEL, has_color, refused
from makers import move_theta, needs_weights, write_mnist
from PIL import Image

from timm_stn import cli
from timm_stn.view.caption import WRONG

KWARGS = ['--model-kwargs', 'num_classes=2', 'img_size=64']


@pytest.fixture
def birds(tmp_path):
    """Two classes of pictures, six of each."""
    for name in ('jay', 'owl'):
        (tmp_path / 'birds' / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, (60, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'birds' / name / f'{i}.png')
    return tmp_path / 'birds'


def diagnosed(capsys, *argv):
    assert cli.main(['diagnose', *map(str, argv)]) == 0
    return capsys.readouterr()


def test_a_new_transformer_is_frozen(birds, tmp_path, capsys):
    said = diagnosed(capsys, *MODEL, *KWARGS, '--data', birds, '--output', tmp_path / 'd.png')
    first, second, *figures = said.out.splitlines()
    assert first.startswith('stn: frozen: it is still where it started.') and 'stn_lr_scale' in first
    assert second.startswith('stn: chance: ')
    assert all(line.startswith('    ') for line in figures) and any('accuracy' in line for line in figures)
    assert said.err == f'{tmp_path / "d.png"}: 12 images\n' and has_color(tmp_path / 'd.png', WRONG)


def test_a_checkpoint_by_its_file_in_json(birds, tmp_path, capsys):
    model = move_theta(timm.create_model('stn_test_resnet', num_classes=2, img_size=64, stn_stages=('input', 2)))
    torch.save(model.state_dict(), tmp_path / 'c.pt')
    argv = ['--model', 'stn_test_resnet', '--checkpoint', tmp_path / 'c.pt', *KWARGS, "stn_stages=('input',2)"]
    said = diagnosed(capsys, *argv, '--data', birds, '--json', '--output', tmp_path / 'd.png', '--count', 5)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line['stage'] for line in lines] == ['input', 2] and lines[0]['images'] == 5
    assert all(fault.keys() == {'kind', 'text'} for line in lines for fault in line['faults'])
    message = refused(capsys, 'diagnose', tmp_path / 'c.pt', '--data', birds)
    assert 'argument --checkpoint' in message and 'name the model' in message, 'it holds weights alone'


def test_folders_are_named(birds, tmp_path, capsys):
    argv = [*MODEL, '--model-kwargs', 'num_classes=3', 'img_size=64', '--data', birds, '--output', tmp_path / 'd.png']
    said = diagnosed(capsys, *argv)
    assert "12 of 12 images are of no class that the model names (a folder is 'jay', a class '0')" in said.err
    assert 'accuracy' not in said.out and 'answers change with thetas of other images' in said.out
    (tmp_path / 'names.txt').write_text('owl\ntit\njay\n')
    said = diagnosed(capsys, *argv, '--labels', tmp_path / 'names.txt')
    assert 'no class' not in said.err and 'accuracy' in said.out


def test_boxes(birds, tmp_path, capsys):
    """Of the upper left quarter of the middle square, of which the input has the middle."""
    rows = [f'{name}/{i}.png,15,0,45,30' for name in ('jay', 'owl') for i in range(5)]
    (tmp_path / 'boxes.csv').write_text('\n'.join(['file,x1,y1,x2,y2', *rows]))
    argv = [*MODEL, *KWARGS, '--data', birds, '--json', '--output', tmp_path / 'd.png']
    found = json.loads(diagnosed(capsys, *argv, '--boxes', tmp_path / 'boxes.csv').out)
    model = timm.create_model('stn_test_resnet')
    side = 1 / timm.data.resolve_model_data_config(model)['crop_pct']  # of the box, in half-widths of the input
    assert found['box_found'] == 1 and found['box_overlap'] == pytest.approx(1 / (4 + side ** 2 - 1), rel=0.02)
    (tmp_path / 'large.csv').write_text('file,x1,y1,x2,y2\njay/0.png,0,0,900,600\n')
    said = diagnosed(capsys, *argv, '--boxes', tmp_path / 'large.csv')
    assert 'timm-stn: true boxes reach beyond the image: are they in its pixels? 0.png\n' in said.err
    (tmp_path / 'others.csv').write_text('file,x1,y1,x2,y2\ncat.png,1,2,3,4\n')
    message = refused(capsys, 'diagnose', *argv, '--boxes', tmp_path / 'others.csv')
    assert f"argument --boxes: {tmp_path / 'others.csv'} has none of the files in" in message and 'cat.png' in message


def test_our_networks_on_the_set_that_they_are_for(tmp_path, capsys):
    write_mnist(tmp_path / 'mnist', test=30)
    argv = ['stn_mnist_cnn_rts', '--data', tmp_path, '--output', tmp_path / 'd.png', '--json', '--count', 20]
    found = json.loads(diagnosed(capsys, *argv).out)
    assert found['images'] == 20 and found['between'] > 0.01
    assert json.loads(diagnosed(capsys, *argv, '--set', 'R').out)['images'] == 20


@pytest.mark.parametrize('argv,message', [
    (['--data', 'nowhere', *MODEL], "argument --data: takes a folder, got 'nowhere'"),
    (['--data', 'birds/jay/0.png', *MODEL], "argument --data: takes a folder, got 'birds/jay/0.png'"),
    (['--data', 'empty', *MODEL], "argument --data: no pictures in the folder 'empty'"),
    (['--data', 'birds', '--model', 'test_resnet'], 'test_resnet has no spatial transformer; stn_test_resnet has'),
    (['stn_test_resnt', '--data', 'birds'], "unknown model 'stn_test_resnt'"),
    (['stn_test_resnet', '--data', 'birds', *MODEL], 'argument CHECKPOINT|MODEL: there are two, stn_test_resnet and'),
    (['--data', 'birds', *MODEL, '--boxes', 'no.csv'], 'argument --boxes no.csv: FileNotFoundError'),
    (['--data', 'birds', *MODEL, '--output', 'd.xyz'], "--output: takes the name of a picture"),
    (['--data', 'birds', *MODEL, '--count', '1'], 'argument --count: takes at least 2, got 1'),
    pytest.param(
        ['stn_gtsrb', '--data', 'empty'], "no pictures in the folder 'empty', and not the data of SIGNS",
        marks=needs_weights('stn_gtsrb')),
    (['birds', '--data', 'birds'], "argument CHECKPOINT|MODEL: no file 'birds/model_best.pth.tar'"),
    (['--data', 'birds', *MODEL, '--labels', 'no.txt'], 'argument --labels no.txt: FileNotFoundError'),
    (['--data', 'birds', *MODEL, '--model-kwargs', 'in_chans=4'], 'images have 1 or 3 channels, and the model takes 4'),
    (['--data', 'birds', *MODEL, '--set', 'R'], 'argument --data: FileNotFoundError'),
    (['--data', 'birds'], 'argument CHECKPOINT|MODEL: takes a checkpoint of train.py, or a name of `timm-stn list`'),
    (['runs/best.pth.tar', '--data', 'birds'], "argument CHECKPOINT|MODEL: no file 'runs/best.pth.tar'"),
    ([*MODEL], 'the following arguments are required: --data'),
])
def test_refusals(birds, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(birds.parent)
    Path('empty').mkdir()
    assert message in refused(capsys, 'diagnose', *argv)
    assert not Path('diagnosis.png').exists()
