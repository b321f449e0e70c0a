"""Which networks `timm-stn show` shows, and how plain ones look."""
import argparse

import pytest
import timm
import torch

from timm_stn.cli.common import Refused
from timm_stn.cli.several import _names, load_viewed, several_arguments, without_images
from timm_stn.modules.orbit import Orbit
from timm_stn.modules.saliency import Saliency


def loaded(*argv):
    parser = argparse.ArgumentParser()
    several_arguments(parser.add_argument)
    args = parser.parse_args(list(map(str, argv)))
    args.stage, args.labels = None, None
    return load_viewed(args, [], [])


def test_images_may_stand_behind_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('resnet18', 'a.png'):
        (tmp_path / name).touch()
    assert without_images(['a.png', 'resnet18', 'a.png', 'b.png', 'hf-hub:a/b']) == (
        ['a.png', 'resnet18', 'b.png', 'hf-hub:a/b'], ['a.png'])
    assert without_images([]) == ([], [])


@pytest.mark.parametrize(('name', 'way', 'kind', 'told'), [
    ('test_resnet', None, Saliency, 'saliency:'), ('test_resnet', 'orbit', Orbit, 'orbit:8'),
    ('test_resnet', 'orbit:4', Orbit, 'orbit:4'), ('test_resnet', 'saliency:1', Saliency, 'saliency:1'),
    ('test_vit', None, Saliency, 'saliency:')])
def test_a_plain_model_looks_as_nothing_was_trained_to(name, way, kind, told):
    viewed, = loaded('--model', name, '--no-pretrained', *(['--as', way] if way else []))
    assert isinstance(viewed.model.stn.localization, kind) and viewed.way.startswith(told) and viewed.name == name
    assert not viewed.model.training


def test_a_plain_model_whose_maps_are_small_turns():
    argv = ['--model', 'test_vit', '--no-pretrained', '--model-kwargs', 'img_size=96']  # 6 x 6 patches
    viewed, = loaded(*argv)
    assert isinstance(viewed.model.stn.localization, Orbit) and viewed.way == 'orbit:8'
    with pytest.raises(Refused, match='argument --as: test_vit has no stage with a map of 7 x 7 or more; accepted is'):
        loaded(*argv, '--as', 'saliency')


@pytest.mark.parametrize('way', ['upside', 'saliency:9', 'orbit:x', 'orbit:0'])
def test_ways_that_are_none_are_refused(way):
    with pytest.raises(Refused, match=f'argument --as.*{way}'):
        loaded('--model', 'test_resnet', '--no-pretrained', '--as', way)


def test_checkpoints_are_of_the_models_in_turn_or_all_of_one(tmp_path):
    files = [tmp_path / 'run1' / 'last.pt', tmp_path / 'run2' / 'last.pt']
    weights = []
    for file in files:
        file.parent.mkdir()
        model = timm.create_model('stn_test_resnet', num_classes=3)
        weights.append(model.get_classifier().weight)
        torch.save({'state_dict': model.state_dict()}, file)
    both = [part for file in files for part in ('--checkpoint', file)]
    found = loaded('--model', 'stn_test_resnet', *both, '--model-kwargs', 'num_classes=3')
    assert [v.name for v in found] == ['stn_test_resnet, run1/last.pt', 'stn_test_resnet, run2/last.pt']
    for v, weight in zip(found, weights, strict=True):
        torch.testing.assert_close(v.model.get_classifier().weight, weight)
    with pytest.raises(Refused, match='--checkpoint: it takes one file for each --model, .* 1 files for 2 models'):
        loaded('--model', 'stn_test_resnet', 'test_resnet', *both[:2])


def test_arguments_of_transformers_are_not_for_plain_models_beside_them():
    kwargs = ['--no-pretrained', '--model-kwargs', 'stn_glimpses=2', 'stn_scale=0.5', 'num_classes=3']
    first, second = loaded('--model', 'stn_test_resnet', 'test_resnet', *kwargs)
    assert first.model.glimpses == 2 and second.way.startswith('saliency') and second.model.num_classes == 3
    with pytest.raises(Refused, match='stn_glimpses'):
        loaded('--model', 'test_resnet', *kwargs)


def test_plain_models_of_folders_do_without_them_too(tmp_path):
    timm.models.save_for_hf(timm.create_model('test_resnet'), tmp_path / 'plain', safe_serialization=True)
    first, second = loaded('--model', 'stn_test_resnet', f'local-dir:{tmp_path / "plain"}', '--no-pretrained',
                           '--model-kwargs', 'stn_scale=0.5')
    assert first.model.stn.scale == 0.5 and second.way


def test_checkpoints_of_one_name_are_told_apart(tmp_path):
    each = [argparse.Namespace(model='stn_a', checkpoint=f'{folder}/run/c.pt') for folder in ('x/1', 'x/2', 'y/2')]
    assert _names(each) == ['stn_a, x/1/run/c.pt', 'stn_a, x/2/run/c.pt', 'stn_a, y/2/run/c.pt']
