"""Repositories of strangers: what a config.json or a model.safetensors may not do, and what errors say."""
import argparse
import inspect
import json
import logging
import resource
import shutil
import struct
import time
import traceback

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import save_for_hf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import timm_stn
from timm_stn.cli import common
from timm_stn.names import untrusted, weights
from timm_stn.names.weights import WEIGHTS
from timm_stn.network.arguments import DEFAULTS, stn_arguments

NAME = 'stn_mnist_cnn_rts'
ARGUMENTS = dict(channels=(1, 2), num_classes=2, stn_localization='linear', stn_localization_size=4, stn_freeze_steps=1)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp('original')
    model = timm.create_model(NAME, **ARGUMENTS)
    save_for_hf(model, folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / 'theirs')


@pytest.fixture(scope='module')
def scratch(original, tmp_path_factory):
    """For hypothesis, whose examples write both files anew."""
    return shutil.copytree(original, tmp_path_factory.mktemp('scratch') / 'theirs')


def change(folder, place=None, **values):
    file = folder / 'config.json'
    config = json.loads(file.read_text())
    (config[place] if place else config).update(values)
    file.write_text(json.dumps(config))


def load(folder, **kwargs):
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs)


def test_the_original_loads(folder):
    model = load(folder)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_file(folder / WEIGHTS).items())


# config.json: what a network is asked to be

