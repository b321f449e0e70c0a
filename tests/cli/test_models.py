"""Models as the command line takes and lists them."""
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


def test_weights_alone_want_to_know_their_model(photos, tmp_path, capsys):
    torch.save(timm.create_model('stn_mnist_cnn', in_chans=1, img_size=42).state_dict(), tmp_path / 'c.pt')
    common = ['show', photos / 'a.png', '--checkpoint', tmp_path / 'c.pt']
    assert 'If it holds only weights, name the model: --model NAME' in refused(capsys, *common)
    assert 'other arguments? Give them: --model-kwargs' in refused(capsys, *common, '--model', 'stn_mnist_cnn')
