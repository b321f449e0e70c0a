"""The network as timm and its users see it."""
import copy
import inspect
import io
import json
import pickle

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from timm.optim import param_groups_layer_decay
from torch import nn

import timm_stn
from timm_stn.network import attach
from timm_stn.network.arguments import DEFAULTS
from timm_stn.network.model import SpatialTransformerNetwork

SIZE = 64


def create(name='stn_test_resnet', seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs).eval()


def images(n=2, size=SIZE, chans=3, seed=1):
    return torch.rand(n, chans, size, size, generator=torch.Generator().manual_seed(seed))


def save_for_hf(model, path, **kwargs):
    if not hasattr(timm.models, 'get_model_args'):  # timm 1.0.29 saves the arguments that it is given, no others
        kwargs['model_args'] = dict(model._model_args, in_chans=3, num_classes=model.num_classes)
    timm.models.save_for_hf(model, path, **kwargs)


def move_theta(model, scale=0.3, seed=2):
    """Give every transformer something else than the identity to do."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if 'regression' in name:
            p.data = torch.randn(p.shape, generator=generator).to(p.dtype) * scale
    return model


def test_untouched_transformers_leave_logits_as_they_are():
    plain = create('test_resnet')
    twin = create('stn_test_resnet', stn_stages=('input', 1, 'layer3'))
    twin.load_state_dict(plain.state_dict())  # strict
    x = images()
    expected = plain(x)
    assert (twin(x) - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())
    move_theta(twin)
    assert (twin(x) - expected).abs().max() > 1e-2 * (expected.max() - expected.min())


def test_state_dict_holds_the_backbone_with_its_own_keys():
    keys = set(create(stn_stages=('input', 1)).state_dict())
    plain = set(create('test_resnet').state_dict())
    assert {'backbone.' + k for k in plain} == {k for k in keys if 'stn.' not in k}
    assert {k.split('.localization')[0] for k in keys if 'stn.' in k} == {'stn', 'backbone.layer1.stn'}


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_byobnet', 'test_efficientnet'])
def test_plain_checkpoint_adapts_as_in_timm(tmp_path, name):
    plain = create(name)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    overlay = dict(file=str(tmp_path / 'plain.pth'))
    for change in (dict(num_classes=7), dict(in_chans=1), dict()):
        expected = create(name, pretrained=True, pretrained_cfg_overlay=overlay, **change)
        twin = create('stn_' + name, pretrained=True, pretrained_cfg_overlay=overlay, **change)
        reference = expected.state_dict()
        classifier = expected.pretrained_cfg['classifier']
        for key, value in twin.backbone.state_dict().items():
            if 'num_classes' not in change or not key.startswith(classifier):
                assert torch.equal(value, reference[key]), key
        assert 'state_dict' not in twin.pretrained_cfg
        assert twin(images(size=160, chans=change.get('in_chans', 3))).shape == (2, change.get('num_classes', 1000))


def test_position_embedding_adapts_to_the_size(tmp_path):
    plain = create('test_vit')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')), img_size=96)
    assert torch.equal(create('stn_test_vit', **kwargs).pos_embed, create('test_vit', **kwargs).pos_embed)
    kwargs = dict(kwargs, img_size=192, stn_size=96)
    twin = create('stn_test_vit', **kwargs)
    inner = create('test_vit', **{k: v for k, v in kwargs.items() if k != 'stn_size'} | dict(img_size=96))
    assert torch.equal(twin.pos_embed, inner.pos_embed)
    assert twin(images(size=192)).shape == (2, 1000)


NETWORKS = [
    ('stn_test_resnet', dict(stn_stages=('input', 1, 'layer3'), stn_transform='similarity')),
    ('stn_test_resnet', dict(stn_stages={'input': dict(transform='projective'), 2: dict(transform='translation')})),
    ('stn_test_vit', dict(stn_stages=('input', 0), stn_size=96, img_size=128)),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_transform='translation', num_classes=5)),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_towers='separate', stn_join='concat')),
    ('stn_test_efficientnet', dict(stn_scale=0.5, stn_size=32, stn_whole=True)),
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_whole=True, stn_localization='shared:2')),
    ('stn_test_vit', dict(stn_whole=True, stn_towers='separate', stn_localization='shared:0')),
    ('stn_test_resnet', dict(stn_transform='tps', stn_iterations=2, stn_padding_mode='fill', stn_fill=(0.1, 0.2, 0.3))),
    ('stn_test_resnet', dict(stn_localization='timm:test_efficientnet')),
    ('stn_test_resnet', dict(stn_stages=(2,), stn_target='input')),
]


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_saved_for_the_hub_and_restored_bit_equal(tmp_path, name, kwargs):
    model = move_theta(create(name, **kwargs))
    save_for_hf(model, tmp_path, safe_serialization=True)
    restored = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(size=model._input_size[-1])
    assert torch.equal(restored(x), model(x))
    saved = json.loads((tmp_path / 'config.json').read_text())['model_args']
    assert set(DEFAULTS) <= set(saved)
    assert restored.arguments.json == model.arguments.json


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_restored_with_other_classes_and_channels(tmp_path, name, kwargs):
    model = move_theta(create(name, **kwargs))
    save_for_hf(model, tmp_path, safe_serialization=True)
    for change in (dict(num_classes=3), dict(in_chans=1)):
        if 'in_chans' in change and 'stn_fill' in kwargs:
            change['stn_fill'] = 0.0
        other = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **change).eval()
        x = images(size=model._input_size[-1], chans=change.get('in_chans', 3))
        assert other(x).shape == (2, change.get('num_classes', model.num_classes))
        theta, expected = (m.stn.localization.regression.weight for m in (other, model))
        assert torch.equal(theta, expected)


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_copies_use_their_own_transformers(name, kwargs):
    model = create(name, **kwargs)
    x = images(size=model._input_size[-1])
    before = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), before)
        move_theta(other)
        assert not torch.allclose(other(x), before)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_every_transformer_parameter_learns(name, kwargs):
    model = create(name, **kwargs).train()
    model(images(size=model._input_size[-1])).square().mean().backward()
    parameters = [(n, p) for n, p in model.named_parameters() if 'stn.' in n]
    assert parameters
    for key, p in parameters:
        assert p.grad is not None and p.grad.isfinite().all(), key
        if 'regression.weight' in key:
            assert p.grad.abs().max() > 0, key


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_features_then_head_is_forward(name, kwargs):
    model = move_theta(create(name, **kwargs))
    x = images(size=model._input_size[-1])
    features = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(features), model(x))
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(hidden), model(x))


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_classifier_is_reset(name, kwargs):
    model = create(name, **kwargs)
    x = images(size=model._input_size[-1])
    model.reset_classifier(11)
    assert model.num_classes == 11 and model(x).shape == (2, 11)
    assert model.get_classifier().weight.shape[0] == 11
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(x).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_gradient_checkpointing_changes_nothing(name, kwargs):
    model = move_theta(create(name, **kwargs))
    x = images(size=model._input_size[-1])

    def gradients():
        model.zero_grad()
        model(x).square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    expected = gradients()
    model.set_grad_checkpointing()
    for key, value in gradients().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_intermediates(name, kwargs):
    model = move_theta(create(name, **kwargs))
    x = images(size=model._input_size[-1])
    final, features = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(features) == len(model.feature_info)
    assert model.streams == 1 or features[0].shape[1] == model.streams
    kept = model.prune_intermediate_layers([1])
    torch.testing.assert_close(model.forward_intermediates(x, indices=kept, intermediates_only=True)[0], features[1])


@pytest.mark.parametrize('feature_cls', [None, 'list', 'dict', 'hook', 'fx', 'getter'])
def test_features_only_with_an_input_transformer(feature_cls):
    kwargs = {} if feature_cls is None else dict(feature_cls=feature_cls)
    model = create(features_only=True, out_indices=(1, 3), **kwargs)
    plain = create('test_resnet', features_only=True, out_indices=(1, 3), **kwargs)
    plain.load_state_dict(model.backbone.state_dict())
    x = images()

    def maps(out):
        return list(out.values()) if isinstance(out, dict) else out
    expected = maps(plain(x))
    for feature, reference in zip(maps(model(x)), expected):
        torch.testing.assert_close(feature, reference, rtol=1e-3, atol=1e-3)
    move_theta(model)
    assert not torch.allclose(maps(model(x))[0], expected[0], atol=1e-2)
    assert model.feature_info.channels() == plain.feature_info.channels()


def test_features_only_with_transformers_at_stages():
    model = create(features_only=True, out_indices=(1, 3), stn_stages=('input', 1))
    x = images()
    before = model(x)
    assert [f.shape[1] for f in before] == model.feature_info.channels()
    move_theta(model.spatial_transformers()[1])
    after = model(x)
    assert not torch.allclose(before[0], after[0]) and model.look(x)[0].shape == x.shape
    with pytest.raises(ValueError, match="feature_cls must be 'getter'.*'hook'"):
        create(features_only=True, feature_cls='hook', stn_stages=(1,))


def test_features_by_default_are_those_of_the_backbone():
    for name in ('test_resnet', 'test_vit'):
        plain = create(name, features_only=True)
        for more in (dict(stn_stages=(1,)), dict(stn_scale=0.5)):  # a stage, saliency
            model = create(f'stn_{name}', features_only=True, **more)
            assert model.feature_info.out_indices == plain.feature_info.out_indices
            assert model.in_chans == getattr(plain, 'in_chans', 3)
            model.set_grad_checkpointing()
    with pytest.raises((AssertionError, IndexError), match='9'):
        create(features_only=True, stn_stages=(2,), out_indices=(1, 9))


def test_joined_classifier_starts_as_the_mean_of_the_glimpses(tmp_path):
    plain = create('test_resnet')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')))
    for more in (dict(), dict(stn_towers='separate'), dict(stn_join='concat')):
        model = create(stn_glimpses=2, stn_scale=0.5, stn_transform='translation', **more, **kwargs)
        seen, theta = model.look(images())
        assert seen.shape == (2, 2, 3, SIZE, SIZE) and theta.shape == (2, 2, 2, 3)
        expected = torch.stack([plain(seen[:, 0]), plain(seen[:, 1])]).mean(0)
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)
    model = create(stn_glimpses=2, stn_scale=0.5)
    model.load_state_dict(plain.state_dict())  # strict: a plain checkpoint, later on
    assert torch.equal(model.backbone.layer1[0].conv1.weight, plain.layer1[0].conv1.weight)


@pytest.mark.parametrize('name', [
    'dla46_c', 'repvit_m0_9', 'caformer_s18', 'cpubone_nano', 'deit_tiny_distilled_patch16_224'])
def test_classifiers_that_are_not_linear_stay(name, tmp_path):
    if not timm.is_model(name):
        pytest.skip(f'timm {timm.__version__} has no {name}')
    plain = create(name, num_classes=5)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    x = images(size=plain.pretrained_cfg['input_size'][-1])
    model = create(
        f'stn_{name}', num_classes=5, pretrained=True, stn_whole=True, stn_localization='conv',
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth'), num_classes=5))  # sees the whole image twice
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    move_theta(model)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x)) and not torch.equal(model(x), plain(x))
    model.load_state_dict(plain.state_dict())
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), model(x))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.get_classifier() is not plain.get_classifier()


def test_a_classifier_of_ones_own_without_bias_or_with_several_layers_stays():
    x = images()
    for head in (nn.Linear(96, 7, bias=False), nn.Sequential(nn.Linear(96, 8), nn.GELU(), nn.Linear(8, 7))):
        plain = create('test_resnet')
        plain.fc, plain.num_classes = head, 7
        expected = plain(x)
        torch.testing.assert_close(timm_stn.wrap(plain, whole=True, localization='conv')(x), expected)


@pytest.mark.parametrize('name,exact', [('dla46_c', True), ('caformer_s18', False)])
def test_side_by_side_features_get_a_linear_classifier(name, exact):
    plain = create(name, num_classes=5)
    model = create(f'stn_{name}', num_classes=5, stn_whole=True, stn_localization='conv', stn_join='concat')
    model.load_state_dict(plain.state_dict())
    assert type(model.classifier) is nn.Linear and model.classifier.in_features == 2 * plain.head_hidden_size
    x = images(size=224)
    assert torch.allclose(model(x), plain(x), rtol=1e-3, atol=1e-4) == exact
    with pytest.raises(ValueError, match="stn_join='concat' needs a backbone with one classifier.*use stn_join='mean'"):
        create('stn_deit_tiny_distilled_patch16_224', stn_glimpses=2, stn_join='concat')


@pytest.mark.parametrize('localization', ['conv', 'shared:2'])
def test_the_whole_of_images_of_another_size(localization):
    model = move_theta(create(stn_whole=True, stn_localization=localization, stn_transform='translation'))
    x = images(size=96)
    seen = model.look(x)[0]
    expected = torch.stack([model.backbone.forward_features(i) for i in (x, seen)], 1)
    torch.testing.assert_close(model.forward_features(x), expected)
    assert torch.equal(model.train().look(x)[0], seen)


@pytest.mark.parametrize('name,channels', [
    ('stn_test_resnet', 1), ('stn_test_vit', 2), ('stn_swin_tiny_patch4_window7_224', 3)])
def test_unpooled_features_side_by_side(name, channels):
    size = 224 if 'swin' in name else 160
    kwargs = dict(num_classes=0, global_pool='', stn_whole=True, stn_localization='conv')
    out = create(name, stn_join='concat', **kwargs)(images(size=size))
    mean = create(name, **kwargs)(images(size=size))
    assert out.shape[channels] == 2 * mean.shape[channels]
    torch.testing.assert_close(torch.stack(out.chunk(2, channels)).mean(0), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kwargs', [dict(), dict(stn_localization='shared:2')])
@pytest.mark.parametrize('name', ['stn_test_resnet', 'stn_test_vit'])
def test_autocast_trains_all_that_is_trained_without(name, kwargs):
    model = create(name, num_classes=4, stn_glimpses=2, stn_scale=0.5, **kwargs).train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(images(4)).float().square().mean()
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_whole_image_is_a_stream_before_the_glimpses():
    model = move_theta(create(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_whole=True, stn_transform='translation'))
    x = images()
    seen, _ = model.look(x)
    small = nn.functional.interpolate(x, (32, 32), mode='bilinear', antialias=True)
    expected = torch.stack([model.backbone.forward_features(i) for i in (small, seen[:, 0], seen[:, 1])], 1)
    torch.testing.assert_close(model.forward_features(x), expected)


def test_where_the_whole_image_tells_where_to_look_its_features_are_computed_once():
    kwargs = dict(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_whole=True, stn_localization='shared:2')
    model = move_theta(create(**kwargs))
    ran = []
    model.backbone.conv1.register_forward_hook(lambda module, args, output: ran.append(len(args[0])))
    x = images()
    logits = model(x)
    assert ran == [2, 4] and not torch.allclose(model.stn.last_theta, create(**kwargs).look(x)[1])
    small = nn.functional.interpolate(x, (32, 32), mode='bilinear', antialias=True)
    views = [small, *model.look(x)[0].unbind(1)]
    hidden = [model.backbone.forward_head(model.backbone.forward_features(v), pre_logits=True) for v in views]
    torch.testing.assert_close(logits, model.classifier(torch.stack(hidden).mean(0)))


def test_look_and_unwarp_show_where():
    model = create(stn_transform='attention', stn_scale=0.5)
    model.stn.localization.regression.bias.data[1] = 0.4
    x = images()
    seen, theta = model.look(x)
    assert theta[0, 0, 0] == 0.5 and theta[0, 0, 2] > 0.1
    assert model.spatial_transformers()['input'] is model.stn
    model(x)
    assert model.stn.last_theta.equal(theta.detach()) and not model.stn.last_theta.requires_grad
    back = timm_stn.unwarp(seen, theta, (SIZE, SIZE))
    assert back.shape == x.shape and (back == 0).any()
    with pytest.raises(ValueError, match='look needs a transformer at the input'):
        create(stn_stages=(1,)).look(x)


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


def test_a_plain_checkpoint_joins_its_classifier_whichever_way_it_is_loaded(tmp_path):
    plain = create('test_resnet')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    kwargs = dict(stn_glimpses=2, stn_scale=0.5)
    early = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')), **kwargs)
    late = create(checkpoint_path=str(tmp_path / 'plain.pth'), **kwargs)
    torch.testing.assert_close(late(images()), early(images()))
    other = create(num_classes=3, **kwargs)
    before = other.classifier.weight.clone()
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.classifier.weight, before)


@pytest.mark.parametrize('change', [
    lambda sd: sd.pop('backbone.layer1.0.conv1.weight'),
    lambda sd: sd.pop('classifier.weight'),
    lambda sd: sd.pop('stn.localization.regression.bias'),
    lambda sd: sd.update({'towers.1.conv1.0.weight': torch.zeros(1)}),
    lambda sd: sd.update({'foo.weight': torch.zeros(1)}),
])
def test_an_incomplete_or_foreign_checkpoint_of_glimpses_is_refused(tmp_path, change):
    kwargs = dict(stn_glimpses=2, stn_scale=0.5)
    state_dict = create(**kwargs).state_dict()
    change(state_dict)
    torch.save(state_dict, tmp_path / 'whole.pth')
    with pytest.raises(RuntimeError, match='does not fit'):
        create(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'whole.pth')), **kwargs)


def test_a_checkpoint_of_shared_towers_does_not_fit_separate_ones(tmp_path):
    save_for_hf(create(stn_glimpses=2, stn_scale=0.5), tmp_path, safe_serialization=True)
    with pytest.raises(RuntimeError, match=r"does not fit.*Missing: \['towers.1"):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, stn_towers='separate')


def test_what_a_user_types_wins_over_a_restored_config(tmp_path):
    save_for_hf(create(), tmp_path, safe_serialization=True)
    model = timm.create_model(f'local-dir:{tmp_path}', stn_localization_size=20, stn_bound=True)
    assert model.stn.localization.size == (20, 20) and model.stn.bound
    model._model_args['stn_stages'][0][1]['bound'] = 'X'
    assert 'bound' not in model.arguments.stages['input']


def test_what_a_user_types_wins_over_what_defaults_of_several_stages_came_to(tmp_path):
    own = create(stn_stages=('input', [2, dict(localization='linear')]))
    save_for_hf(own, tmp_path, safe_serialization=True)
    same = timm.create_model(f'local-dir:{tmp_path}')
    assert same.arguments.json == own.arguments.json
    assert same.arguments.settings('input') == own.arguments.settings('input')
    other = timm.create_model(f'local-dir:{tmp_path}', stn_localization='fc', stn_bound=True)
    kinds = [m.localization.kind for m in other.spatial_transformers().values()]
    assert kinds == ['fc', 'linear'] and all(m.bound for m in other.spatial_transformers().values())


@pytest.mark.parametrize('localization', ['saliency:5', 'shared:5'])
def test_another_input_size_is_restored_bit_equal(localization, tmp_path):
    model = create('stn_test_vit', stn_scale=0.5, stn_transform='translation', stn_localization=localization)
    model.set_input_size(img_size=320)
    move_theta(model, scale=10.0)
    save_for_hf(model, tmp_path, safe_serialization=True)
    restored = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(restored(images(size=320)), model(images(size=320)))


def test_the_backbone_keeps_its_own_traits():
    plain = create('test_vit')
    before = dict(plain._traits) if hasattr(plain, '_traits') else {}
    model = timm_stn.wrap(plain)
    assert getattr(model.backbone, '_traits', {}) == before
    assert model._traits['first_conv'] == ('backbone.patch_embed.proj', 'stn.localization.body.0')
    model.set_input_size(64)
    assert model._traits['img_size'] == (64, 64)
    small = create('stn_test_vit', img_size=320, stn_size=160)
    assert small._traits['img_size'] == (320, 320)
    assert getattr(small.backbone, '_traits', dict(img_size=(160, 160)))['img_size'] == (160, 160)


def test_weights_are_initialised_anew():
    model = move_theta(create('stn_test_vit', stn_stages=('input', 0), stn_glimpses=2))
    model.init_weights()
    assert not model.stn.localization.regression.weight.any()
    assert not model.spatial_transformers()[0].localization.regression.bias.any()


def test_feature_indices_out_of_range_are_refused():
    with pytest.raises(AssertionError, match='out of range'):
        create().prune_intermediate_layers([7])


def test_features_only_of_saved_glimpses_and_of_shared_features(tmp_path):
    save_for_hf(create(stn_glimpses=2, stn_scale=0.5), tmp_path, safe_serialization=True)
    features = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True).eval()(images())
    assert [f.shape[:2] for f in features] == [(2, 2)] * 5
    model = create(features_only=True, out_indices=(1, 3), stn_localization='shared:3')
    assert [f.shape[1] for f in model(images())] == model.feature_info.channels()


@pytest.mark.parametrize('before,after', [(1, 3), (4, 3), (3, 4)])
def test_channels_adapt_from_any_number(tmp_path, before, after):
    if before != 3 and not hasattr(timm.models, 'get_model_args'):
        pytest.skip('this timm adapts weights for 3 channels to others, and no others, for plain models too')
    save_for_hf(create(in_chans=before), tmp_path, safe_serialization=True)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=after)
    assert model(images(chans=after)).shape == (2, 1000)


def test_token_layouts_follow_the_input_size():
    model = create('stn_test_vit', stn_stages=(0,), img_size=64)
    model.set_input_size((32, 128))
    assert model.spatial_transformers()[0].layout.size == (2, 8)


def test_tokens_of_images_with_another_aspect_ratio_are_refused():
    model = create('stn_test_vit', stn_stages=(0,), img_size=64, dynamic_img_size=True)
    assert model(images(size=128)).shape == (2, 1000)
    with pytest.raises(ValueError, match=r'made for images of 64 x 64, got 128 x 32; call set_input_size\(\(128, 32\)'):
        model(images(size=128)[..., :32])
    with pytest.raises(ValueError, match='made for images of 64 x 64, got 336 x 320'):
        model(images(size=336)[..., :320])  # 21 x 20 tokens are as near to a square as 20 x 21
    model.set_input_size((128, 32))
    assert model(images(size=128)[..., :32]).shape == (2, 1000)
    assert model.spatial_transformers()[0].layout.size == (8, 2)
    later = create('stn_test_vit', stn_stages=('input', 3), img_size=64, dynamic_img_size=True)
    later.prune_intermediate_layers([0])  # with what has been at the stage
    assert later.forward_intermediates(images(size=128)[..., :32], intermediates_only=True, indices=[0])
    only_input = create('stn_test_vit', img_size=64, dynamic_img_size=True)
    assert only_input(images(size=128)[..., :32]).shape == (2, 1000)


def test_traces():
    model = move_theta(create())
    traced = torch.jit.trace(model, images(), check_trace=False)
    torch.testing.assert_close(traced(images(seed=5)), model(images(seed=5)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['fuse', 'reparameterize', '__getitem__'])
def test_nothing_gives_the_bare_backbone(name):
    model = create()
    setattr(type(model.backbone), name, lambda self: self)
    try:
        assert not hasattr(model, name)
    finally:
        delattr(type(model.backbone), name)


def test_parameter_names_have_their_prefix():
    model = create('stn_test_vit', stn_stages=('input', 0))
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {'backbone.' + n for n in model.backbone.no_weight_decay()}
    assert 'backbone.pos_embed' in model.no_weight_decay()
    cfg = model.pretrained_cfg
    assert cfg['architecture'] == 'stn_test_vit' and cfg['classifier'] + '.weight' in names
    assert cfg['first_conv'] == ('backbone.patch_embed.proj', 'stn.localization.body.0')
    assert all(f'{c}.weight' in names for c in cfg['first_conv'])
    assert get_pretrained_cfg('stn_test_vit').classifier == 'backbone.head'


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_efficientnet'])
def test_layer_decay_groups_as_the_backbone_and_trains_transformers_like_the_head(name):
    plain, model = create(name), create('stn_' + name, stn_stages=('input', 1))
    scales = {}
    for net in (plain, model):
        names = {id(p): n for n, p in net.named_parameters()}
        for group in param_groups_layer_decay(net, layer_decay=0.5):
            scales.update({(net is model, names[id(p)]): group['lr_scale'] for p in group['params']})
    for (ours, key), scale in scales.items():
        if ours:
            assert scale == (1.0 if 'stn.' in key else scales[False, key.removeprefix('backbone.')]), key


def test_signatures_are_those_of_timm():
    plain = create('test_vit')
    for name in ('forward_intermediates', 'prune_intermediate_layers', 'reset_classifier', 'forward_head'):
        theirs = list(inspect.signature(getattr(plain, name)).parameters)
        ours = list(inspect.signature(getattr(SpatialTransformerNetwork, name)).parameters)[1:]
        common = [p for p in theirs if p in ours]
        assert common == [p for p in ours if p in theirs] and len(common) >= 2, name


def test_set_input_size_means_what_enters():
    model = create('stn_test_vit', img_size=96, stn_size=64)
    model.set_input_size(128)
    assert model(images(size=128)).shape == (2, 1000)
    assert timm.data.resolve_model_data_config(model)['input_size'] == (3, 128, 128)
    model = create('stn_test_vit', img_size=96)
    model.set_input_size((64, 64))
    assert model(images()).shape == (2, 1000)


def test_data_config_and_device_and_dtype():
    assert timm.data.resolve_model_data_config(create('stn_test_resnet'))['input_size'] == (3, 160, 160)
    model = create(dtype=torch.bfloat16, stn_stages=('input', 1))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).dtype == torch.bfloat16
    meta = timm.create_model('stn_test_resnet', device='meta', stn_stages=('input', 1))
    assert {p.device.type for p in meta.parameters()} == {'meta'}


@pytest.mark.parametrize('kwargs,error,words', [
    (dict(stn_stage=1), TypeError, "'stn_stage'.*'stn_stages'"),
    (dict(stn_stages=(9,)), ValueError, 'test_resnet has feature indices 0 to 4, got 9'),
    (dict(stn_stages=('layer9',)), ValueError, "no module 'layer9'"),
    (dict(stn_transform='afine'), ValueError, "'afine'.*'affine'"),
    (dict(stn_localization='con'), ValueError, "'con'"),
    (dict(stn_glimpses=0), ValueError, 'stn_glimpses'),
    (dict(stn_padding_mode='edge'), ValueError, "'edge'"),
    (dict(stn_stages=(1,), stn_size=32), ValueError, 'stn_size'),
    (dict(not_an_argument=1), TypeError, 'not_an_argument'),
])
def test_errors_name_argument_value_and_what_is_accepted(kwargs, error, words):
    with pytest.raises(error, match=words):
        create(**kwargs)


def test_checkpoint_of_other_transformers_is_refused(tmp_path):
    save_for_hf(create(stn_transform='affine'), tmp_path, safe_serialization=True)
    with pytest.raises(RuntimeError, match=r'stn_ arguments.*regression.weight'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, stn_transform='translation')


def test_a_refused_wrap_leaves_the_model_as_it_was(monkeypatch):
    place = attach._place

    def refuse(backbone, name, stn, way):
        return place(backbone, name, stn, 3 if name == 'layer3' else way)
    monkeypatch.setattr(attach, '_place', refuse)
    plain = create('test_resnet')
    keys = set(plain.state_dict())
    with pytest.raises(ValueError, match='cannot follow layer3 of test_resnet'):
        timm_stn.wrap(plain, stages=('act1', 'layer1', 'layer3'))
    assert set(plain.state_dict()) == keys and not any(m._forward_hooks for m in plain.modules())


def test_wrap():
    plain = create('test_resnet')
    x = images()
    expected = plain(x)
    model = timm_stn.wrap(plain, stages=('input', 2), transform='similarity')
    assert not model.training
    assert model.backbone is plain and list(model.spatial_transformers()) == ['input', 2]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='already'):
        timm_stn.wrap(model)
    with pytest.raises(TypeError, match='Linear'):
        timm_stn.wrap(nn.Linear(1, 1))
    with pytest.raises(TypeError, match='stn_transfrm.*stn_transform'):
        timm_stn.wrap(create('test_resnet'), transfrm='affine')


@pytest.mark.parametrize('kwargs', [kw for n, kw in NETWORKS if n == 'stn_test_resnet'][:4])
def test_compiles_and_exports_as_one_graph(kwargs):
    model = move_theta(create(**kwargs))
    x = images()
    expected = model(x)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='aot_eager')(x), expected)
        exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)


def test_init_weights_restores_what_is_not_saved():
    model = create(device='meta', stn_glimpses=2, stn_scale=0.5).to_empty(device='cpu')
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else 7)
    model.init_weights()
    assert torch.equal(model.stn.base, create(stn_glimpses=2, stn_scale=0.5).stn.base)
    assert int(model.stn.localization.regression.lr_scale_nano) == 10 ** 10


def test_stages_of_tokens_of_which_training_drops_some_are_refused():
    for name in ('stn_vit_tiny_patch16_224', 'stn_eva02_tiny_patch14_224'):
        with pytest.raises(ValueError, match=r'stage 2 \(blocks.2\).*patch_drop_rate drops tokens.*patch_drop_rate=0'):
            create(name, patch_drop_rate=0.75, stn_stages=('input', 2))
        assert create(name, patch_drop_rate=0.75).train()(images(size=224)).shape[0] == 2


def test_pruning_passes_on_what_the_backbone_takes():
    model = create('stn_test_efficientnet')
    assert model.prune_intermediate_layers([0], extra_blocks=True) == [0]
    assert len(model.backbone.blocks) == 0
    with pytest.raises(TypeError, match='extra_blocks'):
        create().prune_intermediate_layers([0], extra_blocks=True)


@pytest.mark.parametrize('name,size', [('stn_coat_tiny', 224), ('stn_crossvit_tiny_240', 240)])
@pytest.mark.parametrize('towers', ['shared', 'separate'])
def test_glimpses_of_networks_whose_features_are_lists(name, size, towers):
    model = create(name, stn_glimpses=2, stn_scale=0.5, stn_towers=towers, num_classes=5)
    x = images(1, size)
    with torch.no_grad():
        features = model.forward_features(x)
        assert isinstance(features, (list, tuple)) and all(f.shape[:2] == (1, 2) for f in features)
        torch.testing.assert_close(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)


def test_weights_of_the_whole_network_from_a_url(tmp_path):
    source = create(num_classes=7)
    move_theta(source)
    torch.save(source.state_dict(), tmp_path / 'whole.pth')
    overlay = dict(url=(tmp_path / 'whole.pth').as_uri(), source='url', num_classes=7)
    model = create(
        seed=1, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, cache_dir=str(tmp_path / 'cache'))
    assert torch.equal(model(images()), source(images()))


def test_backbone_weights_that_timm_renames():
    small = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    source = create('stn_vit_tiny_patch16_224', use_naflex=False, **small)
    move_theta(source)
    cfg = dict(source.pretrained_cfg, state_dict=source.state_dict(), input_size=(3, 32, 32), num_classes=3)
    model = create('stn_vit_tiny_patch16_224', seed=1, use_naflex=True, pretrained=True, pretrained_cfg=cfg, **small)
    assert hasattr(model.backbone, 'embeds')
    torch.testing.assert_close(model(images(2, 32)), source(images(2, 32)))


@pytest.mark.parametrize('from_file', [True, False])
def test_a_localization_network_gets_its_own_weights_only_beside_timms(tmp_path, monkeypatch, from_file):
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'plain.pth')
    asked, create_model = [], timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if name.startswith('stn_') or (from_file and name == 'test_resnet'):
            return create_model(name, pretrained=pretrained, **kwargs)
        asked.append((name, pretrained))
        return create_model(name, **{k: v for k, v in kwargs.items() if k != 'pretrained_cfg'})

    monkeypatch.setattr(timm, 'create_model', offline)
    overlay = dict(pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth'))) if from_file else {}
    create(pretrained=True, stn_localization='timm:test_efficientnet', **overlay)
    assert asked == ([] if from_file else [('test_resnet', True)]) + [('test_efficientnet', not from_file)]


def has_per_sample_gradients_of_grids():
    """torch 2.6 fails in its own grid sampler where images need no gradient."""
    image, grid = torch.ones(1, 1, 2, 2), torch.zeros(2, 1, 1, 1, 2)
    try:
        torch.vmap(torch.func.grad(lambda g: nn.functional.grid_sample(image, g, align_corners=False).sum()))(grid)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize('of', ['weights', 'weights and images'])
@pytest.mark.parametrize('name,kwargs', [
    ('test_vit', {}), ('test_vit', dict(stn_transform='tps')), ('test_resnet', dict(stn_stages=('input', 'layer1'))),
    ('test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_transform='translation')),
])
def test_gradients_of_every_sample_are_those_of_a_loop(name, kwargs, of):
    if of == 'weights' and not has_per_sample_gradients_of_grids():
        pytest.skip(f'torch {torch.__version__} has no such gradients of grid_sample')
    model = move_theta(create('stn_' + name, num_classes=3, **kwargs)).double()
    x, target = images(3, model.pretrained_cfg['input_size'][-1]).double(), torch.tensor([0, 1, 2])
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def loss(weights, image, label):
        logits = torch.func.functional_call(model, weights, (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    argnums = (0, 1) if of == 'weights and images' else (0,)
    found = torch.vmap(torch.func.grad(loss, argnums), (None, 0, 0))(weights, x, target)
    for i in range(3):
        image = x[i:i + 1].clone().requires_grad_()
        model.zero_grad()
        nn.functional.cross_entropy(model(image), target[i:i + 1]).backward()
        for key, p in model.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found[0][key][i], expected, msg=key)
        if len(found) > 1:
            torch.testing.assert_close(found[1][i], image.grad[0])
    alone = torch.func.grad(loss)(weights, x[2], target[2])
    for key, value in alone.items():
        torch.testing.assert_close(value, found[0][key][2], msg=key)
    assert copy.deepcopy(model).stn.last_theta.isfinite().all()  # nothing of the transformed function is kept


def test_heads_side_by_side_share_what_is_seen():
    model, x = move_theta(create(num_classes=3)), images()
    heads = {k: torch.stack([v, 2 * v]) for k, v in model.get_classifier().state_dict(prefix='backbone.fc.').items()}
    logits = torch.vmap(lambda head: torch.func.functional_call(model, head, (x,)))(heads)
    torch.testing.assert_close(logits, torch.stack([model(x), 2 * model(x)]))
    found, = torch.autograd.grad(logits.sum(), model.stn.localization.regression.weight)
    expected, = torch.autograd.grad(3 * model(x).sum(), model.stn.localization.regression.weight)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
