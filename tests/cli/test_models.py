"""Models as the command line takes and lists them."""
import pytest
import timm
import torch
from commands import refused

from timm_stn import cli
from timm_stn.names.zoo import zoo_names


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


@pytest.mark.parametrize(('given', 'argument'), [
    (['stn_test_resnet', '--model-kwargs', 'foo=1'], '--model-kwargs foo=1: TypeError'),
    (['stn_test_resnet', '--model-kwargs', 'stn_glimpse=2'], '--model-kwargs stn_glimpse=2: TypeError'),
    (['stn_test_resnet', '--model-kwargs', 'stn_scale=x', 'stn_size=8'], '--model-kwargs stn_scale=x stn_size=8: '),
    (['test_resnet', '--model-kwargs', 'in_chans=many'], '--model-kwargs in_chans=many: '),
    (['local-dir:nowhere', '--model-kwargs', 'num_classes=3'], '--model local-dir:nowhere: FileNotFoundError'),
    (['stn_resnt18', '--model-kwargs', 'num_classes=3'], "--model: unknown model 'stn_resnt18', the nearest are "),
    (['stn_resnet18.a9'], "--model: unknown weights 'a9' of stn_resnet18; there are stn_resnet18.a1_in1k, "),
])
def test_the_argument_that_is_wrong_is_named(capsys, given, argument):
    message = refused(capsys, 'eval', '--set', 'RTS', '--no-pretrained', '--model', *given)
    assert message.startswith(f'timm-stn eval: error: argument {argument}')


def test_weights_alone_want_to_know_their_model(photos, tmp_path, capsys):
    torch.save(timm.create_model('stn_mnist_cnn', in_chans=1, img_size=42).state_dict(), tmp_path / 'c.pt')
    common = ['show', photos / 'a.png', '--checkpoint', tmp_path / 'c.pt']
    assert 'If it holds only weights, name the model: --model NAME' in refused(capsys, *common)
    assert 'other arguments? Give them: --model-kwargs' in refused(capsys, *common, '--model', 'stn_mnist_cnn')
