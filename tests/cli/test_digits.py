"""`timm-stn demo` and `timm-stn eval`."""
import pytest
import timm
import torch
from commands import MODEL, has_color, refused
from makers import ROOT, write_mnist, write_signs

from timm_stn import cli
from timm_stn.cli import digits
from timm_stn.cli.digits import wrong_answers
from timm_stn.data import TASKS
from timm_stn.data import test_set as distorted_test_set
from timm_stn.data.tasks import are_wrong
from timm_stn.names.zoo import card_folder, set_of, weights_of, zoo_names
from timm_stn.view.caption import GOOD
from timm_stn.view.draw import COLORS

SCRIPT = ROOT / 'scripts' / 'release' / 'make_examples.py'


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
    assert 'argument --model-kwargs num_classes=5: eval measures on sets of images; those of RTS need num' in message
    model = ['--model', 'stn_mnist_cnn', '--no-pretrained']
    message = refused(capsys, 'eval', *model, *argv, '--model-kwargs', 'img_size=30')
    assert 'argument --model stn_mnist_cnn --model-kwargs img_size=30 (on --set RTS' in message
    monkeypatch.delenv('TIMM_STN_DATA', raising=False)
    assert 'TIMM_STN_DATA' in refused(capsys, 'eval', *MODEL, '--set', 'TC')
    assert 'invalid choice' in refused(capsys, 'eval', *MODEL, '--set', 'X')


@pytest.mark.parametrize('name', [name for name in zoo_names() if set_of(name)])
def test_a_network_of_ours_is_measured_on_its_own_set(name, tmp_path, capsys):
    write_mnist(tmp_path, test=3)
    write_signs(tmp_path)
    argv = ['--no-pretrained', '--data', str(tmp_path)]
    for which in ([name], ['--model', name]):
        assert cli.main(['eval', *which, *argv]) == 0
        assert f'{name} on {set_of(name)}: test error' in capsys.readouterr().out


def test_a_folder_of_a_network_of_ours_is_too(tmp_path, capsys):
    write_mnist(tmp_path, test=3)
    folder = f'local-dir:{card_folder(digits.DEMO)}'
    assert cli.main(['eval', folder, '--data', str(tmp_path)]) == 0
    assert f'{folder} on RTS: test error' in capsys.readouterr().out
    message = refused(capsys, 'eval', digits.DEMO, '--set', 'ADD', '--data', tmp_path)
    assert 'those of ADD need in_chans=2, and stn_mnist_cnn_rts has 1' in message


def test_without_a_set_of_its_own_a_network_needs_one(capsys):
    for name in ('stn_test_resnet', 'mnist_cnn', 'stn_tf_efficientnet_lite0_cub2010'):
        message = refused(capsys, 'eval', name, '--no-pretrained')
        sets = 'R, RTS, P, E, T, TC, UPRIGHT, TURNED, ADD, SEQ'
        assert f'argument --set: {name} is for no set of its own; name one of {sets}' in message
        assert 'VOLUME' not in message
    assert "unknown model 'stn_mnist_cnn_rtx', the nearest" in refused(capsys, 'eval', 'stn_mnist_cnn_rtx')
    assert 'no timm model takes' in refused(capsys, 'eval', *MODEL, '--set', 'VOLUME')
    assert 'two models, mnist_cnn and --model stn_test' in refused(capsys, 'eval', 'mnist_cnn', *MODEL, '--set', 'R')
    assert 'only --checkpoint alone' in refused(capsys, 'eval')


@pytest.mark.parametrize(('kind', 'name', 'kwargs'), [
    ('ADD', 'mnist_fcn', dict(hidden=2)), ('ADD', 'stn_mnist_add', {}), ('SEQ64', 'svhn_cnn', dict(width=0.05)),
    ('SEQ64', 'stn_test_resnet', {})])
def test_eval_on_more_than_one_digit(kind, name, kwargs, tmp_path, capsys):
    write_mnist(tmp_path, test=20)
    images, classes = distorted_test_set(kind, tmp_path)
    task = TASKS[kind]
    given = {} if name == 'stn_mnist_add' else dict(in_chans=task.channels, num_classes=task.outputs)
    sized = dict(img_size=task.size) if name in ('mnist_fcn', 'svhn_cnn') else {}
    model = timm.create_model(name, **given, **sized, **kwargs).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith('bias') and len(p) == task.outputs:  # some answers are right
                p += 100 * torch.nn.functional.one_hot(classes.reshape(20, -1)[0], task.classes).flatten()
    torch.save(model.state_dict(), tmp_path / 'c.pt')
    argv = ['eval', name, '--set', kind, '--checkpoint', str(tmp_path / 'c.pt'), '--data', str(tmp_path)]
    words = [f'{key}={value}' for key, value in kwargs.items()]
    assert cli.main([*argv, *(['--model-kwargs', *words] if words else [])]) == 0
    with torch.no_grad():
        wrong = int(are_wrong(model(images), classes).sum())
    assert 0 < wrong < 20
    assert f'{name} on {kind}: test error {5 * wrong:.2f} % ({wrong} of 20 wrong)' in capsys.readouterr().out


def test_an_image_is_wrong_if_any_of_its_answers_is(seeded):
    for answers, count in ((1, 4), (3, 2)):
        logits, classes = torch.randn(50, answers * count), torch.randint(count, (50, answers))
        expected = []
        for row, truth in zip(logits.tolist(), classes.tolist()):
            parts = [row[i * count:(i + 1) * count] for i in range(answers)]
            expected.append([part.index(max(part)) for part in parts] != truth)
        assert 0 < sum(expected) < 50
        assert are_wrong(logits, classes).tolist() == expected
    assert torch.equal(are_wrong(logits[:, :4], classes[:, 0]), logits[:, :4].argmax(1) != classes[:, 0])


def test_wrong_answers():
    model = torch.nn.Flatten()
    images = torch.eye(4).repeat(300, 1)
    labels = torch.arange(4).repeat(300)
    labels[::100] += 1
    assert wrong_answers(model, images, labels) == 12


def test_answers_are_of_pixels_as_the_configuration_normalises_them():
    class Bright(torch.nn.Module):
        pretrained_cfg = {'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)}

        def forward(self, x):
            light = x.mean((1, 2, 3))
            return torch.stack([torch.full_like(light, 0.9), light], 1)

    images = torch.tensor([0.6, 0.8])[:, None, None, None].expand(2, 3, 4, 4)  # 0.4 and 1.2 when normalised
    assert wrong_answers(Bright(), images, torch.tensor([0, 1])) == 0
    assert wrong_answers(Bright(), images, torch.tensor([1, 0])) == 2
