"""A network has the methods that its backbone has."""
import inspect
import warnings
from contextlib import contextmanager

import pytest
import timm
import torch
from makers import create, images
from torch import nn

import timm_stn
from timm_stn.network.keys import is_transformers
from timm_stn.network.model import SpatialTransformerNetwork

NAMES = (
    'set_input_size', 'group_matcher', 'no_weight_decay', 'reset_classifier', 'get_classifier',
    'set_grad_checkpointing', 'prune_intermediate_layers',
)


class Bare(nn.Module):
    """A backbone without any of timm's methods."""
    pretrained_cfg = dict(input_size=(3, 32, 32), architecture='bare')

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'test_efficientnet', 'test_mambaout'])
def test_as_the_backbone(arch):
    plain, twin = timm.create_model(arch), timm.create_model('stn_' + arch)
    assert {n for n in NAMES if hasattr(twin, n)} == {n for n in NAMES if hasattr(plain, n)}


def test_a_backbone_without_any():
    net = timm_stn.wrap(Bare())
    assert not [n for n in NAMES if hasattr(net, n)]
    with pytest.raises(AttributeError, match='reset_classifier'):
        net.reset_classifier(3)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 4, 30, 30)


def test_methods_keep_their_signature_and_documentation():
    assert 'None keeps the pooling' in timm_stn.SpatialTransformerNetwork.reset_classifier.__doc__


def test_reading_and_writing_go_through_to_the_backbone():
    model = create()
    model.fc = nn.Linear(model.num_features, 4)
    assert model.backbone.fc.out_features == 4 and 'fc' not in model._modules
    model.drop_rate = 0.25
    assert model.backbone.drop_rate == 0.25
    model.num_classes = 4
    assert model.backbone.num_classes == 4
    model.something_new = 1
    assert not hasattr(model.backbone, 'something_new')
    assert model.conv1 is model.backbone.conv1


def test_a_head_named_classifier_is_the_backbones():
    model = create('stn_test_efficientnet')
    model.classifier = nn.Linear(model.classifier.in_features, 7)
    assert model.backbone.classifier.out_features == 7 and model(images()).shape == (2, 7)


KINDS = [('stn_test_resnet', {}), ('stn_test_efficientnet', dict(stn_glimpses=2, stn_scale=0.5)),
         ('stn_test_resnet', dict(stn_stages=['input', 1])), ('stn_test_vit', {})]


