"""The command line: what it prints, what it draws, and how it refuses."""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from makers import ROOT, write_mnist
from PIL import Image, ImageColor

from timm_stn import cli
from timm_stn.cli import digits, doctor
from timm_stn.data import test_set as distorted_test_set
from timm_stn.names.zoo import weights_of, zoo_names
from timm_stn.view.draw import COLORS, GOOD

MODEL = ['--model', 'stn_test_resnet', '--no-pretrained']
SCRIPT = ROOT / 'scripts' / 'make_examples.py'


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (90, 120, 3)), ('b.jpg', (120, 90, 3)), ('more/c.png', (64, 64))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('not a picture')
    return folder


def refused(capsys, *argv):
    """The one line that a wrong argument gives."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, argv)))
    output = capsys.readouterr()
    assert stop.value.code == 2 and not output.out
    assert output.err.count('\n') == 1 and output.err.startswith('timm-stn')
    return output.err


def has_color(path, color):
    return bool((np.asarray(Image.open(path)) == ImageColor.getrgb(color)).all(-1).any())


def show(capsys, *argv):
    assert cli.main(['show', *map(str, argv)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- show ---

def test_show(photos, tmp_path, capsys):
    output = tmp_path / 'out' / 'look.png'
    lines = show(capsys, photos / 'b.jpg', photos, *MODEL, '--output', output)
    assert [Path(line['file']).name for line in lines] == ['b.jpg', 'a.png', 'b.jpg', 'c.png']
    for line in lines:
        assert line['stage'] == 'input' and 0 < line['probability'] < 1 and isinstance(line['answer'], str)
        assert line['theta'] == [[1, 0, 0], [0, 1, 0]]
    assert lines[0] == {**lines[2], 'file': str(photos / 'b.jpg')}
    assert has_color(output, COLORS[0]) and [p.name for p in output.parent.iterdir()] == ['look.png']


def test_show_glimpses_in_grey(photos, tmp_path, capsys):
    kwargs = ['in_chans=1', 'num_classes=3', 'stn_glimpses=2', 'stn_scale=0.5', 'stn_transform=translation']
    labels = tmp_path / 'labels.txt'
    labels.write_text('ant\nbee\ncat\n')
    lines = show(capsys, photos, *MODEL, '--model-kwargs', *kwargs, '--labels', labels, '--count', 2,
                 '--output', tmp_path / 'g.png')
    assert len(lines) == 2 and lines[0]['answer'] in ('ant', 'bee', 'cat')
    thetas = np.array(lines[0]['theta'])
    assert thetas.shape == (2, 2, 3) and thetas[0, 0, 2] < 0 < thetas[1, 0, 2]
    assert has_color(tmp_path / 'g.png', COLORS[0]) and has_color(tmp_path / 'g.png', COLORS[1])


def test_show_checkpoint_of_a_stage(photos, tmp_path, capsys):
    model = timm.create_model('stn_test_resnet', stn_stages=('input', 2))
    model.spatial_transformers()[2].localization.regression.bias.data[2] = 0.025  # times lr_scale
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'c.pt')
    common = [photos / 'a.png', *MODEL[:2], '--checkpoint', tmp_path / 'c.pt', '--output', tmp_path / 's.png',
              '--model-kwargs', "stn_stages=('input',2)"]
    line, = show(capsys, *common, '--stage', '2')
    assert line['stage'] == 2 and line['theta'] == [[1, 0, 0.25], [0, 1, 0]]
    line, = show(capsys, *common)
    assert line['stage'] == 'input' and line['theta'] == [[1, 0, 0], [0, 1, 0]]
    assert "transformers at input, 2, got '3'" in refused(capsys, 'show', *common, '--stage', '3')


def test_show_stages_only(photos, tmp_path, capsys):
    line, = show(capsys, photos / 'a.png', *MODEL, '--model-kwargs', 'stn_stages=(1,)', '--output', tmp_path / 's.png')
    assert line['stage'] == 1 and has_color(tmp_path / 's.png', COLORS[0])


def test_show_what_a_folder_holds(photos, tmp_path, capsys):
    model = timm.create_model('stn_test_resnet', num_classes=2, stn_transform='tps')
    args = dict(model._model_args, num_classes=2)  # timm 1.0.29 does not save them by itself
    timm.models.save_for_hf(model, tmp_path / 'mine', model_args=args, safe_serialization=True)
    line, = show(capsys, photos / 'a.png', '--model', f'local-dir:{tmp_path / "mine"}', '--output', tmp_path / 'f.png')
    assert line['answer'] in ('0', '1') and len(line['theta']) == model.stn.transform.num_params
    timm.models.save_for_hf(timm.create_model('test_resnet'), tmp_path / 'plain', safe_serialization=True)
    message = refused(capsys, 'show', photos / 'a.png', '--model', f'local-dir:{tmp_path / "plain"}')
    assert 'has no spatial transformer' in message


def test_weights_alone_want_to_know_their_model(photos, tmp_path, capsys):
    torch.save(timm.create_model('stn_mnist_cnn', in_chans=1, img_size=42).state_dict(), tmp_path / 'c.pt')
    common = ['show', photos / 'a.png', '--checkpoint', tmp_path / 'c.pt']
    assert 'say of which model: --model NAME' in refused(capsys, *common)
    assert 'other arguments? Give them: --model-kwargs' in refused(capsys, *common, '--model', 'stn_mnist_cnn')


def test_show_a_run_of_train_py_by_its_checkpoint_alone(photos, capsys, tmp_path):
    model = timm.create_model('stn_test_resnet', stn_transform='similarity', num_classes=3)
    args = argparse.Namespace(model='stn_test_resnet', num_classes=3, model_kwargs=dict(stn_transform='similarity'))
    held = dict(arch='stn_test_resnet', state_dict=model.state_dict(), args=args, epoch=0)
    torch.save(held, tmp_path / 'c.pth.tar')
    line, = show(capsys, photos / 'a.png', '--checkpoint', tmp_path / 'c.pth.tar', '--output', tmp_path / 'f.png')
    assert line['stage'] == 'input' and (tmp_path / 'f.png').is_file()
    message = refused(capsys, 'show', photos / 'a.png', '--checkpoint', tmp_path / 'c.pth.tar', '--model-kwargs', 'a=1')
    assert 'argument --model: it takes a name' in message


@pytest.mark.parametrize('argv,message', [
    (['nowhere.png', *MODEL], "IMAGE: no file or folder 'nowhere.png'"),
    (['more/..', *MODEL[:1], 'stn_test_resnt'], "unknown model 'stn_test_resnt', the nearest are stn_test_resnet"),
    (['a.png', '--model', 'test_resnet'], 'test_resnet has no spatial transformer; stn_test_resnet has'),
    (['a.png', '--model', 'stn_mnist_fcn'], 'no trained weights; give --checkpoint FILE or --no-pretrained'),
    (['notes.txt', *MODEL], 'UnidentifiedImageError'),
    (['a.png', *MODEL, '--output', 'look.xyz'], "--output: takes the name of a picture, as look.png, got 'look.xyz'"),
    (['a.png', *MODEL, '--stage', '3'], "--stage: there are transformers at input, got '3'"),
    (['a.png', *MODEL, '--model-kwargs', 'stn_glimpse=2'], "Did you mean 'stn_glimpses'?"),
    (['a.png', *MODEL, '--model-kwargs', 'glimpses'], "--model-kwargs: takes KEY=VALUE, got 'glimpses'"),
    (['a.png', *MODEL, '--model-kwargs', 'in_chans=4'], 'images have 1 or 3 channels, and the model takes 4'),
    (['a.png', *MODEL, '--model-kwargs', 'num_classes=0'], 'has no classifier'),
    (['a.png', *MODEL, '--checkpoint', 'no.pt'], "--checkpoint: no file 'no.pt'"),
    (['a.png', *MODEL, '--checkpoint', 'notes.txt'], '--checkpoint notes.txt'),
    (['a.png', *MODEL, '--labels', 'no.txt'], '--labels no.txt: FileNotFoundError'),
    (['a.png', *MODEL, '--device', 'abacus'], '--device abacus'),
    (['a.png', *MODEL, '--count', '0'], "--count: takes a positive integer, got '0'"),
    (['a.png'], 'argument --model: it takes a name; only --checkpoint alone'),
])
def test_show_refuses(photos, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(photos)
    assert message in refused(capsys, 'show', *argv)
    assert not (photos / 'look.png').exists()


# --- demo, eval ---

@pytest.fixture
def untrained(monkeypatch):
    """The demo with random weights."""
    monkeypatch.delenv('TIMM_STN_DATA', raising=False)
    monkeypatch.setattr(digits, 'create_model', lambda name, pretrained, kwargs: timm.create_model(name))


@pytest.fixture
def make_examples():
    scope = {'__name__': 'make_examples'}
    exec(compile(SCRIPT.read_text(), str(SCRIPT), 'exec'), scope)
    return scope['main']


def test_sheet_of_examples(make_examples, tmp_path):
    write_mnist(tmp_path, test=20)
    make_examples(['--data', str(tmp_path), '--side', '3', '--output', str(tmp_path / 'new' / 'e.png')])
    images, labels = digits.read_sheet(tmp_path / 'new' / 'e.png')
    expected, classes = distorted_test_set('RTS', tmp_path)
    assert torch.equal(labels, classes[:9]) and (images - expected[:9]).abs().max() <= 0.5 / 255 + 1e-6


def test_demo_on_the_digits_of_the_package(untrained, tmp_path, capsys):
    assert cli.main(['demo', '--output', str(tmp_path / 'd.png'), '--count', '5']) == 0
    output = capsys.readouterr().out
    assert 'of 5 right' in output and 'of 64 wrong)' in output and 'the first 64 of the test set' in output
    assert has_color(tmp_path / 'd.png', COLORS[0])


@pytest.mark.skipif(not weights_of(digits.DEMO), reason='the weights are not trained yet')
def test_demo_knows_digits(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('TIMM_STN_DATA', raising=False)
    assert cli.main(['demo', '--count', '1', '--output', str(tmp_path / 'd.png')]) == 0
    output = capsys.readouterr().out
    wrong = int(output.rpartition('(')[2].split()[0])
    assert wrong <= 3 and 'model.safetensors' in output and has_color(tmp_path / 'd.png', GOOD)


def test_demo_on_mnist(untrained, tmp_path, capsys, monkeypatch):
    write_mnist(tmp_path / 'data', test=20)
    argv = ['demo', '--count', '1', '--output', str(tmp_path / 'd.png')]
    assert cli.main([*argv, '--data', str(tmp_path / 'data')]) == 0
    assert 'of 20 wrong)' in capsys.readouterr().out
    monkeypatch.setenv('TIMM_STN_DATA', str(tmp_path / 'data'))
    assert cli.main(argv) == 0
    assert 'of 20 wrong)' in capsys.readouterr().out
    monkeypatch.setenv('TIMM_STN_DATA', str(tmp_path))
    assert cli.main(argv) == 0
    output = capsys.readouterr()
    assert 'of 64 wrong)' in output.out and 'No MNIST test files' in output.err
    assert 'No MNIST test files' in refused(capsys, 'demo', '--data', tmp_path)


def test_eval(tmp_path, capsys, monkeypatch):
    write_mnist(tmp_path, test=20)
    model = timm.create_model('mnist_cnn', img_size=42).eval()
    torch.save({'model': model.state_dict()}, tmp_path / 'c.pt')
    images, labels = distorted_test_set('RTS', tmp_path)
    wrong = int((model(images).argmax(1) != labels).sum())
    argv = ['--set', 'RTS', '--data', str(tmp_path)]
    assert cli.main(['eval', '--model', 'mnist_cnn', '--checkpoint', str(tmp_path / 'c.pt'), *argv]) == 0
    output = capsys.readouterr().out
    assert f'mnist_cnn on RTS: test error {5 * wrong:.2f} % ({wrong} of 20 wrong)' in output and 'c.pt' in output
    for name in ('stn_test_resnet', 'stn_mnist_cnn_rts'):
        assert cli.main(['eval', '--model', name, '--no-pretrained', *argv]) == 0
        assert 'weights   random' in capsys.readouterr().out
    message = refused(capsys, 'eval', *MODEL, *argv, '--model-kwargs', 'num_classes=5')
    assert 'digits need num_classes=10, and stn_test_resnet has 5' in message
    monkeypatch.delenv('TIMM_STN_DATA', raising=False)
    assert 'TIMM_STN_DATA' in refused(capsys, 'eval', *MODEL, '--set', 'TC')
    assert 'invalid choice' in refused(capsys, 'eval', *MODEL, '--set', 'X')


# --- list, doctor, the command itself ---

def test_list(capsys):
    def names(*argv):
        assert cli.main(['list', *argv]) == 0
        return capsys.readouterr().out.splitlines()

    assert len(names()) > 1000 and all(name.startswith('stn_') for name in names())
    assert {'stn_resnet18', 'stn_resnet18d'} <= set(names('resnet18')) and names('test_vit?') == [
        'stn_test_vit2', 'stn_test_vit3', 'stn_test_vit4']
    assert 'stn_resnet18.a1_in1k' in names('stn_resnet18', '--pretrained')
    own = names('--own')
    assert [line.split()[0] for line in own] == zoo_names() and 'not trained' in own[-1]
    assert "no model matches 'resnet1818'" in refused(capsys, 'list', 'resnet1818')


def test_doctor(capsys, monkeypatch):
    assert cli.main(['doctor']) == 0
    output = capsys.readouterr().out
    for fact in ('timm_stn', 'torchvision', 'get_model_traits', 'architectures', 'aten.grid_sampler', 'passed'):
        assert fact in output
    monkeypatch.setattr(doctor, 'self_check', lambda: {'identity warp on cpu': (False, 'broken')})
    assert cli.main(['doctor']) == 1
    assert 'FAILED: broken' in capsys.readouterr().out


def test_refuses_other_commands(capsys):
    assert 'invalid choice' in refused(capsys, 'shew')
    assert 'required: COMMAND' in refused(capsys)


def test_as_a_command():
    """With a reader that leaves, as `head` does, there is no traceback either."""
    run = subprocess.Popen(
        [sys.executable, '-m', 'timm_stn.cli', 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().startswith('stn_')
    run.stdout.close()
    assert 'Traceback' not in run.stderr.read()
    assert run.wait() in (0, 141)
