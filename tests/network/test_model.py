"""The network as timm and its users see it."""
import copy
import json

import pytest
import timm
import torch
from makers import copies, create, images, move_theta, save_for_hf
from torch import nn

import timm_stn
from timm_stn.network.arguments import DEFAULTS


def test_untouched_transformers_leave_logits_as_they_are():
    plain = create('test_resnet')
    twin = create('stn_test_resnet', stn_stages=('input', 1, 'layer3'))
    twin.load_state_dict(plain.state_dict())  # strict
    x = images()
    expected = plain(x)
    assert (twin(x) - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())
    move_theta(twin)
    assert (twin(x) - expected).abs().max() > 1e-2 * (expected.max() - expected.min())


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
    ('stn_test_resnet', dict(stn_glimpses=2, stn_size=32, stn_join='channels')),
    ('stn_test_resnet', dict(stn_localization='conv:channels=4,hidden=8,depth=2', stn_stages=('input', 1))),
]


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_saved_for_the_hub_and_restored_bit_equal(tmp_path, name, kwargs):
    model = move_theta(create(name, **kwargs))
    save_for_hf(model, tmp_path)
    restored = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(size=model._input_size[-1])
    assert torch.equal(restored(x), model(x))
    saved = json.loads((tmp_path / 'config.json').read_text())['model_args']
    assert set(DEFAULTS) <= set(saved)
    assert restored.arguments.json == model.arguments.json


@pytest.mark.parametrize('name,kwargs', NETWORKS)
def test_restored_with_other_classes_and_channels(tmp_path, name, kwargs):
    model = move_theta(create(name, **kwargs))
    save_for_hf(model, tmp_path)
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
    for other in copies(model):
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


@pytest.mark.parametrize('kwargs', [dict(), dict(stn_localization='shared:2')])
@pytest.mark.parametrize('name', ['stn_test_resnet', 'stn_test_vit'])
def test_autocast_trains_all_that_is_trained_without(name, kwargs):
    model = create(name, num_classes=4, stn_glimpses=2, stn_scale=0.5, **kwargs).train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(images(4)).float().square().mean()
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_look_and_unwarp_show_where():
    model = create(stn_transform='attention', stn_scale=0.5)
    model.stn.localization.regression.bias.data[1] = 0.4
    x = images()
    seen, theta = model.look(x)
    assert theta[0, 0, 0] == 0.5 and theta[0, 0, 2] > 0.1
    assert model.spatial_transformers()['input'] is model.stn
    model(x)
    assert model.stn.last_theta.equal(theta.detach()) and not model.stn.last_theta.requires_grad
    back = timm_stn.unwarp(seen, theta, (64, 64))
    assert back.shape == x.shape and (back == 0).any()
    with pytest.raises(ValueError, match='look needs a transformer at the input'):
        create(stn_stages=(1,)).look(x)


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


def test_pruning_passes_on_what_the_backbone_takes():
    model = create('stn_test_efficientnet')
    assert model.prune_intermediate_layers([0], extra_blocks=True) == [0]
    assert len(model.backbone.blocks) == 0
    with pytest.raises(TypeError, match='extra_blocks'):
        create().prune_intermediate_layers([0], extra_blocks=True)


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
