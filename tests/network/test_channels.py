"""`stn_join='channels'`: the backbone sees all glimpses as the channels of one image, as in the addition of digits."""
import json
import logging

import pytest
import timm
import torch
from makers import create, images, move_theta, save_for_hf

import timm_stn

GLIMPSES = dict(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_localization='conv', stn_join='channels')


def by_hand(model, x):
    """The glimpses, and the whole image before them, side by side."""
    seen, _ = model.look(x)
    parts = list(seen.unbind(1)) if seen.ndim == 5 else [seen]
    if model.arguments.whole:
        size = model.arguments.size or x.shape[-1]
        parts.insert(0, torch.nn.functional.interpolate(x, (size, size), mode='bilinear', antialias=True))
    return torch.cat(parts, 1)


@pytest.mark.parametrize('more', [
    dict(), dict(stn_whole=True), dict(stn_whole=True, stn_glimpses=1), dict(stn_whole=True, stn_size=None),
    dict(in_chans=2, num_classes=5), dict(stn_localization='moments', stn_iterations=2)])
def test_the_backbone_sees_the_glimpses_as_channels(more):
    model = move_theta(create(**{**GLIMPSES, **more}))
    chans, count = more.get('in_chans', 3), model.glimpses + model.arguments.whole
    plain = create('test_resnet', in_chans=count * chans, num_classes=model.num_classes)
    plain.load_state_dict(model.backbone.state_dict())
    x = images(chans=chans)
    seen = by_hand(model, x)
    assert seen.shape[:2] == (2, count * chans) and model.in_chans == chans and model.streams == 1
    out = model(x)
    assert torch.equal(out, plain(seen)) and torch.equal(model.forward_head(model.forward_features(x)), out)
    assert torch.equal(model.forward_features(x), plain.forward_features(seen)), 'no dimension of streams'
    assert torch.equal(model.forward_intermediates(x, intermediates_only=True)[1],
                       plain.forward_intermediates(seen, intermediates_only=True)[1])
    assert not torch.equal(out, plain(seen.roll(chans, 1))), 'their order counts'


def test_one_glimpse_is_one_image():
    assert create(stn_join='channels').backbone.conv1[0].in_channels == 3


def test_a_transformer_at_a_stage_warps_the_features_of_all():
    model = move_theta(create(stn_stages=('input', 2), **GLIMPSES))
    features = model.backbone.forward_features(by_hand(model, images()))
    assert torch.equal(model.forward_features(images()), features)
    assert model.spatial_transformers()[2].last_theta.shape == (2, 2, 3), 'one look for each input'


@pytest.mark.parametrize('more', [dict(), dict(stn_stages=('input', 2))])
def test_features(more):
    model = move_theta(create(features_only=True, out_indices=(1, 3), **GLIMPSES, **more))
    outputs = model(images())
    plain = create('test_resnet', in_chans=6, features_only=True, out_indices=(1, 3))
    expected = plain(torch.zeros(2, 6, 32, 32))
    assert [o.shape for o in outputs] == [e.shape for e in expected]
    assert model.feature_info.channels() == plain.feature_info.channels()


def test_a_new_classifier():
    model = create(**GLIMPSES)
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7) and model.head_hidden_size == model.get_classifier().in_features
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)


@pytest.mark.parametrize('more', [dict(), dict(stn_whole=True), dict(in_chans=2), dict(stn_stages=('input', 2))])
def test_round_trip(tmp_path, more):
    model = move_theta(create(seed=3, **GLIMPSES, **more))
    save_for_hf(model, tmp_path, safe_serialization=True)
    saved = json.loads((tmp_path / 'config.json').read_text())
    assert saved['model_args']['in_chans'] == saved['pretrained_cfg']['input_size'][0] == more.get('in_chans', 3)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(chans=more.get('in_chans', 3))
    assert torch.equal(again(x), model(x)) and again.arguments.json == model.arguments.json
    assert again.in_chans == again._model_args['in_chans'] == model.in_chans
    first = again.pretrained_cfg['first_conv'][0]
    assert first == 'backbone.conv1.0' and again.get_submodule(first).in_channels % model.in_chans == 0


