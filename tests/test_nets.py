"""The paper's small networks as timm models: what timm's own tests ask of a model, and the paper's shapes."""
import copy

import pytest
import timm
import torch
from makers import rand
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import timm_stn.nets

NAMES = ['mnist_cnn', 'mnist_fcn']
WIDTHS = {'mnist_cnn': 32, 'mnist_fcn': 256}
POOL = {'mnist_cnn': 2, 'mnist_fcn': 1}

pytestmark = pytest.mark.parametrize('name', NAMES)


@pytest.fixture
def images():
    return rand(2, 1, 28, 28)


def test_registered(name):
    assert timm.is_model(name)
    assert name in timm.list_models(module='nets')
    cfg = timm.create_model(name).default_cfg
    state = timm.create_model(name).state_dict()
    assert cfg['input_size'] == (1, 28, 28) and cfg['fixed_input_size'] and cfg['num_classes'] == 10
    assert f'{cfg["classifier"]}.weight' in state and f'{cfg["first_conv"]}.weight' in state


def test_forward_and_backward(name, images):
    model = timm.create_model(name, num_classes=42).train()
    out = model(images)
    out.mean().backward()
    assert out.shape == (2, 42)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_heads(name, images):
    model = timm.create_model(name).eval()
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, POOL[name], POOL[name])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.get_classifier() is model.fc

    model.reset_classifier(5)
    assert model.num_classes == 5 and model(images).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, '')
    assert torch.equal(model(images), features)
    model.reset_classifier(3, 'flatten')
    assert model(images).shape == (2, 3)
    unpooled = timm.create_model(name, num_classes=0, global_pool='')
    assert unpooled(images).shape == features.shape


def test_wrong_arguments(name, images):
    for pool in ('avg', ''):
        with pytest.raises(ValueError, match=f'global_pool .* got {pool!r}'):
            timm.create_model(name, global_pool=pool)
    with pytest.raises(AssertionError, match='img_size'):
        timm.create_model(name)(torch.rand(1, 1, 42, 42))
    with pytest.raises(ValueError, match='img_size must be at least'):
        timm.create_model(name, img_size=20, pool_input=21)
    with pytest.raises(TypeError, match='channel'):
        timm.create_model(name, channel=3)


@pytest.mark.parametrize('kwargs', [
    {'img_size': 42},
    {'img_size': (60, 42), 'in_chans': 3},
    {'img_size': 60, 'pool_input': 2},
])
def test_sizes(name, kwargs):
    model = timm.create_model(name, **kwargs)
    size = (kwargs['img_size'],) * 2 if isinstance(kwargs['img_size'], int) else kwargs['img_size']
    x = torch.rand(2, kwargs.get('in_chans', 1), *size)
    assert model(x).shape == (2, 10)
    features = model.forward_intermediates(x, intermediates_only=True)
    for info, feature in zip(model.feature_info, features, strict=True):
        assert feature.shape[1] == info['num_chs']
    assert model.in_chans == x.shape[1]


@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 1), None])
@pytest.mark.parametrize('feature_cls', ['list', 'hook', 'getter', 'fx', None])
def test_features_only(name, feature_cls, out_indices, images):
    kwargs = {k: v for k, v in [('out_indices', out_indices), ('feature_cls', feature_cls)] if v is not None}
    model = timm.create_model(name, features_only=True, **kwargs)
    outputs = model(images)
    assert [o.shape[1] for o in outputs] == model.feature_info.channels()
    assert len(outputs) == len(out_indices or (0, 1))


def test_forward_intermediates(name, images):
    model = timm.create_model(name).eval()
    final, both = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images)) and torch.equal(final, both[1])
    first, = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(first, both[0])
    last, = model.forward_intermediates(images, indices=1, intermediates_only=True)
    assert torch.equal(last, both[1])
    negative, = model.forward_intermediates(images, indices=[-2], intermediates_only=True)
    assert torch.equal(negative, both[0])
    with pytest.raises(ValueError, match=r'indices .* 2 layers'):
        model.forward_intermediates(images, indices=[2])
    with pytest.raises(ValueError, match='output_fmt'):
        model.forward_intermediates(images, output_fmt='NLC')

    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([0]) == [0]
    assert torch.equal(pruned(images), both[0])
    assert pruned.num_features == pruned.head_hidden_size == WIDTHS[name]
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.layer1.parameters()) + 1


def test_gradient_checkpointing(name, images):
    model = timm.create_model(name).train()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_groups_and_optimizer(name):
    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups['layer1.conv.weight'] < groups['layer2.conv.weight'] < groups['fc.weight']
    optimizer = create_optimizer_v2(model, 'adamw', lr=1., weight_decay=0.1, layer_decay=0.5)
    assert sum(len(g['params']) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_round_trip(name, images, tmp_path):
    model = timm.create_model(name, num_classes=7, drop_rate=0.5).eval()
    timm.models.save_for_hf(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(again(images), model(images))


def test_device_and_dtype(name):
    model = timm.create_model(name, dtype=torch.float64, device='meta')
    model.reset_classifier(3)
    assert all(p.is_meta and p.dtype == torch.float64 for p in model.parameters())


def test_dropout_before_the_classifier(name, images):
    model = timm.create_model(name, drop_rate=0.9)
    features = model.forward_features(images)
    assert (model.train().forward_head(features, pre_logits=True) == 0).sum() > 0.5 * features.numel()
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), features.flatten(1))


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_script_and_export(name, images):
    model = timm.create_model(name).eval()
    expected = model(images)
    for exported in (torch.jit.script(model), torch.export.export(model, (images,)).module()):
        torch.testing.assert_close(exported(images), expected)


def test_layers_of_the_paper(name, images):
    """The layers, written out with torch's functions."""
    model = timm.create_model(name).eval()
    weights = dict(model.named_parameters())
    if name == 'mnist_cnn':
        assert weights['layer1.conv.weight'].shape == (32, 1, 9, 9)
        assert weights['layer2.conv.weight'].shape == (32, 32, 7, 7)
        x = images
        for i in (1, 2):
            x = torch.conv2d(x, weights[f'layer{i}.conv.weight'], weights[f'layer{i}.conv.bias'])
            x = torch.max_pool2d(x.relu(), 2)
    else:
        x = images.flatten(1)
        for i in (1, 2):
            x = torch.addmm(weights[f'layer{i}.conv.bias'], x, weights[f'layer{i}.conv.weight'].flatten(1).T).relu()
    expected = torch.addmm(model.fc.bias, x.flatten(1), model.fc.weight.T)
    torch.testing.assert_close(model(images), expected)
    grads = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (model(images), expected)]
    torch.testing.assert_close(*grads)
    assert isinstance(model, timm_stn.nets.MnistNet)
