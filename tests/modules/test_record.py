"""What a transformer was made with, in its state dict: compared at loading, and spoilt by nothing that people do."""
import argparse
import copy
import os
import subprocess
import sys
import warnings

import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import create, images, move_theta, save_for_hf, transformer
from safetensors.torch import load_file, save_file
from timm.models import load_checkpoint
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch.optim.swa_utils import AveragedModel

import timm_stn
from timm_stn.modules.record import LETTERS, RECORD, read_record, record, settings_of, without_records

CHECKOUT = os.environ.get('TIMM_SCRIPTS')
ZEROS = dict(stn_scale=0.5, stn_padding_mode='zeros', stn_localization='conv')
OTHER = dict(stn_scale=0.5, stn_padding_mode='border', stn_localization='conv')
WORDS = (r"the weights stn\.\* are of a transformer with padding_mode='zeros'; here it has padding_mode='border'\. "
         r".*pass stn_padding_mode='zeros'\.")


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return call()


# the text as numbers

VALUES = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=9) | st.lists(st.integers(-9, 9))
TEXTS = st.dictionaries(st.text(max_size=9), VALUES, max_size=6)


@settings(max_examples=100, deadline=None)
@given(found=TEXTS, dtype=st.sampled_from([
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
    torch.uint8, torch.int64]))
def test_any_text_in_any_type(found, dtype):
    digits = record(found)
    assert digits.shape == record({}).shape and digits.dtype == torch.float32
    assert read_record(digits.to(dtype)) == {k: v for k, v in found.items() if k in read_record(digits)}
    assert len(str(found)) > LETTERS / 6 or read_record(digits) == found


def test_what_is_too_long_is_left_out():
    found = dict(transform='tps', fill=[0.123456789] * 200, scale=0.5)
    assert read_record(record(found)) == dict(transform='tps', scale=0.5)


@pytest.mark.parametrize('value', [
    None, 3, torch.zeros(3), record({}) + 1, record({}) * 0, record({}) * float('nan'), -record({}), record({})[:-1],
    torch.linspace(0, 7, 3 * LETTERS), record({}).to('meta'), record({})[None] * 9])
def test_what_is_no_record_says_nothing(value):
    assert read_record(value) == {}
    net = create()
    if isinstance(value, torch.Tensor):
        quietly(lambda: net.load_state_dict({**net.state_dict(), f'stn.{RECORD}': value}))
        assert read_record(net.stn.made_with) == settings_of(net.stn)


# what is compared

DIFFERENT = [  # of parameters of the same shapes
    (dict(stn_scale=0.5), dict(stn_scale=0.7), 'scale=0.5', 'scale=0.7'),
    (dict(stn_mode='bicubic'), dict(), "mode='bicubic'", "mode='bilinear'"),
    (dict(stn_iterations=2), dict(), 'iterations=2', 'iterations=1'),
    (dict(stn_antialias=True), dict(), 'antialias=True', 'antialias=False'),
    (dict(stn_bound=True), dict(), 'bound=True', 'bound=False'),
    (dict(stn_transform='similarity'), dict(stn_transform='scale_translation'), "transform='similarity'",
     "transform='scale_translation'"),
    (dict(stn_transform='attention', stn_glimpses=2), dict(), "transform='attention'.*glimpses=2", "transform='affine"),
    (dict(stn_padding_mode='fill', stn_fill=(0.5, 1, 2)), dict(stn_padding_mode='fill', stn_fill=0.5),
     r'fill=\[0\.5, 1, 2\]', 'fill=0.5'),
    (dict(stn_localization='shared:2'), dict(stn_localization='shared:-3'), '', ''),
    (dict(stn_localization='shared:2', stn_scale=0.5), dict(stn_localization='saliency:2', stn_scale=0.5),
     "localization='shared:2'", "localization='saliency:2'"),
    (dict(stn_localization='saliency:2', stn_scale=[0.25, 0.5]), dict(stn_localization='saliency:2', stn_scale=0.25),
     r'scale=\[0\.25, 0\.5\]', 'scale=0.25'),
    (dict(stn_whole=True), dict(), 'whole=True', 'whole=False'),
    (dict(stn_lr_scale=0.5, stn_penalty=1.0, stn_freeze_steps=3), dict(stn_size=48), '', ''),
]