MODEL_ARGS = [
    (dict(stn_nothing=1), TypeError, "unknown argument 'stn_nothing'"),
    (dict(stn_glimpses=10 ** 9), ValueError, 'stn_glimpses must be at most 64, got 1000000000'),
    (dict(stn_glimpses=0), ValueError, 'stn_glimpses must be a positive integer, got 0'),
    (dict(stn_size=10 ** 9), ValueError, 'stn_size must be at most 8192, got 1000000000'),
    (dict(stn_size=[24, 10 ** 9]), ValueError, 'stn_size must be at most 8192'),
    (dict(stn_size='24'), ValueError, "stn_size must be a positive integer, or two of them.*got '24'"),
    (dict(stn_size=-1), ValueError, 'stn_size must be a positive integer'),
    (dict(stn_iterations=10 ** 9), ValueError, 'stn_iterations must be at most 64'),
    (dict(stn_iterations=1.5), ValueError, 'iterations must be a positive integer, got 1.5'),
    (dict(stn_localization_size=10 ** 9), ValueError, 'stn_localization_size must be at most 1024'),
    (dict(stn_localization_size='x'), ValueError, "localization_size must be 2 positive integers, or one, got 'x'"),
    (dict(stn_scale=1e300), ValueError, 'stn_scale must be at most'),
    (dict(stn_freeze_steps=2 ** 80), ValueError, 'stn_freeze_steps must be at most'),
    (dict(stn_lr_scale=10 ** 12), ValueError, 'lr_scale must be a number from 1e-9 to 1e9'),
    (dict(stn_transform='tps:1000x1000'), ValueError, r"'tps' takes a lattice of at most 32 x 32 .*1000"),
    (dict(stn_transform='affine+' * 100), ValueError, 'stn_transform must have at most 200 characters, got 700'),
    (dict(stn_transform=7), ValueError, 'transform must be a name.*got 7'),
    (dict(stn_transform='__import__("os").system("id")'), ValueError, "unknown transform '__import__"),
    (dict(stn_localization=[]), ValueError, r'localization must be one of .*got \[\]'),
    (dict(stn_localization='timm:hf-hub:someone/else'), ValueError, "timm knows no model 'hf-hub:someone/else'"),
    (dict(stn_localization='timm:../../etc'), ValueError, 'timm knows no model'),
    (dict(stn_localization='fc:hidden=8193'), ValueError, "localization must be one of .*got 'fc:hidden=8193'"),
    (dict(stn_localization='fc:depth=' + '9' * 5000), ValueError, 'must have at most 200 characters|more than'),
    (dict(stn_localization='linear:depth=2'), ValueError, "localization must be one of .*got 'linear:depth=2'"),
    (dict(stn_join='channels', stn_glimpses=2, stn_towers='separate'), ValueError, "needs stn_towers='shared'"),
    (dict(stn_join='channels', stn_whole=True, stn_localization='shared:0'), ValueError, 'cannot see the image'),
    (dict(stn_join='channels', stn_glimpses=10 ** 9), ValueError, 'stn_glimpses must be at most 64'),
    (dict(stn_localization='shared:²'), ValueError, "stn_localization='shared:²': mnist_cnn has no module '²'"),
    (dict(stn_localization='shared:--1'), ValueError, "has no module '--1'"),
    (dict(stn_localization='fc', stn_stages=[['input', {'hidden': 10 ** 12}]]), TypeError, "unknown setting 'hidden'"),
    (dict(hidden=10 ** 12), ValueError, 'model_args.hidden must be from -1048576 to 1048576; got 1000000000000'),
    (dict(stn_stages=[['input', {'iterations': 10 ** 9}]]), ValueError, "stn_stages: iterations of stage 'input' must"),
    (dict(stn_stages=[['input', {'pretrained': True}]]), TypeError, "unknown setting 'pretrained' of stage 'input'"),
    (dict(stn_stages=list(range(200))), ValueError, 'stn_stages takes at most 128 stages, got 200'),
    (dict(stn_stages=['x' * 300]), ValueError, 'the name of a stage must have at most 200 characters'),
    (dict(stn_stages=[[['input']]]), ValueError, 'stn_stages takes'),
    (dict(stn_mode=['nearest']), ValueError, 'mode must be one of'),
    (dict(stn_padding_mode={}), ValueError, 'padding_mode must be one of'),
    (dict(stn_fill='red', stn_padding_mode='fill'), (ValueError, TypeError), 'fill'),
    (dict(stn_towers={}), ValueError, 'stn_towers must be one of'),
    (dict(channels=[10 ** 9, 1]), ValueError, r'model_args.channels.0 must be from -1048576 to 1048576'),
    (dict(channels=[10 ** 6, 10 ** 6]), ValueError, 'more than .* elements, far beyond its weights'),
    (dict(channels=[[[[[[[[1]]]]]]]]), ValueError, 'is nested more than 7 deep'),
    (dict(channels=[1] * 5000), ValueError, 'is value 40.. of 4096 that are accepted'),
    (dict(channels='x' * 5000), ValueError, 'model_args.channels has more than 1000 characters'),
    (dict(channels='ab'), (TypeError, RuntimeError), 'mnist_cnn with arguments channels'),
    ({'stn_' + 'x' * 5000: 1}, ValueError, 'the name of a value in model_args has more than 1000 characters'),
    (dict(stn_stages=[['input', {'x' * 5000: 1}]]), ValueError, 'a value in model_args.stn_stages.0.1 has more'),
    (dict(drop_rate='a'), ValueError, 'drop_rate must be a number from 0 to 1'),
    (dict(drop_rate=float('nan')), ValueError, 'model_args.drop_rate must be finite'),
    (dict(drop_rate=-1), ValueError, 'drop_rate must be a number from 0 to 1, got -1'),
    (dict(no_such_argument=1), TypeError, 'no_such_argument'),
    (dict(name='x'), TypeError, 'name is no argument of a network'),
    (dict(img_size=[10 ** 5, 10 ** 5]), ValueError, 'model_args.img_size must be a side or'),
    (dict(img_size='42'), ValueError, "model_args.img_size must be a side or .*got '42'"),
    (dict(num_classes=-5), ValueError, 'model_args.num_classes must be an integer from 0'),
    (dict(num_classes=True), ValueError, 'model_args.num_classes must be an integer'),
    *(({key: 1}, TypeError, f'{key} is no argument of a network') for key in (
        'checkpoint_path', 'pretrained_strict', 'features_only', 'feature_cls', 'device', 'dtype', 'model_name', 'base',
        'pretrained_model_args', 'pruned', 'scriptable')),
]


@pytest.mark.parametrize('args,error,words', MODEL_ARGS, ids=lambda v: str(v)[:30] if isinstance(v, dict) else '')
def test_model_args(folder, args, error, words):
    if not hasattr(timm.models, 'get_model_args') and 'is no argument' in words and set(args) & set(untrusted.TYPED):
        pytest.skip('this timm does not tell apart what a config and what a user says')
    change(folder, 'model_args', **args)
    with pytest.raises(error, match=words if hasattr(timm.models, 'get_model_args') else None) as raised:
        load(folder)
    assert str(folder) in str(raised.value) and len(str(raised.value)) < 4000


REPEATED = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir')  # that timm gives by name itself


