"""The hook: names, tags, and what importing costs."""
import subprocess
import sys
import warnings

import pytest
import timm
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, list_modules, register_model

import timm_stn
from timm_stn.names.registry import unknown
from timm_stn.names.zoo import zoo_names


def plain_names(**kwargs):
    return [n for n in timm.list_models(**kwargs) if not n.startswith('stn_')]


def test_every_architecture_has_a_twin():
    twins = set(timm.list_models('stn_*')) - set(zoo_names())
    assert twins == {'stn_' + n for n in plain_names()}


def test_every_pretrained_tag_has_a_twin():
    twins = set(timm.list_models('stn_*', pretrained=True)) - set(zoo_names())
    assert twins == {'stn_' + n for n in plain_names(pretrained=True)}
    assert timm.is_model_pretrained('stn_resnet50.a1_in1k')
    for name in ('stn_resnet50', 'stn_resnet50.a2_in1k', 'stn_vit_base_patch16_224.augreg_in21k'):
        ours, theirs = get_pretrained_cfg(name), get_pretrained_cfg(name[4:])
        assert (ours.hf_hub_id, ours.url, ours.input_size) == (theirs.hf_hub_id, theirs.url, theirs.input_size)
    tags = [n.split('.')[-1] for n in get_arch_pretrained_cfgs('stn_resnet50')]
    assert tags == [n.split('.')[-1] for n in get_arch_pretrained_cfgs('resnet50')]


def test_wrong_tag_is_refused():
    with pytest.raises(RuntimeError, match='Invalid pretrained tag'):
        timm.create_model('stn_resnet18.no_such_tag')


def test_unknown_names_get_the_nearest():
    assert unknown('stn_resnt50').startswith("unknown model 'stn_resnt50', the nearest are stn_resnet50, ")
    assert unknown('resnt50.a1_in1k').startswith("unknown model 'resnt50.a1_in1k', the nearest are resnet50, ")
    assert unknown('xyzzy') == "unknown model 'xyzzy'; see `timm-stn list`"
    assert unknown('stn_resnet18.a9').startswith(
        "unknown weights 'a9' of stn_resnet18; there are stn_resnet18.a1_in1k, ")
    for known in ('stn_resnet50', 'resnet50.a1_in1k', 'stn_resnet50.a1_in1k', 'stn_mnist_cnn'):
        assert unknown(known) == ''


def test_the_listing_has_modules_of_its_own():
    theirs = subprocess.run(
        [sys.executable, '-c', 'import timm; print(*timm.list_modules())'], capture_output=True, text=True, check=True)
    added = set(list_modules()) - set(theirs.stdout.split())
    assert added == {'mnist', 'signs', 'svhn', 'registry', 'zoo'}


def test_import_adds_less_than_half_a_second():
    code = ('import time, timm, torchvision; t = time.process_time(); import timm_stn; '
            'print(time.process_time() - t)')
    took = [float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
            for _ in range(3)]
    assert min(took) < 0.5, took


def test_a_new_architecture_gets_a_twin_on_demand():
    def my_own_arch(pretrained=False, **kwargs):
        return timm.create_model('test_resnet', **kwargs)
    my_own_arch.__module__ = __name__
    register_model(my_own_arch)
    timm_stn.register_twin('my_own_arch')
    model = timm.create_model('stn_my_own_arch', num_classes=3)
    assert model.num_classes == 3 and list(model.spatial_transformers()) == ['input']
    with pytest.raises(ValueError, match="'no_such_arch'"):
        timm_stn.register_twin('no_such_arch')


def test_importing_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', 'import timm_stn'], check=True)
