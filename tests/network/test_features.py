"""``features_only=True``: timm's extractors, with transformers."""
import pytest
import timm
import torch
from makers import create, images, move_theta, save_for_hf


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


def test_features_only_of_saved_glimpses_and_of_shared_features(tmp_path):
    save_for_hf(create(stn_glimpses=2, stn_scale=0.5), tmp_path)
    features = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True).eval()(images())
    assert [f.shape[:2] for f in features] == [(2, 2)] * 5
    model = create(features_only=True, out_indices=(1, 3), stn_localization='shared:3')
    assert [f.shape[1] for f in model(images())] == model.feature_info.channels()