@pytest.mark.parametrize('value', ['/tmp/theirs', None, True, {}])
@pytest.mark.parametrize('key', REPEATED)
def test_model_args_that_repeat_timms_own(folder, key, value, monkeypatch):
    """Python refuses them in timm's own call, before this package is asked: nothing is read, and the commands say of
    which repository it is."""
    monkeypatch.setattr(weights, 'load_file', lambda file: pytest.fail('read'))
    change(folder, 'model_args', **{key: value})
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{key}'"):
        load(folder)
    with pytest.raises(common.Refused, match=f"--model local-dir:{folder}: TypeError: .*'{key}'"):
        common.attempt(f'--model local-dir:{folder}', load, folder)


def test_no_other_argument_of_timms_own_loses_the_name(folder):
    if not hasattr(timm.models, 'get_model_args'):
        pytest.skip('this timm does not tell apart what a config and what a user says')
    own = set(inspect.signature(timm.create_model).parameters) - {'kwargs'}
    assert own >= set(REPEATED)
    for key in sorted((own | set(untrusted.RUNTIME)) - set(REPEATED)):
        config = (folder / 'config.json').read_text()
        change(folder, 'model_args', **{key: 'x'})
        with pytest.raises((TypeError, ValueError), match=f'{folder}.*{key}'):
            load(folder)
        (folder / 'config.json').write_text(config)


CFG = [
    (dict(unknown=1), TypeError, "pretrained_cfg: unknown key 'unknown'. Accepted: architecture"),
    (dict(url='http://127.0.0.1/x.pth'), ValueError, "pretrained_cfg.url must not be set.*got 'http://127.0.0.1/x.pth'"),
    (dict(hf_hub_id='someone/else'), ValueError, 'pretrained_cfg.hf_hub_id must not be set'),
    (dict(hf_hub_filename='../x.bin'), ValueError, 'pretrained_cfg.hf_hub_filename must not be set'),
    (dict(state_dict={'x': 1}), ValueError, 'pretrained_cfg.state_dict must not be set'),
    (dict(input_size=[1, 42]), ValueError, r'pretrained_cfg.input_size must be three integers.*got \[1, 42\]'),
    (dict(input_size=[1, 10 ** 9, 10 ** 9]), ValueError, 'pretrained_cfg.input_size must be three integers'),
    (dict(input_size='abc'), ValueError, 'pretrained_cfg.input_size must be three integers'),
    (dict(custom_load=3), ValueError, 'pretrained_cfg.custom_load must be true or false'),
    (dict(fixed_input_size='yes'), ValueError, 'pretrained_cfg.fixed_input_size must be true or false'),
    (dict(mean=['a']), ValueError, 'pretrained_cfg.mean must be a list of numbers'),
    (dict(std=float('nan')), ValueError, 'pretrained_cfg.std must be a list of numbers'),
    (dict(crop_pct='1'), ValueError, 'pretrained_cfg.crop_pct must be a number'),
    (dict(interpolation=[]), ValueError, 'pretrained_cfg.interpolation must be a string'),
    (dict(classifier={'a': 1}), ValueError, 'pretrained_cfg.classifier must be a string'),
    (dict(first_conv=7), ValueError, 'pretrained_cfg.first_conv must be a string'),
    (dict(label_offset=-1), ValueError, 'pretrained_cfg.label_offset must be an integer'),
    (dict(pool_size='x'), ValueError, 'pretrained_cfg.pool_size must be up to three integers'),
]


@pytest.mark.parametrize('cfg,error,words', CFG, ids=lambda v: str(v)[:30] if isinstance(v, dict) else '')
def test_pretrained_cfg(folder, cfg, error, words):
    change(folder, 'pretrained_cfg', **cfg)
    change(folder, 'model_args', in_chans=None, img_size=None)  # timm puts them into input_size
    with pytest.raises(error, match=words) as raised:
        load(folder)
    assert f'{folder}/config.json' in str(raised.value)


def test_num_classes_beside_it(folder):
    change(folder, num_classes='ten')
    with pytest.raises(ValueError, match=r"config.json: pretrained_cfg.num_classes must be an integer.*'ten'"):
        load(folder)


def test_custom_load_is_not_obeyed(folder, monkeypatch):
    monkeypatch.setattr(timm_stn.nets.MnistNet, 'load_pretrained', lambda *args: pytest.fail('called'), raising=False)
    for value in (True, 'hf'):
        change(folder, 'pretrained_cfg', custom_load=value)
        assert load(folder).pretrained_cfg['custom_load'] is False