@pytest.mark.parametrize('name,kwargs', KINDS)
def test_freezing_and_unfreezing_are_as_for_the_backbone(name, kwargs):
    model, plain = create(name, **kwargs), create(name.removeprefix('stn_'))
    children = [n for n, _ in plain.named_children()]
    for change in (timm.utils.freeze, timm.utils.unfreeze):
        for net in (model, plain):
            change(net, children[:3])
        kinds = [(type(m), [p.requires_grad for p in m.parameters(recurse=False)]) for m in plain.modules()]
        ours = [m for n, m in model.backbone.named_modules() if not is_transformers(n + '.')]
        assert kinds == [(type(m), [p.requires_grad for p in m.parameters(recurse=False)]) for m in ours]
        assert not {*children[:3]} & {*model._modules} - {'classifier'}
    timm.utils.freeze(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_children_tensors_and_values_are_written_where_the_backbone_has_them():
    model = create()
    backbone, norm, x = model.backbone, nn.BatchNorm2d(model.bn1.num_features), images()
    model.add_module('bn1', norm)
    assert backbone.bn1 is norm and 'bn1' not in model._modules
    model.register_module('bn1', nn.Identity())
    assert type(backbone.bn1) is nn.Identity
    model.set_submodule('layer1.0.bn1', nn.Identity())
    assert type(backbone.layer1[0].bn1) is nn.Identity and model(x).shape[0] == 2
    del model.fc
    assert not hasattr(backbone, 'fc') and not hasattr(model, 'fc')
    model.fc = nn.Identity()
    assert type(backbone.fc) is nn.Identity and 'fc' not in model._modules
    vit = create('stn_test_vit')
    vit.cls_token = nn.Parameter(torch.ones_like(vit.cls_token))
    vit.register_parameter('pos_embed', nn.Parameter(torch.ones_like(vit.pos_embed)))
    assert vit.backbone.cls_token.max() == vit.backbone.pos_embed.min() == 1 and not vit._parameters
    assert {'fc', 'conv1', 'glimpses'} <= set(dir(create())) and 'towers' not in dir(create())


@pytest.mark.parametrize('name,kwargs', KINDS)
@pytest.mark.parametrize('walk', [
    lambda model, fn: model.apply(fn), lambda model, fn: [fn(m) for m in model.modules()],
    lambda model, fn: [fn(m) for m in reversed(list(model.modules()))]])
def test_what_is_written_to_every_module_lands_on_each_itself(name, kwargs, walk):
    model = create(name, **kwargs)
    modules = list(model.modules())
    names = {m: n for n, m in model.named_modules()}

    def write(module):
        module._of_mine = names[module]
        module.register_buffer('mine', torch.ones(1), persistent=False)
        module.add_module('none_of_mine', None)

    walk(model, write)
    assert [vars(m)['_of_mine'] for m in modules] == [names[m] for m in modules]
    assert all('mine' in m._buffers and 'none_of_mine' in m._modules for m in modules)
    model.apply(lambda module: delattr(module, '_of_mine'))
    assert not any('_of_mine' in vars(m) for m in modules)


def test_plain_values_reach_all_towers():
    model = create(stn_glimpses=2, stn_scale=0.5, stn_towers='separate')
    model.drop_rate = 0.25
    assert [b.drop_rate for b in model.backbones()] == [0.25, 0.25] and model.drop_rate == 0.25


def test_the_unwrapped_forward_is_the_forward():
    for kwargs in (dict(), dict(stn_glimpses=2, stn_scale=0.5)):
        model, x = create(**kwargs), images()
        assert torch.equal(inspect.unwrap(model.forward)(model, x), model(x))
        unwrapped = model.forward.__wrapped__  # as accelerate's unwrap_model does
        expected = model(x)
        model.forward = unwrapped.__get__(model)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize('name', ['fuse', 'reparameterize', '__getitem__'])
def test_nothing_gives_the_bare_backbone(name):
    model = create()
    setattr(type(model.backbone), name, lambda self: self)
    try:
        assert not hasattr(model, name)
    finally:
        delattr(type(model.backbone), name)


def test_signatures_are_those_of_timm():
    plain = create('test_vit')
    for name in ('forward_intermediates', 'prune_intermediate_layers', 'reset_classifier', 'forward_head'):
        theirs = list(inspect.signature(getattr(plain, name)).parameters)
        ours = list(inspect.signature(getattr(SpatialTransformerNetwork, name)).parameters)[1:]
        common = [p for p in theirs if p in ours]
        assert common == [p for p in ours if p in theirs] and len(common) >= 2, name


@pytest.mark.parametrize('arguments', [
    dict(stn_stages=['input', 1, 2]),
    dict(stn_stages=['input', 2], stn_glimpses=2, stn_towers='separate', stn_scale=0.5)])
def test_a_state_dict_of_its_backbone_alone_loads_with_the_transformers_at_stages(arguments):
    torch.manual_seed(0)
    trained, other = (timm.create_model('stn_test_resnet', stn_localization='conv', **arguments) for _ in range(2))
    for p in trained.backbone.parameters():
        torch.nn.init.normal_(p)
    other.load_state_dict(trained.backbone.state_dict())
    for backbone in other.backbones():
        assert all(torch.equal(p, q) for p, q in zip(backbone.parameters(), trained.backbone.parameters()))


ON_META = [
    dict(), dict(stn_stages=('input', 2)), dict(stn_localization='shared:2', stn_scale=0.5),
    dict(stn_glimpses=2, stn_scale=0.5), dict(stn_glimpses=2, stn_scale=0.5, stn_towers='separate', stn_join='concat'),
    dict(stn_localization='timm:test_resnet'), dict(stn_localization='conv:hidden=8,depth=2'),
    dict(stn_transform='tps', stn_penalty=0.1, stn_freeze_steps=3)]


@contextmanager
def empty_weights(monkeypatch):
    """As accelerate's init_empty_weights: parameters go to the meta device as they are registered, buffers do not."""
    register = nn.Module.register_parameter

    def on_meta(module, name, param):
        register(module, name, None if param is None else nn.Parameter(param.to('meta'), param.requires_grad))

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, 'register_parameter', on_meta)
        yield


