"""Glimpses and the whole image as streams: one backbone or several, and a classifier that joins them."""
import pytest
import timm
import torch
from makers import create, images, move_theta, save_for_hf
from torch import nn

import timm_stn
from timm_stn.network import streams
from timm_stn.network.streams import _stream_weights


def test_joined_classifier_starts_as_the_mean_of_the_glimpses(tmp_path):
    plain = create('test_resnet')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')))
    for more in (dict(), dict(stn_towers='separate'), dict(stn_join='concat')):
        model = create(stn_glimpses=2, stn_scale=0.5, stn_transform='translation', **more, **kwargs)
        seen, theta = model.look(images())
        assert seen.shape == (2, 2, 3, 64, 64) and theta.shape == (2, 2, 2, 3)
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
    save_for_hf(model, tmp_path)
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


@pytest.mark.parametrize('name,channels', [
    ('stn_test_resnet', 1), ('stn_test_vit', 2), ('stn_swin_tiny_patch4_window7_224', 3)])
def test_unpooled_features_side_by_side(name, channels):
    size = 224 if 'swin' in name else 160
    kwargs = dict(num_classes=0, global_pool='', stn_whole=True, stn_localization='conv')
    out = create(name, stn_join='concat', **kwargs)(images(size=size))
    mean = create(name, **kwargs)(images(size=size))
    assert out.shape[channels] == 2 * mean.shape[channels]
    torch.testing.assert_close(torch.stack(out.chunk(2, channels)).mean(0), mean, rtol=1e-4, atol=1e-4)


def test_the_whole_image_is_a_stream_before_the_glimpses():
    model = move_theta(create(stn_glimpses=2, stn_scale=0.5, stn_size=32, stn_whole=True, stn_transform='translation'))
    x = images()
    seen, _ = model.look(x)
    small = nn.functional.interpolate(x, (32, 32), mode='bilinear', antialias=True)
    expected = torch.stack([model.backbone.forward_features(i) for i in (small, seen[:, 0], seen[:, 1])], 1)
    torch.testing.assert_close(model.forward_features(x), expected)


def test_a_plain_checkpoint_joins_its_classifier_whichever_way_it_is_loaded(tmp_path):
    plain = create('test_resnet')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    kwargs = dict(stn_glimpses=2, stn_scale=0.5)
    early = create(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')), **kwargs)
    late = create(checkpoint_path=str(tmp_path / 'plain.pth'), **kwargs)
    torch.testing.assert_close(late(images()), early(images()))
    other = create(num_classes=3, stn_join='concat', **kwargs)
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
    kwargs = dict(stn_glimpses=2, stn_scale=0.5, stn_join='concat')
    state_dict = create(**kwargs).state_dict()
    change(state_dict)
    torch.save(state_dict, tmp_path / 'whole.pth')
    with pytest.raises(RuntimeError, match='does not fit'):
        create(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'whole.pth')), **kwargs)


def test_a_checkpoint_of_shared_towers_does_not_fit_separate_ones(tmp_path):
    save_for_hf(create(stn_glimpses=2, stn_scale=0.5), tmp_path)
    with pytest.raises(RuntimeError, match=r"does not fit.*Missing: .*'towers.1"):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, stn_towers='separate')


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


JOINS = [dict(), dict(stn_join='concat'), dict(stn_towers='separate'), dict(stn_whole=True, stn_join='concat'),
         dict(stn_join='channels')]


@pytest.mark.parametrize('more', JOINS)
@pytest.mark.parametrize(
    'name,head', [('test_resnet', 'fc'), ('test_efficientnet', 'classifier'), ('test_vit', 'head')])