def test_no_other_file_is_opened(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(weights, 'load_file', lambda file: seen.append(file) or load_file(file))
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: pytest.fail('unpickled'))
    torch.save({}, folder / 'pytorch_model.bin')
    change(folder, 'pretrained_cfg', file=str(tmp_path / 'other'), source='url')  # timm puts its own there
    load(folder)
    assert seen == [folder / WEIGHTS]


@pytest.mark.parametrize('args', [
    dict(architecture='stn_resnet50'),
    dict(architecture='stn_vit_7b_patch16_dinov3'),
    dict(model_args=dict(stn_localization='timm:vit_7b_patch16_dinov3')),
    dict(model_args=dict(stn_localization='conv', stn_localization_size=1024, img_size=2048, stn_glimpses=64)),
    dict(model_args=dict(channels=[2 ** 20, 2 ** 20])),
    dict(model_args=dict(stn_localization='linear', stn_localization_size=1024, stn_transform='tps:32x32+tps:32x32')),
    dict(architecture='stn_mnist_fcn', model_args=dict(img_size=8192, hidden=2 ** 20)),
    dict(model_args=dict(stn_localization='fc:hidden=8192,depth=8192')),
    dict(model_args=dict(stn_join='channels', stn_localization='conv', stn_glimpses=64, in_chans=8192)),
])
def test_memory_is_bounded_by_the_weights(folder, args):
    args = dict(args)
    change(folder, 'model_args', **args.pop('model_args', {}))
    change(folder, **args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, TypeError, RuntimeError)) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * untrusted.SLACK / 1024 + 200_000  # kB


def test_a_budget_leaves_room_for_what_users_change(folder):
    assert load(folder, num_classes=100_000).num_classes == 100_000


def test_what_users_type_is_theirs(folder):
    model = load(folder, features_only=True, out_indices=(0, 1), device='cpu')
    assert len(model(torch.rand(1, 1, 42, 42))) == 2
    with pytest.raises(ValueError, match='stn_glimpses must be a positive integer, got 0'):
        load(folder, stn_glimpses=0)


@pytest.mark.parametrize('text', [
    '[]', '7', 'null', '', '{', '{"architecture": "stn_mnist_cnn_rts", "pretrained_cfg": 7}', '[' * 100_000,
    '{"architecture": "stn_mnist_cnn_rts", "pretrained_cfg": {}, "model_args": [1]}', '{"a": ' + '9' * 5000 + '}',
    '{"architecture": "stn_mnist_cnn_rts", "pretrained_cfg": {}, "model_args": {"pretrained": false}}',
    '{"architecture": "stn_nothing", "pretrained_cfg": {}}', '{"architecture": [], "pretrained_cfg": {}}',
])
def test_what_timm_refuses_before_it_calls_us(folder, text):
    (folder / 'config.json').write_text(text)
    with pytest.raises(Exception) as raised:  # of many types: a gap that docs/loading.md lists
        load(folder)
    assert not any('/timm_stn/' in frame.filename for frame in traceback.extract_tb(raised.value.__traceback__))


# limits of the arguments, by name

MOST = dict(glimpses=64, scale=1e6, size=8192, localization_size=1024, iterations=64, freeze_steps=2 ** 53)


@pytest.mark.parametrize('key,most', MOST.items())
def test_limits_of_arguments(key, most):
    assert stn_arguments(**{f'stn_{key}': most}).json[f'stn_{key}'] == most
    with pytest.raises(ValueError, match=f'stn_{key} must be at most'):
        stn_arguments(**{f'stn_{key}': most * 2})


# model.safetensors: the file

