"""Names with weights of their own."""
import hashlib
import json

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, load_state_dict

from timm_stn.cli.digits import wrong_answers
from timm_stn.data import test_set as held_out
from timm_stn.names.provenance import OF_WEIGHTS, TESTED
from timm_stn.names.weights import WEIGHTS
from timm_stn.names.zoo import _ZOO, card_folder, weights_of, zoo_names

TRAINED = [n for n in zoo_names() if (card_folder(n) / WEIGHTS).is_file()]
GOALS = dict(stn_mnist_cnn_rts=('RTS', 42, 0.8), stn_mnist_cnn_tc=('TC', 60, 2.5))


def test_the_trained_networks_are_here():
    assert set(GOALS) <= set(TRAINED)


@pytest.mark.parametrize('name', TRAINED)
def test_weights_load_without_network(name, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert timm.is_model_pretrained(name)
    model = timm.create_model(name, pretrained=True)
    file = card_folder(name) / WEIGHTS
    for key, value in load_state_dict(str(file)).items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize('name', TRAINED)
def test_card_folder_is_a_hub_repository(name):
    folder = card_folder(name)
    x = torch.rand(2, *get_pretrained_cfg(name).input_size)
    by_name = timm.create_model(name, pretrained=True).eval()
    by_folder = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert torch.equal(by_folder(x), by_name(x))
    assert json.loads((folder / 'config.json').read_text())['architecture'] == name
    card = (folder / 'README.md').read_text()
    assert card.startswith('---\nlicense: apache-2.0\n') and '## Recipe' in card


@pytest.mark.parametrize('name', TRAINED)
def test_fine_tuning_on_other_classes_starts_from_the_weights(name):
    model = timm.create_model(name, pretrained=True, num_classes=3)
    expected = timm.create_model(name, pretrained=True).state_dict()
    assert model.num_classes == 3
    head = model.pretrained_cfg['classifier'] + '.'
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items() if not k.startswith(head))


@pytest.mark.parametrize('name', GOALS)
def test_error_on_real_held_out_digits(name):
    kind, side, _ = GOALS[name]
    assert get_pretrained_cfg(name).input_size == (1, side, side)
    try:
        digits, labels = held_out(kind)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    wrong = wrong_answers(timm.create_model(name, pretrained=True).eval(), digits[:2000], labels[:2000])
    assert wrong / 20 <= 2 * GOALS[name][2]


def test_the_birds_network_is_the_papers():
    model = timm.create_model('stn_resnet50_cub', device='meta')
    assert model.num_classes == 200 and model.glimpses == 2 and len(model.towers) == 1
    assert model.stn.transform.name == 'translation' and model.stn.scale == 0.5 and model.stn.size == (224, 224)
    assert model.pretrained_cfg['input_size'] == (3, 448, 448)
    seen, theta = model.look(torch.empty(1, 3, 448, 448, device='meta'))
    assert seen.shape == (1, 2, 3, 224, 224) and theta.shape == (1, 2, 2, 3)


def test_the_package_holds_the_hash_of_what_it_has_published():
    for name in zoo_names():
        file = card_folder(name) / WEIGHTS
        assert _ZOO[name].sha256 == (hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None), name


@pytest.mark.parametrize('name', zoo_names())
def test_a_name_of_ours_says_nothing_of_its_backbones_weights(name):
    """Neither sizes to test them at, nor who made them; its own are in the config beside its card."""
    cfg, config = get_pretrained_cfg(name).to_dict(), card_folder(name) / 'config.json'
    theirs = json.loads(config.read_text()) if config.is_file() else dict(pretrained_cfg={})
    theirs = {**theirs['pretrained_cfg'], **{k: v for k, v in theirs.items() if k == 'label_names'}}
    assert {k: v for k, v in cfg.items() if k in OF_WEIGHTS + TESTED and v} == {
        k: v for k, v in theirs.items() if k in OF_WEIGHTS + TESTED}


def test_the_birds_have_names():
    names = timm.create_model('stn_tf_efficientnet_lite0_cub2010').pretrained_cfg['label_names']
    assert len(names) == 200 and names[0] == 'Black footed Albatross' and names[-1] == 'Common Yellowthroat'


def test_weights_of():
    assert weights_of('stn_resnet18.a1_in1k') == 'Hugging Face Hub, timm/resnet18.a1_in1k'
    assert weights_of('stn_test_resnet') and weights_of('mnist_cnn') is None
    assert weights_of(torch.nn.Identity()) is None