def test_the_classifier_is_read_and_replaced_under_its_own_name(name, head, more):
    model = create('stn_' + name, stn_glimpses=2, stn_scale=0.5, stn_localization='conv', **more)
    x = images(size=model.pretrained_cfg['input_size'][-1])
    assert getattr(model, head) is model.get_classifier() is model.get_submodule(head)
    for way in (setattr, type(model).add_module, nn.Module.set_submodule):
        new = nn.Linear(getattr(model, head).in_features, 5)
        way(model, head, new)
        assert model.get_classifier() is new and model(x).shape == (2, 5)
    model.reset_classifier(3)
    assert getattr(model, head).out_features == 3 and model(x).shape == (2, 3)
    model.eval().load_state_dict(model.state_dict())


@pytest.mark.parametrize('more', JOINS)
def test_a_nested_classifier_is_replaced_or_the_error_says_where_it_is(more):
    model = create('stn_test_convnext', stn_glimpses=2, stn_scale=0.5, stn_localization='conv', **more)
    x = images(size=160)
    if not model.joined:
        model.head.fc = nn.Linear(model.head.fc.in_features, 5)
        assert model(x).shape == (2, 5)
        return
    with pytest.raises(AttributeError, match='in_features here: the classifier over all streams is net.classifier'):
        print(model.head.fc.in_features)
    assert not hasattr(model.head.fc, 'weight')
    model.head.fc = nn.Linear(model.num_features, 5)
    with pytest.raises(ValueError, match=r'head.fc: .* one classifier over all streams, net.classifier: replace that'):
        model(x)
    model.reset_classifier(5, global_pool='max')
    assert model(x).shape == (2, 5)


def test_averaged_logits_are_those_of_averaged_features():
    model = move_theta(create(stn_glimpses=2, stn_scale=0.5))
    features = model.forward_features(images())
    expected = model.fc(model.forward_head(features, pre_logits=True))
    torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('more', JOINS)
def test_a_backbone_that_removes_what_holds_its_classifier(more):
    model = create('stn_efficientvit_m0', num_classes=7, stn_localization='conv', **{**dict(stn_whole=True), **more})
    x = images(size=224)
    assert model(x).shape == (2, 7)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext'])
def test_an_older_checkpoint_with_the_classifier_behind_the_mean_loads(name, tmp_path):
    kwargs = dict(stn_glimpses=2, stn_scale=0.5, stn_localization='conv', num_classes=5)
    model = move_theta(create('stn_' + name, **kwargs))
    x = images(size=160)
    own = 'backbone.' + {'test_resnet': 'fc', 'test_convnext': 'head.fc'}[name] + '.'
    older = {k.replace(own, 'classifier.'): v for k, v in model.state_dict().items()}
    assert 'classifier.weight' in older and own + 'weight' not in older
    later = create('stn_' + name, **kwargs)
    later.load_state_dict(older)
    assert torch.equal(later(x), model(x))
    torch.save(older, tmp_path / 'older.pth')
    given = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'older.pth'), num_classes=5))
    assert torch.equal(create('stn_' + name, **kwargs, **given)(x), model(x))


# streams that each can answer

DROPPED = dict(
    stn_glimpses=2, stn_whole=True, stn_scale=0.5, stn_size=64, img_size=128, stn_transform='translation',
    num_classes=3)


def answers_of_streams(model, x):
    """What each stream answers by itself, (N, S, classes), in evaluation."""
    with torch.no_grad():
        return model.backbone(model._see(x).flatten(0, 1)).unflatten(0, (len(x), -1))


@pytest.mark.parametrize('drop', [0.0, 0.4, 1.0])
def test_in_training_one_stream_alone_answers_some_images(drop):
    torch.manual_seed(0)
    model, x = create(stn_stream_drop=drop, **DROPPED), images(40, 128)
    alone = answers_of_streams(model, x)
    assert torch.allclose(model(x), alone.mean(1), atol=1e-5), 'in evaluation all streams answer'
    model.train()
    model.backbone.eval()  # the same features
    out = model(x)
    is_alone = (out[:, None] - alone).abs().amax(2) < 1e-4  # (N, S)
    is_mean = (out - alone.mean(1)).abs().amax(1) < 1e-4
    assert (is_alone.any(1) | is_mean).all()
    share = is_alone.any(1).double().mean()
    assert abs(share - drop) <= (0.2 if 0 < drop < 1 else 0)
    assert not drop or (is_alone.sum(0) >= 3).all(), 'each stream answers some'