def pack(header, body=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + body


F32 = dict(dtype='F32', shape=[2], data_offsets=[0, 8])
BROKEN = dict(
    empty=b'', short=b'\x00' * 4, zeros=b'\x00' * 64, huge_header=struct.pack('<Q', 2 ** 63) + b'{}',
    header_beyond_file=struct.pack('<Q', 2 ** 20) + b'{}', no_json=pack(b'not json'), utf8=pack(b'{"\xff": 1}'),
    nested=pack(b'{"x":' * 10_000), a_list=pack([]), pickle=b'\x80\x04\x95' + b'\x00' * 64,
    no_such_dtype=pack({'x': {**F32, 'dtype': 'F31'}}, b'\x00' * 8),
    overlap=pack({'x': F32, 'y': {**F32, 'data_offsets': [4, 12]}}, b'\x00' * 12),
    same_bytes=pack({'x': F32, 'y': F32}, b'\x00' * 8),
    hole=pack({'x': F32, 'y': {**F32, 'data_offsets': [12, 20]}}, b'\x00' * 20),
    reversed=pack({'x': {**F32, 'data_offsets': [8, 0]}}, b'\x00' * 8),
    beyond=pack({'x': {**F32, 'data_offsets': [0, 2 ** 40], 'shape': [2 ** 38]}}, b'\x00' * 8),
    truncated=pack({'x': F32}, b'\x00' * 7), trailing=pack({'x': F32}, b'\x00' * 9),
    other_size=pack({'x': {**F32, 'shape': [3]}}, b'\x00' * 8),
    overflow=pack({'x': {**F32, 'shape': [2 ** 62, 2 ** 62]}}, b'\x00' * 8),
    negative=pack({'x': {**F32, 'shape': [-2]}}, b'\x00' * 8),
    float_shape=pack({'x': {**F32, 'shape': [2.5]}}, b'\x00' * 8),
    no_offsets=pack({'x': {'dtype': 'F32', 'shape': [2]}}),
)


@pytest.mark.parametrize('content', BROKEN.values(), ids=BROKEN)
def test_safetensors_itself_refuses_broken_files(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(RuntimeError, match='model.safetensors cannot be read as safetensors: ') as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert isinstance(raised.value.__cause__, SafetensorError)


def test_no_tensors(folder):
    (folder / WEIGHTS).write_bytes(pack({}))
    with pytest.raises(RuntimeError, match='model.safetensors holds no tensors'):
        load(folder)


# model.safetensors: the tensors

CONV, BIAS = 'backbone.layer1.conv.weight', 'stn.localization.regression.bias'
COUNT = 'stn.localization.regression.lr_scale_nano'


def rewrite(folder, update):
    tensors = load_file(folder / WEIGHTS)
    update(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)


def put(key, value):
    return lambda tensors: tensors.update({key: value(tensors.get(key))})


TENSORS = [
    (put(CONV, lambda v: v.to(torch.int32)), f'{CONV} is int32, where the network has float32'),
    (put(CONV, lambda v: v.to(torch.uint8)), f'{CONV} is uint8, where'),
    (put(CONV, lambda v: v.to(torch.float8_e4m3fn)), f'{CONV} is float8_e4m3fn; accepted are float16, bfloat16'),
    (put(CONV, lambda v: v.to(torch.complex64)), f'{CONV} is complex64; accepted'),
    (put(CONV, lambda v: v.index_fill(0, torch.tensor([0]), torch.nan)), f'{CONV} has numbers that are not finite'),
    (put(CONV, lambda v: v * torch.inf), f'{CONV} has numbers that are not finite'),
    (put(CONV, lambda v: (v * 0 + 1e30).half()), f'{CONV} has numbers that are not finite'),
    (put(BIAS, lambda v: v - torch.inf), 'regression.bias has numbers'),
    (put(COUNT, lambda v: v.double() / 7), f'{COUNT} must be one integer'),
    (put(COUNT, lambda v: v * 0), f'{COUNT} must be one integer'),
    (put(COUNT, lambda v: v - 2 ** 62), f'{COUNT} must be one integer'),
    (put(COUNT, lambda v: v.repeat(2)), rf'{COUNT} \(2,\), here \(\)'),
    (put(CONV, lambda v: v[:, :, 1:]), r'layer1.conv.weight.*\[1, 1, 8, 9\].*\[1, 1, 9, 9\]'),
    (put('backbone.fc.weight', lambda v: v[:1]), r'fc.weight.*\[1, 2\].*\[2, 2\]'),
    (put('stn.localization.regression.weight', lambda v: v[1:]), r'regression.weight \(5, 16\), here \(6, 16\)'),
    (put('backbone.x', lambda v: torch.ones(1)), 'Unexpected.*"x"'),
    (put('stn.x', lambda v: torch.ones(1)), r"unexpected: \['stn.x'\]"),
    (put('x', lambda v: torch.ones(1)), r"unexpected: \['x'\]"),
    (lambda tensors: tensors.pop(CONV), 'Missing.*layer1.conv.weight'),
    (lambda tensors: tensors.pop(BIAS), rf"Missing: \['{BIAS}'\]"),
]


@pytest.mark.parametrize('update,words', TENSORS, ids=[w[:40] for _, w in TENSORS])
def test_tensors(folder, update, words):
    rewrite(folder, update)
    with pytest.raises((RuntimeError, ValueError), match='(?s)' + words) as raised:
        load(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_averages_that_made_all_numbers_floats_load(folder, dtype):
    expected = load(folder).state_dict()
    rewrite(folder, put(COUNT, lambda v: v.to(dtype)))
    restored = load(folder).state_dict()
    assert all(torch.equal(value, expected[key]) and value.dtype == expected[key].dtype
               for key, value in restored.items())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(folder, dtype):
    def cast(tensors):
        tensors.update({k: v.to(dtype) for k, v in tensors.items() if v.is_floating_point()})
    rewrite(folder, cast)
    model = load(folder)
    assert model.backbone.layer1.conv.weight.dtype == torch.float32
    saved = load_file(folder / WEIGHTS)[CONV]
    assert saved.dtype == dtype and torch.equal(model.state_dict()[CONV], saved.float())


def many(count, name='x{}'):
    return {name.format(i): torch.empty(0) for i in range(count)}


@pytest.mark.parametrize('name,count,words', [
    ('x{}', 100_000, 'holds 100,0.. tensors, and at most 32,768 are accepted'),
    ('x' * 300 + '{}', 30_000, 'header has .* bytes, and at most 8,388,608 are accepted'),
    ('x{}', 5000, 'and 4,992 more'), ('stn.x{}', 5000, 'and 4,992 more'), ('backbone.x{}', 5000, 'characters'),
    ('x' * 300 + '{}', 5000, 'characters'), ('x{}', 2, r"unexpected: \['x0', 'x1'\]")])
def test_names_of_many_tensors(folder, name, count, words):
    rewrite(folder, lambda tensors: tensors.update(many(count, name)))
    start = time.perf_counter()
    with pytest.raises((RuntimeError, ValueError), match=words) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    error = raised.value
    while error is not None:  # a traceback shows the causes, too
        assert len(str(error)) < 5000
        error = error.__cause__
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('most,words', [(1000, 'holds 2,0.. tensors, and at most 1,000'), (10_000, 'and 1,992 more')])
def test_names_of_many_tensors_in_a_file_of_ones_own(folder, tmp_path, monkeypatch, suffix, most, words):
    monkeypatch.setattr(weights, 'TENSORS', most)
    file, tensors = tmp_path / f'mine{suffix}', {**load_file(folder / WEIGHTS), **many(2000)}
    save_file(tensors, file) if suffix == '.safetensors' else torch.save(tensors, file)
    with pytest.raises(RuntimeError, match=words) as raised:
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **ARGUMENTS)
    assert str(file) in str(raised.value) and len(str(raised.value)) < 5000


def test_many_long_arguments_of_a_config(folder):
    change(folder, 'model_args', **{f'{i}' + 'x' * 900: 1 for i in range(2000)})
    with pytest.raises(TypeError, match='with arguments') as raised:
        load(folder)
    assert len(str(raised.value)) < 10_000


# other formats

class Code:
    def __reduce__(self):
        return pytest.fail, ('code of a checkpoint has run',)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pth', 'other.safetensors', 'last.pth.tar'])
def test_folders_give_safetensors_only(folder, name):
    (folder / WEIGHTS).unlink()
    torch.save(dict(x=Code()), folder / name)
    words = rf'has no {WEIGHTS}, but {name}. Only safetensors are read .*safe_serialization=True'
    with pytest.raises(RuntimeError, match=words):
        load(folder)


def test_the_way_to_convert_works(folder, tmp_path):
    saved = load(folder)
    torch.save(saved.state_dict(), tmp_path / 'weights.bin')
    model = timm.create_model(NAME, checkpoint_path=tmp_path / 'weights.bin', **ARGUMENTS)
    save_for_hf(model, tmp_path / 'new')
    assert all(torch.equal(v, load(tmp_path / 'new').state_dict()[k]) for k, v in saved.state_dict().items())


def test_a_checkpoint_of_train_py_is_read_without_running_code(folder, tmp_path):
    state_dict = load(folder).state_dict()
    checkpoint = dict(epoch=1, arch=NAME, state_dict=state_dict, args=argparse.Namespace(lr=0.1))
    overlay = dict(file=str(tmp_path / 'last.pth.tar'), num_classes=2)
    torch.save(checkpoint, overlay['file'])
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **ARGUMENTS)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state_dict.items() if 'backward_passes' not in k)
    torch.save({**checkpoint, 'optimizer': Code()}, overlay['file'])
    with pytest.raises(RuntimeError, match=r'last.pth.tar cannot be read as a checkpoint \(weights_only=True\)'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **ARGUMENTS)