def test_weights_of_the_whole_network_from_a_file(tmp_path, caplog):
    model = move_theta(create(seed=3, **GLIMPSES))
    torch.save(model.state_dict(), tmp_path / 'whole.pth')
    with caplog.at_level(logging.WARNING):
        again = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'whole.pth')), **GLIMPSES)
    assert torch.equal(again(images()), model(images())) and not caplog.records


def test_a_plain_checkpoint_is_adapted_as_timm_adapts_a_stem(tmp_path):
    """So that the network begins with what the plain one answers to the mean of the glimpses."""
    plain = create('test_resnet', seed=3)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    given = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')))
    model = create(**GLIMPSES, **given)
    torch.testing.assert_close(model.backbone.conv1[0].weight, plain.conv1[0].weight.repeat(1, 2, 1, 1) / 2)
    seen, _ = model.look(images())
    torch.testing.assert_close(model(images()), plain(seen.mean(1)), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
def test_programs():
    model, x = move_theta(create(stn_whole=True, **GLIMPSES)), images()
    expected = model(x)
    for other in (torch.jit.trace(model, x), torch.export.export(model, (x,)).module()):
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"cannot compile several images side by side .*; use torch.jit.trace"):
        torch.jit.script(model)


def test_wrap():
    plain = create('test_resnet', in_chans=6)
    model = timm_stn.wrap(plain, glimpses=2, join='channels')
    x = images()
    assert model.in_chans == 3 and model.stn.last_theta is None
    assert torch.equal(model(x), plain(model.look(x)[0].flatten(1, 2)))
    with pytest.raises(ValueError, match=r"join='channels': a model with in_chans=3 cannot see 2 images at once"):
        timm_stn.wrap(create('test_resnet'), glimpses=2, join='channels')
    assert timm_stn.wrap(create('test_resnet'), join='channels')(x).shape == (2, 1000)


@pytest.mark.parametrize('given, words', [
    (dict(stn_glimpses=2, stn_towers='separate'), "stn_join='channels' needs stn_towers='shared'.* got 'separate'"),
    (dict(stn_glimpses=2, stn_localization='shared:2'), "'shared:2' asks it: use stn_localization='conv'"),
    (dict(stn_glimpses=2, stn_scale=0.5, stn_localization='saliency:2'), "stn_localization='saliency:2' asks it"),
    (dict(stn_glimpses=2, stn_scale=0.5), "stn_localization='auto' asks it"),
    (dict(stn_whole=True, stn_localization='orbit:4'), "stn_localization='orbit:4' asks it"),
    (dict(stn_whole=True, stn_stages=(2,), stn_target='input'), "cannot see the image .* stn_target='input' asks it"),
    (dict(stn_stages=(2,)), "stn_join='channels' needs 'input' in stn_stages"),
])
def test_what_it_does_not_go_with(given, words):
    with pytest.raises(ValueError, match=words):
        create(stn_join='channels', **given)


def test_stems_are_adapted_glimpse_by_glimpse(tmp_path):
    """Grey images, of which each glimpse had two channels: timm adds the weights of both, here of each glimpse."""
    kwargs = dict(GLIMPSES, in_chans=2, num_classes=5)
    model = move_theta(create(**kwargs))
    save_for_hf(model, tmp_path)
    grey = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=1).eval()
    weight = model.backbone.conv1[0].weight
    expected = torch.cat([weight[:, :2].sum(1, keepdim=True), weight[:, 2:].sum(1, keepdim=True)], 1)
    torch.testing.assert_close(grey.backbone.conv1[0].weight, expected)


def test_streams_to_drop_are_none():
    with pytest.raises(ValueError, match='stn_stream_drop=0.1 needs several streams, and .* makes one'):
        create(**GLIMPSES, stn_stream_drop=0.1)
