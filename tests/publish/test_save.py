"""The files of a repository, as timm and transformers build a network from them."""
import inspect
import json

import pytest
import timm
import torch
from makers import rand

from timm_stn.names.untrusted import RUNTIME
from timm_stn.names.zoo import card_folder
from timm_stn.publish.save import CONFIG, save_network

CASES = [
    ('stn_mnist_cnn_tc', {}), ('stn_test_resnet', dict(num_classes=7)), ('test_resnet', dict(num_classes=7)),
    ('stn_test_vit', dict(num_classes=5, img_size=96, stn_localization='timm:test_resnet')),
    ('stn_test_resnet', dict(num_classes=3, stn_glimpses=2, stn_scale=0.5, stn_towers='separate', in_chans=1)),
    ('stn_test_resnet', dict(num_classes=3, stn_stages=('input', 2), stn_transform='tps', stn_whole=True)),
    ('stn_test_resnet', dict(num_classes=3, stn_transform='attention', stn_localization='moments', stn_bound=True)),
]


@pytest.fixture(params=CASES, ids=lambda case: '-'.join([case[0], *case[1]]))
def saved(request, tmp_path):
    name, kwargs = request.param
    if not hasattr(timm.models, 'get_model_args') and {'in_chans', 'img_size'} & set(kwargs):
        pytest.skip('this timm does not note what a model was made with')
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.pretrained_cfg['label_names'] = [f'class {i}' for i in range(model.num_classes)]
    save_network(model, tmp_path)
    channels, *size = model.pretrained_cfg['input_size']
    size = kwargs.get('img_size', size[0]), kwargs.get('img_size', size[1])
    return model, tmp_path, rand(2, kwargs.get('in_chans', channels), *size, seed=1)


def taken_by_transformers():
    """Arguments of timm.create_model that transformers' TimmWrapper gives itself, beside ``model_args``."""
    return {'model_name', 'pretrained', 'num_classes'}


def test_model_args_are_the_networks_own(saved):
    model, folder, x = saved
    config = json.loads((folder / CONFIG).read_text())
    assert not set(config['model_args']) & (taken_by_transformers() | set(RUNTIME))
    assert config['num_classes'] == model.num_classes and 'label_names' not in config['pretrained_cfg']
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert loaded.num_classes == model.num_classes and torch.equal(loaded(x), model(x))
    assert loaded.pretrained_cfg['label_names'] == config['label_names'] == model.pretrained_cfg['label_names']


def test_the_cards_in_the_package_too():
    for file in card_folder('stn_mnist_cnn_tc').parent.glob('*/config.json'):
        config = json.loads(file.read_text())
        assert not set(config['model_args']) & taken_by_transformers() and 'label_names' not in config['pretrained_cfg']


def test_names_of_other_classes_are_left_out(tmp_path):
    model = timm.create_model('stn_test_resnet', num_classes=3)
    model.pretrained_cfg['label_names'] = ['ant', 'bee']
    save_network(model, tmp_path)
    assert 'label_names' not in (tmp_path / CONFIG).read_text()


def test_transformers_builds_the_same_network(saved):
    transformers = pytest.importorskip('transformers')
    model, folder, x = saved
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert torch.equal(theirs(x).logits, model(x))
        features = transformers.AutoModel.from_pretrained(folder).eval()(x).last_hidden_state
        assert torch.equal(features, model.forward_features(x))
    assert list(theirs.config.id2label.values()) == model.pretrained_cfg['label_names']
    calls = inspect.getsource(transformers.models.timm_wrapper.modeling_timm_wrapper)
    assert all(f'{name}=' in calls for name in taken_by_transformers() - {'model_name'})