def test_arguments_that_a_config_leaves_to_the_name_are_named_with_the_file(folder):
    config = json.loads((folder / 'config.json').read_text())
    del config['model_args']['stn_size']
    config['model_args']['stn_stages'] = [0]
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{folder}: config.json: stn_size=24 needs 'input'"):
        load(folder)


# whatever is in the files

def attempt(folder):
    """Loads, or says what is wrong in one of three types of error, naming the folder; what timm raises is timm's."""
    logging.disable(logging.WARNING)
    try:
        model = load(folder)
    except Exception as error:
        ours = any('/timm_stn/' in frame.filename for frame in traceback.extract_tb(error.__traceback__))
        assert not ours or isinstance(error, (TypeError, ValueError, RuntimeError)), repr(error)
        assert not ours or str(folder) in str(error), repr(error)
        assert not ours or len(str(error)) < 10_000
    else:
        assert all(v.isfinite().all() for v in model.state_dict().values())
    finally:
        logging.disable(logging.NOTSET)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2 ** 70, 2 ** 70), st.integers(-3, 70), st.floats(), st.text(max_size=20),
    st.sampled_from(['affine', 'tps:9x9', 'conv', 'timm:test_resnet', 'shared:0', 'input', 'layer1', '/x', '0']))
VALUES = st.recursive(SCALARS, lambda of: st.lists(of, max_size=4) | st.dictionaries(
    st.text(max_size=8) | st.sampled_from(['transform', 'iterations', 'scale']), of, max_size=3), max_leaves=12)