@pytest.mark.parametrize('kwargs', ON_META)
@pytest.mark.parametrize('way', ['meta', 'empty'])
def test_a_network_without_memory_takes_weights(kwargs, way, monkeypatch):
    whole = create(**kwargs)
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)
    plain = create('test_resnet').state_dict()
    started = create(**kwargs)
    started.load_state_dict(plain)
    without_counts = {k: v for k, v in whole.state_dict().items() if 'backward_passes' not in k}
    for weights, expected in ((whole.state_dict(), whole), (without_counts, whole), (plain, started)):
        with torch.device('meta') if way == 'meta' else empty_weights(monkeypatch):
            model = timm.create_model('stn_test_resnet', **kwargs)
        assert any(p.is_meta for p in model.parameters())
        model.load_state_dict(weights, assign=True)
        assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
        torch.testing.assert_close(model.eval()(images()), expected(images()))


def test_a_transformer_in_a_net_of_ones_own_leaves_the_meta_device():
    def make():
        return nn.Sequential(timm_stn.SpatialTransformer(3, (32, 32), penalty=0.1), nn.Conv2d(3, 4, 3)).eval()

    whole, x = make(), torch.rand(2, 3, 32, 32)
    with torch.device('meta'):
        net = make()
    net.load_state_dict(whole.state_dict(), assign=True)
    torch.testing.assert_close(net(x), whole(x))


def test_a_transformer_whose_tensors_were_put_elsewhere_one_by_one_moves():
    """As accelerate's load_checkpoint_and_dispatch after init_empty_weights(include_buffers=True)."""
    whole = create(stn_glimpses=2, stn_scale=0.5, stn_localization='conv', stn_penalty=0.1)
    with torch.device('meta'):
        net = create(stn_glimpses=2, stn_scale=0.5, stn_localization='conv', stn_penalty=0.1)
    for name, tensor in whole.state_dict().items():
        of, _, leaf = name.rpartition('.')
        module = net.get_submodule(of)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor)
        else:
            module._buffers[leaf] = tensor
    torch.testing.assert_close(net.to('cpu')(images()), whole(images()))


def test_a_network_that_learns_nothing_says_so():
    model = create()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith('fc')
    with pytest.warns(UserWarning, match=r"begin with 'backbone.'; timm_stn.base_name\('backbone.fc.weight'\)"):
        model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = timm_stn.base_name(name).startswith('fc')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.train().eval()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ['backbone.fc.weight', 'backbone.fc.bias']


@pytest.mark.parametrize('name, expected', [
    ('backbone.fc.weight', 'fc.weight'), ('towers.1.fc.weight', 'fc.weight'), ('stn.base', ''), ('classifier.bias', ''),
    ('module.backbone.fc.weight', 'fc.weight'), ('_orig_mod.module.towers.1.fc.bias', 'fc.bias'),
    ('module.stn.base', ''), ('backbone._orig_mod.fc.bias', 'fc.bias'),
    ('_fsdp_wrapped_module.backbone.fc._fsdp_wrapped_module.weight', 'fc.weight'),
    ('backbone.module.weight', 'module.weight'), ('module', '')])
def test_names_under_ddp_and_torch_compile(name, expected):
    assert timm_stn.base_name(name) == expected


def test_a_name_that_is_none():
    with pytest.raises(TypeError, match='key must be the name of a parameter or module, got 3'):
        timm_stn.base_name(3)