@pytest.mark.parametrize(('theirs', 'ours', 'words', 'here'), DIFFERENT, ids=lambda v: str(v)[:40])
def test_settings_that_change_the_meaning_are_told(theirs, ours, words, here):
    conv = dict(stn_localization='conv', img_size=64)
    state_dict, net = create(**{**conv, **theirs}).state_dict(), create(**{**conv, **ours})
    if not words:
        quietly(lambda: net.load_state_dict(state_dict))
        return
    with pytest.warns(UserWarning, match=f'(?s)with {words}.*here it has {here}.*pass stn_') as caught:
        net.load_state_dict(state_dict)
    assert len(caught) == 1
    passed = str(caught[0].message).rpartition('pass ')[2].rstrip('.')
    given = eval(f'dict({passed})')  # what it says makes the network that it is of
    quietly(lambda: create(**{**conv, **ours, **given}).load_state_dict(state_dict))


def test_stages_are_named_and_modules_alone_too():
    state_dict = create(stn_stages=('input', 1)).state_dict()
    with pytest.warns(UserWarning, match=r"backbone\.layer1\.stn\.\*.*pass mode='bilinear' for stage 1 in stn_stages"):
        create(stn_stages={'input': {}, 1: dict(mode='bicubic')}).load_state_dict(state_dict)
    with pytest.warns(UserWarning, match=r"the weights \* are of a transformer with .*pass padding_mode='zeros'\."):
        transformer().load_state_dict(transformer(padding_mode='zeros').state_dict())
    alone = transformer('affine', (64, 64), 3, 'conv', scale=0.5, padding_mode='zeros')
    with pytest.warns(UserWarning, match=r"stn_padding_mode='zeros'"):
        create(img_size=64, **OTHER).stn.load_state_dict(alone.state_dict())


def test_a_localization_network_of_ones_own_is_not_compared():
    nets = [create(**OTHER), create(**OTHER)]
    for net in nets:
        net.stn.localization = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(6))
        net(images())
    quietly(lambda: nets[0].load_state_dict(nets[1].state_dict()))
    nets[1].stn.localization = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 6))
    with pytest.raises(RuntimeError, match='size mismatch for stn.localization.1.weight'):
        nets[0].load_state_dict(nets[1].state_dict())


# whom it must not disturb

def test_checkpoints_without_it_load_strictly_and_silently(tmp_path):
    net = create(**ZEROS)
    old = without_records(net.state_dict())
    assert len(old) == len(net.state_dict()) - 1
    assert not any(quietly(lambda: net.load_state_dict(old)))
    assert not any(quietly(lambda: net.load_state_dict(net.backbone.state_dict())))
    torch.save(old, tmp_path / 'old.pth')
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'old.pth')))
    assert read_record(quietly(lambda: create(**ZEROS, **source)).stn.made_with)['padding_mode'] == 'zeros'
    with torch.device('meta'):
        absent = create(**ZEROS)
    quietly(lambda: absent.load_state_dict(old, assign=True))
    assert torch.equal(absent.stn.made_with, net.stn.made_with)


@pytest.mark.parametrize('name', ['stn_mnist_cnn_rts', 'stn_mnist_cnn_tc'])
def test_trained_networks_load_silently(name):
    quietly(lambda: timm.create_model(name, pretrained=True))


@pytest.mark.parametrize('change', [
    torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, copy.deepcopy,
    lambda net: net.to_empty(device='cpu').init_weights() or net], ids=['half', 'bfloat16', 'double', 'copy', 'anew'])
def test_it_survives_what_is_done_to_a_network(change):
    net = create(**ZEROS)
    expected = settings_of(net.stn)
    net = change(net)
    assert read_record(net.stn.made_with) == expected == settings_of(net.stn)


# the ways of checkpoints: all of them tell