@pytest.mark.parametrize('more', [dict(stn_join='concat'), dict(stn_towers='separate')])
def test_a_joined_classifier_hears_one_stream_alone(more):
    torch.manual_seed(0)
    model = create(stn_stream_drop=1.0, **{**DROPPED, **more})
    x = images(20, 128)
    plain = create(**{**DROPPED, **more})
    plain.load_state_dict(model.state_dict())
    features = plain.forward_head(plain.forward_features(x), pre_logits=True).detach()
    model.train()
    for backbone in model.backbones():
        backbone.eval()
    heard = model.forward_head(model.forward_features(x), pre_logits=True).detach()
    if 'stn_join' in more:  # side by side: one part of three, three times
        parts, whole = heard.unflatten(1, (3, -1)), features.unflatten(1, (3, -1))
        silent = parts.abs().amax(2) == 0
        assert (silent.sum(1) == 2).all()
        torch.testing.assert_close(parts[~silent], 3 * whole[~silent], rtol=1e-4, atol=1e-5)
    else:
        each = plain.each_stream(lambda b, f: b.forward_head(f, pre_logits=True), plain.forward_features(x)).detach()
        assert ((heard[:, None] - each).abs().amax(2) < 1e-4).any(1).all()
    model(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_mean_over_draws_of_dropped_features_is_what_all_streams_give():
    x = torch.randn(1, 3, 5, dtype=torch.float64).expand(20000, 3, 5)
    torch.manual_seed(0)
    weights = _stream_weights(x, 0.7)
    torch.testing.assert_close(weights.mean(0), torch.ones(3), atol=0.03, rtol=0)
    alone = (weights != 1).any(1)
    assert abs(float(alone.double().mean()) - 0.7) < 0.02
    assert torch.equal(weights[alone].sort(1).values, torch.tensor([0.0, 0.0, 3.0]).expand(int(alone.sum()), 3))


def test_gradients_of_dropped_streams_accumulate(monkeypatch):
    model, x = create(stn_stream_drop=0.5, **DROPPED), images(8, 128)
    model.train()
    model.backbone.eval()
    drawn = _stream_weights(torch.zeros(8, 3, 1), 0.5)
    grads = []
    for parts in (1, 4):
        weights = iter(drawn.split(8 // parts))
        monkeypatch.setattr(streams, '_stream_weights', lambda out, drop, w=weights: next(w))  # the same for both
        model.zero_grad()
        for part in x.split(8 // parts):
            (model(part).square().sum() / 8).backward()
        grads.append(model.backbone.fc.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_features_of_an_extractor_are_not_dropped():
    model = create(features_only=True, stn_stream_drop=1.0, **{k: v for k, v in DROPPED.items() if k != 'num_classes'})
    model.train()
    assert all(out.abs().amax((2, 3, 4)).min() > 0 for out in model(images(4, 128)))


@pytest.mark.parametrize('given, words', [
    (dict(stn_stream_drop=0.5), 'stn_stream_drop=0.5 needs several streams: stn_glimpses above 1, or stn_whole=True'),
    (dict(stn_stream_drop=0.5, stn_glimpses=2, stn_join='channels'), 'stn_stream_drop=0.5 needs several streams'),
    (dict(stn_stream_drop=1.5, stn_whole=True), 'stn_stream_drop must be a number from 0 to 1, got 1.5'),
    (dict(stn_stream_drop=0.5, stn_stages=(1,)), "stn_stream_drop=0.5 needs 'input' in stn_stages")])
def test_wrong_shares_of_streams(given, words):
    with pytest.raises(ValueError, match=words):
        create(**given)
