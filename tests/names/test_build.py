"""A network from its name and arguments, or around a model: what it is given, and the weights that it starts from."""
import numpy as np
import pytest
import timm
import torch
from makers import create, images, move_theta, save_for_hf
from timm.data import resolve_data_config
from torch import nn

import timm_stn
from timm_stn.network import attach


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


@pytest.mark.parametrize('size', [64, np.array([64, 96])], ids=['side', 'array'])
@pytest.mark.parametrize('name', ['test_resnet', 'eca_vovnet39b', 'repvit_m0_9', 'test_vit'])
def test_every_network_is_made_for_a_size_whether_or_not_its_backbone_takes_one(tmp_path, name, size):
    sides = (64, 64) if isinstance(size, int) else (64, 96)
    twin, x = create(f'stn_{name}', img_size=size), torch.rand(2, 3, *sides)
    assert twin.stn.localization.size == tuple(side // 2 for side in sides)
    assert resolve_data_config({}, model=twin)['input_size'][1:] == (sides if name != 'test_vit' else (160, 160))
    save_for_hf(twin, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert again.stn.input_size == sides and torch.equal(again(x), twin(x))
    assert timm.create_model(f'local-dir:{tmp_path}', img_size=128).stn.input_size == (128, 128)


@pytest.mark.parametrize('arguments', [
    dict(stn_stages=('input', 0)), dict(features_only=True), dict(features_only=True, stn_stages=(0,)),
    dict(stn_size=32), dict(stn_glimpses=2, stn_towers='separate')], ids=repr)
def test_a_size_goes_together_with_all_else(arguments):
    twin, x = create(img_size=(64, 96), **arguments), torch.rand(2, 3, 64, 96)
    for transformer in twin.spatial_transformers().values():
        assert transformer.input_size == ((64, 96) if transformer.stage == 'input' else (32, 48))
    twin(x)


@pytest.mark.parametrize('size', [0, '64', (64,), 2.5, True], ids=repr)
def test_a_wrong_size_is_refused(size):
    with pytest.raises(ValueError, match='img_size must be 2 positive integers, or one, got'):
        create(img_size=size)


def test_what_a_user_types_wins_over_a_restored_config(tmp_path):
    save_for_hf(create(), tmp_path)
    model = timm.create_model(f'local-dir:{tmp_path}', stn_localization_size=20, stn_bound=True)
    assert model.stn.localization.size == (20, 20) and model.stn.bound
    model._model_args['stn_stages'][0][1]['bound'] = 'X'
    assert 'bound' not in model.arguments.stages['input']


def test_what_a_user_types_wins_over_what_defaults_of_several_stages_came_to(tmp_path):
    own = create(stn_stages=('input', [2, dict(localization='linear')]))
    save_for_hf(own, tmp_path)
    same = timm.create_model(f'local-dir:{tmp_path}')
    assert same.arguments.json == own.arguments.json
    assert same.arguments.settings('input') == own.arguments.settings('input')
    other = timm.create_model(f'local-dir:{tmp_path}', stn_localization='fc', stn_bound=True)
    kinds = [m.localization.kind for m in other.spatial_transformers().values()]
    assert kinds == ['fc', 'linear'] and all(m.bound for m in other.spatial_transformers().values())


@pytest.mark.parametrize('before,after', [(1, 3), (4, 3), (3, 4)])
def test_channels_adapt_from_any_number(tmp_path, before, after):
    if before != 3 and not hasattr(timm.models, 'get_model_args'):
        pytest.skip('this timm adapts weights for 3 channels to others, and no others, for plain models too')
    save_for_hf(create(in_chans=before), tmp_path)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=after)
    assert model(images(chans=after)).shape == (2, 1000)


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
    save_for_hf(create(stn_transform='affine'), tmp_path)
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
    with pytest.raises(TypeError, match="unknown setting 'transfrm'. Did you mean 'transform'"):
        timm_stn.wrap(create('test_resnet'), transfrm='affine')


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


@pytest.mark.parametrize('arch, same', [('test_resnet', True), ('test_efficientnet', False)])
def test_a_localization_network_of_the_backbones_architecture_starts_from_its_file(tmp_path, arch, same):
    torch.manual_seed(5)
    plain = timm.create_model('test_resnet').state_dict()
    torch.save(plain, tmp_path / 'plain.pth')
    overlay = dict(file=str(tmp_path / 'plain.pth'))
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, stn_localization=f'timm:{arch}', num_classes=3,
                   stn_glimpses=2, stn_towers='separate')
    body = model.stn.localization.body[0].net.state_dict()
    for part in (model.backbone.state_dict(), model.towers['1'].state_dict(), *[body] * same):
        assert {k for k, v in part.items() if torch.equal(v, plain[k])} == {k for k in plain if not k.startswith('fc.')}
    assert model.classifier.weight.shape[0] == 3
    if not same:
        assert not any(torch.equal(v, plain[k]) for k, v in body.items() if k in plain and v.ndim > 1)


@pytest.mark.parametrize('settings', [
    dict(stn_join='channels', stn_glimpses=2), dict(features_only=True, out_indices=(1,)), dict(in_chans=1),
    dict(stn_join='channels', stn_glimpses=2, in_chans=1)], ids=str)
def test_it_does_so_where_the_backbone_has_another_stem_or_not_all_stages(tmp_path, settings):
    torch.manual_seed(5)
    plain = timm.create_model('test_resnet')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    overlay = dict(file=str(tmp_path / 'plain.pth'))
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, stn_localization='timm:test_resnet', **settings)
    body = model.stn.localization.body[0].net.state_dict()
    expected = plain.state_dict() | {k: v.sum(1, keepdim=True) for k, v in plain.state_dict().items()
                                     if k == 'conv1.0.weight' and 'in_chans' in settings}
    assert all(torch.equal(value, expected[key]) for key, value in body.items())


@pytest.mark.parametrize('name, changed', [
    ('resnet18', dict(base_width=32, block='Bottleneck')), ('resnet18', dict(stem_type='deep', stem_width=32)),
    ('vit_tiny_patch16_224', dict(class_token=False, global_pool='avg', img_size=64))], ids=str)
def test_a_checkpoint_of_a_changed_architecture_leaves_it_at_random(tmp_path, name, changed):
    if 'block' in changed:
        changed = dict(changed, block=timm.models.resnet.Bottleneck)
    plain = timm.create_model(name, **changed)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = create(f'stn_{name}', pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')),
                   stn_localization=f'timm:{name}', **{'img_size': 64, **changed})
    weights, body = plain.state_dict(), model.stn.localization.body[0].net.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.backbone.state_dict().items())
    assert not any(torch.equal(value, weights[key]) for key, value in body.items()
                   if value.ndim > 1 and key in weights and value.shape == weights[key].shape)


@pytest.mark.parametrize('name, words', [
    ('transform', "'transform'. Did you mean 'stn_transform'?"), ('stages', "'stages'. Did you mean 'stn_stages'?"),
    ('colour', "'colour'")])
def test_a_forgotten_prefix_is_told(name, words):
    with pytest.raises(TypeError) as error:
        timm.create_model('stn_test_resnet', **{name: 'tps'})
    assert str(error.value).endswith(words)