def saved(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    return torch.load(tmp_path / 'net.pth', weights_only=True)


def by_safetensors(net, tmp_path):
    save_file(net.state_dict(), tmp_path / 'net.safetensors')
    return load_file(tmp_path / 'net.safetensors')


def averaged(make, times=30):
    def average(net, tmp_path):
        mean, other = make(net), copy.deepcopy(net)
        for i in range(times):
            move_theta(other, seed=i)
            mean.update_parameters(other) if isinstance(mean, AveragedModel) else mean.update(other)
        return (mean.ema if isinstance(mean, ModelEma) else mean.module).state_dict()
    return average


WAYS = {
    'torch.save': saved,
    'safetensors': by_safetensors,
    'ModelEma': averaged(lambda net: ModelEma(net, decay=0.9998)),
    'ModelEmaV2': averaged(lambda net: ModelEmaV2(net, decay=0.9998)),
    'ModelEmaV3': averaged(lambda net: ModelEmaV3(net, decay=0.9998)),
    'ModelEmaV3 in bfloat16': averaged(lambda net: ModelEmaV3(net.bfloat16(), decay=0.9), 300),
    'AveragedModel': averaged(lambda net: AveragedModel(net, use_buffers=True)),
    'half': lambda net, tmp_path: net.half().state_dict(),
    'all half': lambda net, tmp_path: {k: v.half() for k, v in net.state_dict().items()},
}


@pytest.mark.parametrize('way', WAYS)
def test_ways_of_a_state_dict(way, tmp_path):
    state_dict = WAYS[way](create(**ZEROS), tmp_path)
    with pytest.warns(UserWarning, match=WORDS):
        create(**OTHER).load_state_dict(state_dict)
    quietly(lambda: create(**ZEROS).load_state_dict(state_dict))


def test_ways_of_timm(tmp_path):
    net = move_theta(create(**ZEROS))
    for prefix in ('module.', '_orig_mod.', 'module._orig_mod.'):
        state_dict = {prefix + k: v for k, v in net.state_dict().items()}
        held = dict(state_dict=state_dict, state_dict_ema=state_dict, arch='x', args=argparse.Namespace(), epoch=1)
        torch.save(held, tmp_path / 'last.pth.tar')
        for load in (lambda other: load_checkpoint(other, str(tmp_path / 'last.pth.tar')),
                     lambda other: timm.models.resume_checkpoint(other, str(tmp_path / 'last.pth.tar'))):
            with pytest.warns(UserWarning, match=WORDS):
                load(create(**OTHER))
            other = create(**ZEROS)
            quietly(lambda load=load, other=other: load(other))
            assert torch.equal(other(images()), net(images()))
    with pytest.warns(UserWarning, match=WORDS):
        timm.create_model('stn_test_resnet', **OTHER, checkpoint_path=str(tmp_path / 'last.pth.tar'))
    save_for_hf(net, tmp_path / 'hub')
    quietly(lambda: timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True))
    with pytest.warns(UserWarning, match=WORDS):
        timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True, stn_padding_mode='border')


@pytest.mark.skipif(not CHECKOUT, reason='TIMM_SCRIPTS names a checkout of timm')
def test_averages_by_timms_script(tmp_path):
    for seed in range(3):
        torch.save(dict(state_dict=create(seed=seed, **ZEROS).state_dict(), metric=1.0), tmp_path / f'{seed}.pth.tar')
    subprocess.run([
        sys.executable, f'{CHECKOUT}/avg_checkpoints.py', '--input', str(tmp_path), '--filter', '*.pth.tar',
        '--output', str(tmp_path / 'mean.pth')], check=True, capture_output=True)
    with pytest.warns(UserWarning, match=WORDS):
        create(**OTHER).load_state_dict(torch.load(tmp_path / 'mean.pth', weights_only=True))


def test_checkpoints_of_torch_distributed(tmp_path):
    dcp.save(create(**ZEROS).state_dict(), checkpoint_id=tmp_path)
    net = create(**OTHER)
    state_dict = net.state_dict()
    dcp.load(state_dict, checkpoint_id=tmp_path)  # into the tensors of the network
    with pytest.warns(UserWarning, match=WORDS):
        net.load_state_dict(state_dict)
    assert read_record(net.stn.made_with)['padding_mode'] == 'border'


# other shapes

@pytest.mark.parametrize('other', [
    dict(stn_transform='similarity'), dict(stn_localization='fc'), dict(stn_glimpses=2),
    dict(stn_transform='tps', stn_padding_mode='zeros')])
def test_the_error_of_other_shapes_names_the_settings(other, tmp_path):
    net = create()
    texts = [f'{name[4:]}={settings_of(net.stn)[name[4:]]!r}' for name in other]
    words = rf"the weights stn\.\* are of a transformer with {', '.join(texts)}; here .*pass stn_{texts[0]}"
    with pytest.raises(RuntimeError, match=words):
        quietly(lambda: create(**other).load_state_dict(net.state_dict()))
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    with pytest.raises(RuntimeError, match=words):
        create(**other, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'net.pth')))


