"""The backbone's own features tell where to look."""
import pytest
import timm
import torch
from makers import GLIMPSES, create, images, move_theta, randn, save_for_hf
from torch import nn


@pytest.mark.parametrize('localization', ['conv', 'shared:2'])
def test_the_whole_of_images_of_another_size(localization):
    model = move_theta(create(stn_whole=True, stn_localization=localization, stn_transform='translation'))
    x = images(size=96)
    seen = model.look(x)[0]
    expected = torch.stack([model.backbone.forward_features(i) for i in (x, seen)], 1)
    torch.testing.assert_close(model.forward_features(x), expected)
    assert torch.equal(model.train().look(x)[0], seen)


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
    torch.testing.assert_close(logits, model.backbone.fc(torch.stack(hidden).mean(0)))


@pytest.mark.parametrize('localization', ['saliency:5', 'shared:5'])
def test_another_input_size_is_restored_bit_equal(localization, tmp_path):
    model = create('stn_test_vit', stn_scale=0.5, stn_transform='translation', stn_localization=localization)
    model.set_input_size(img_size=320)
    move_theta(model, scale=10.0)
    save_for_hf(model, tmp_path)
    restored = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(restored(images(size=320)), model(images(size=320)))


def test_a_glance_of_its_own_size(tmp_path):
    arguments = dict(stn_localization='saliency:2', stn_localization_size=32, **GLIMPSES)
    model = timm.create_model('stn_test_resnet', **arguments).eval()
    sizes = []
    next(model.backbone.children()).register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    images = torch.randn(2, 3, 128, 128)
    logits = model(images)
    assert sizes == [(32, 32), (64, 64)]
    save_for_hf(model, tmp_path)
    assert torch.equal(logits, timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(images))
    sizes.clear()
    model(torch.randn(2, 3, 96, 96))
    assert sizes == [(32, 32), (64, 64)]
    with pytest.raises(ValueError, match=r'stn_localization_size=32: with stn_whole, .* of \(64, 64\)'):
        timm.create_model('stn_test_resnet', stn_whole=True, **arguments)
    with pytest.raises(ValueError, match='stn_localization_size must be 2 positive integers, or one, got -3'):
        timm.create_model('stn_test_resnet', **{**arguments, 'stn_localization_size': -3})


@pytest.mark.parametrize('source', ['shared:9', 'saliency:9'])
def test_a_stage_that_there_is_not_is_that_of_the_localization(source):
    with pytest.raises(ValueError, match=f"^stn_localization='{source}': test_resnet has .* 0 to 4, got 9"):
        timm.create_model('stn_test_resnet', stn_scale=0.5, stn_localization=source)


@pytest.mark.parametrize('more', [{}, {'stn_whole': True}])
def test_to_ask_where_to_look_leaves_the_batch_norms_alone(more):
    torch.manual_seed(0)
    model = timm.create_model('stn_test_resnet', stn_localization='saliency:2', **more, **GLIMPSES).train()
    images = torch.randn(4, 3, 128, 128)
    seen = model.look(images)[0]
    if more:
        small = nn.functional.interpolate(images, (64, 64), mode='bilinear', antialias=True)
        seen = torch.cat([small[:, None], seen], 1)
    plain = timm.create_model('test_resnet', num_classes=3).train()
    plain.load_state_dict({**model.backbone.state_dict(), 'fc.weight': plain.fc.weight, 'fc.bias': plain.fc.bias})
    model(images)
    plain(seen.flatten(0, 1))  # all that is to be classified, in one batch
    for (name, own), theirs in zip(model.backbone.named_buffers(), plain.buffers()):
        torch.testing.assert_close(own, theirs, msg=name)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize('localization', ['shared:layer4', 'saliency:2'])
def test_glimpses_leave_the_meta_device(localization):
    arguments = dict(GLIMPSES, stn_localization=localization)
    model = timm.create_model('stn_test_resnet', **arguments).eval()
    with torch.device('meta'):
        twin = timm.create_model('stn_test_resnet', **arguments).eval()
    assert {t.device.type for t in [*twin.parameters(), *twin.buffers()]} == {'meta'}
    assert twin(torch.zeros(2, 3, 128, 128, device='meta')).shape == (2, 3)
    twin.to_empty(device='cpu')
    twin.load_state_dict(model.state_dict())
    x = randn(2, 3, 128, 128)
    assert torch.equal(twin(x), model(x))
    assert torch.equal(twin.stn.last_theta, model.stn.last_theta)


@pytest.mark.parametrize('localization', ['shared:2', 'saliency:2'])
def test_a_glance_that_is_a_stream_has_the_size_of_the_streams_at_any_size(localization):
    """So `look` tells what a forward pass saw, also of images of another size than at build."""
    model = timm.create_model(
        'stn_test_resnet', stn_glimpses=2, stn_scale=0.5, stn_transform='translation', stn_whole=True,
        stn_localization=localization, stn_localization_size=160).eval()
    torch.nn.init.normal_(model.stn.localization.regression.weight, std=0.1)
    for side in (160, 96):
        images = torch.rand(2, 3, side, side)
        model(images)
        torch.testing.assert_close(model.look(images)[1], model.stn.last_theta)