PLACES = st.sampled_from([
    *(('model_args', k) for k in DEFAULTS), *(('pretrained_cfg', k) for k in untrusted.FIELDS),
    *(('model_args', k) for k in ('channels', 'img_size', 'in_chans', 'num_classes', 'global_pool', 'drop_rate')),
    *(('pretrained_cfg', k) for k in untrusted.ELSEWHERE), *(('model_args', k) for k in untrusted.RUNTIME)])


@FUZZ
@given(changes=st.dictionaries(PLACES, VALUES, min_size=1, max_size=3))
def test_any_config(original, scratch, changes):
    config = json.loads((original / 'config.json').read_text())
    for (place, key), value in changes.items():
        config[place][key] = value
    (scratch / 'config.json').write_text(json.dumps(config))
    (scratch / WEIGHTS).write_bytes((original / WEIGHTS).read_bytes())
    attempt(scratch)


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=6), length=st.integers(0, 999))
def test_any_bytes_of_weights(original, scratch, changes, length):
    content = bytearray((original / WEIGHTS).read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (scratch / 'config.json').write_bytes((original / 'config.json').read_bytes())
    (scratch / WEIGHTS).write_bytes(content[:len(content) - length] if 0 < length < 100 else content)
    attempt(scratch)


TENSOR = st.fixed_dictionaries(dict(
    dtype=st.sampled_from(['F32', 'F16', 'BF16', 'F64', 'I64', 'I32', 'U8', 'BOOL', 'F8_E4M3', 'C64', 'U64', 'X']),
    shape=st.lists(st.sampled_from([0, 1, 2, 4, 6, 9, 16, 2 ** 31, 2 ** 63]), max_size=4),
    data_offsets=st.lists(st.integers(0, 64), min_size=2, max_size=2)))


@FUZZ
@given(changes=st.dictionaries(st.integers(0, 9), TENSOR | st.none(), min_size=1, max_size=2), pad=st.integers(0, 9))
def test_any_header_of_weights(original, scratch, changes, pad):
    content = (original / WEIGHTS).read_bytes()
    length, = struct.unpack('<Q', content[:8])
    header = json.loads(content[8:8 + length])
    keys = list(header)
    for place, tensor in changes.items():
        key = keys[place % len(keys)]
        if tensor is None:
            header.pop(key, None)
        else:
            header[key] = tensor
    (scratch / 'config.json').write_bytes((original / 'config.json').read_bytes())
    (scratch / WEIGHTS).write_bytes(pack(header, content[8 + length:] + b'\x00' * (pad % 3)))
    attempt(scratch)