def test_what_is_missing_is_no_other_shape():
    state_dict = {k: v for k, v in create(**ZEROS).state_dict().items() if 'regression' not in k}
    with pytest.warns(UserWarning, match=WORDS):
        create(**OTHER).load_state_dict(state_dict, strict=False)


# another size of what the localization network sees

@pytest.mark.parametrize('localization', ['conv', 'fc', 'linear'])
def test_networks_for_images_of_other_shapes_say_what_makes_them_fit(localization, tmp_path):
    narrow = create(img_size=(16, 12), stn_localization=localization)
    wide = dict(img_size=(16, 128), stn_localization=localization)
    size = list(narrow.stn.localization.size)
    with pytest.raises(RuntimeError, match=rf'saw {size[0]} x {size[1]} when .*pass stn_localization_size'):
        create(**wide).load_state_dict(narrow.state_dict())
    with pytest.raises(RuntimeError, match=r'If the weights are of a network .*pass what stn.localization.size'):
        create(**wide).load_state_dict(without_records(narrow.state_dict()))
    quietly(lambda: create(**wide, stn_localization_size=size).load_state_dict(narrow.state_dict()))
    torch.save(narrow.state_dict(), tmp_path / 'narrow.pth')
    with pytest.raises(RuntimeError, match=f'localization saw {size[0]} x {size[1]} when'):
        create(**wide, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'narrow.pth')))
    save_for_hf(narrow, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=(16, 128))
    assert list(again.stn.localization.size) == size


def test_a_localization_network_of_ones_own_is_not_asked():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scales, self.size, self.kind = [1, 2, 4], torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()
            self.regress = torch.nn.Linear(3 * 8 * 8, 6)

        def forward(self, x):
            return self.regress(x.flatten(1))

    stn = timm_stn.SpatialTransformer(3, (8, 8), localization=Own())
    assert stn(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8) and read_record(stn.made_with)['transform'] == 'affine'
    stn.load_state_dict(stn.state_dict())


def test_a_localization_network_without_shapes_so_far_loads():
    def make():
        body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(6))
        return timm_stn.SpatialTransformer(3, (8, 8), localization=body)

    whole, net = make(), make()
    whole(torch.rand(2, 3, 8, 8))
    net.load_state_dict(whole.state_dict())
    assert torch.equal(net.localization[1].weight, whole.localization[1].weight)


class Table(torch.nn.Module):
    """A localization network that takes a table of another length."""

    def __init__(self, length):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(length))

    def forward(self, x):
        return x.new_zeros(len(x), 6) + self.table.sum()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[prefix + 'table'] = torch.nn.functional.pad(state_dict[prefix + 'table'], (0, 2))
        super()._load_from_state_dict(state_dict, prefix, *args)


def of_ones_own(localization, **settings):
    return timm_stn.SpatialTransformer(3, (8, 8), localization=localization, **settings)


def test_a_localization_network_that_makes_weights_fit_is_warned_of_settings_only():
    net = of_ones_own(Table(12))
    with pytest.warns(UserWarning, match="padding_mode='zeros'; here it has padding_mode='border'"):
        net.load_state_dict(of_ones_own(Table(10), padding_mode='zeros').state_dict())
    assert net.doubts is None


def test_errors_of_torch_are_its_own():
    def make(channels):
        return of_ones_own(torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 3), torch.nn.Flatten(), torch.nn.LazyLinear(6)))

    whole = make(4)
    whole(torch.rand(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match=r'size mismatch for localization.0.weight'):
        make(8).load_state_dict(whole.state_dict())
    state_dict = {**whole.state_dict(), 'localization.0.bias': [0.0] * 4}
    with pytest.raises(RuntimeError, match="received <class 'list'>"):
        make(4).load_state_dict(state_dict)


@pytest.mark.parametrize('fill', [((0.1,), (0.2,), (0.3,)), float('nan')])
def test_the_same_fill_is_no_other_one(fill):
    net = of_ones_own(Table(3), padding_mode='fill', fill=fill)
    state_dict = {k: v for k, v in net.state_dict().items() if 'table' not in k}
    quietly(lambda: of_ones_own(torch.nn.Flatten(), padding_mode='fill', fill=fill).load_state_dict(state_dict))
