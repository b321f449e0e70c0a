"""The flat stn_ arguments: every accepted form, what a config records, and errors that name what is wrong."""
import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_stn.network.arguments import DEFAULTS, split_arguments, stn_arguments

TPS, AFFINE = {'transform': 'tps'}, {'transform': 'affine', 'scale': 0.5}


@pytest.mark.parametrize(('given', 'stages'), [
    (None, {'input': {}}),
    ('input', {'input': {}}),
    ('layer3', {'layer3': {}}),
    (2, {2: {}}),
    ('2', {2: {}}),
    (-1, {-1: {}}),
    ('-1', {-1: {}}),
    (('input', 1, 'layer3'), {'input': {}, 1: {}, 'layer3': {}}),
    (['input', '1'], {'input': {}, 1: {}}),
    ({'input': TPS, 2: AFFINE}, {'input': TPS, 2: AFFINE}),
    ({'input': None}, {'input': {}}),
    ([['input', TPS], [2, AFFINE]], {'input': TPS, 2: AFFINE}),
    ([['input', TPS], 2], {'input': TPS, 2: {}}),
    ([('2', None)], {2: {}}),
])
def test_forms_of_stages(given, stages):
    arguments = stn_arguments(stn_stages=given)
    assert arguments.stages == stages and list(arguments.stages) == list(stages)
    assert arguments.json['stn_stages'] == [[stage, settings] for stage, settings in stages.items()]


STAGE_SETTINGS = st.fixed_dictionaries({}, optional={
    'transform': st.sampled_from(['affine', 'tps', 'a+b']),
    'scale': st.floats(0.1, 2),
    'localization_size': st.none() | st.integers(1, 64) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
})
STAGES = st.dictionaries(st.integers(-5, 5) | st.sampled_from(['layer1', 'blocks.3']), STAGE_SETTINGS, max_size=3)


@settings(max_examples=25, deadline=None)
@given(stages=STAGES, size=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)), glimpses=st.integers(1, 4))
def test_json_round_trip(stages, size, glimpses):
    given = {'stn_size': size, 'stn_glimpses': glimpses, 'stn_fill': (1, 2), 'stn_padding_mode': 'fill'}
    arguments = stn_arguments(stn_stages={'input': {}, **stages}, **given)
    again = stn_arguments(**json.loads(json.dumps(arguments.json)))
    assert json.dumps(again.json) == json.dumps(arguments.json)
    assert list(again.stages) == list(arguments.stages)
    assert set(again.json) == set(DEFAULTS), 'every argument is recorded, given or not'


def test_values_and_settings():
    stages = {'input': {}, 1: TPS}
    arguments = stn_arguments(stn_stages=stages, stn_transform='similarity', stn_scale=0.5, stn_glimpses=2)
    assert arguments.glimpses == 2 and arguments.transformers['transform'] == 'similarity'
    assert arguments.target == 'stage'
    assert arguments.settings('input').transform == 'similarity' and arguments.settings(1).transform == 'tps'
    assert arguments.settings('input').scale == 0.5
    assert arguments.settings(1).scale == 1.0, 'stn_scale is that of glimpses of the image'
    assert stn_arguments(stn_stages={1: AFFINE}).settings(1).scale == 0.5
    of_network = {'stages', 'glimpses', 'towers', 'join', 'whole', 'size', 'stream_drop', 'target'}
    assert set(vars(arguments.settings(1))) == {name.removeprefix('stn_') for name in DEFAULTS} - of_network
    with pytest.raises(FrozenInstanceError):
        arguments.glimpses = 3
    for other in (copy.deepcopy(arguments), pickle.loads(pickle.dumps(arguments))):
        assert other.json == arguments.json and other.stages == arguments.stages


def test_what_defaults_came_to_gives_way_to_what_is_given():
    stages = {'input': dict(transform='tps', resolved=dict(localization='conv', bound=False)), 1: dict(bound=True)}
    one = stn_arguments(stn_stages=stages)
    other = stn_arguments(stn_stages=stages, stn_localization='fc', stn_bound=True)
    assert [one.settings(s).localization for s in stages] == ['conv', 'auto']
    assert [one.settings(s).bound for s in stages] == [False, True]
    assert [other.settings(s).localization for s in stages] == ['fc', 'fc']
    assert other.settings('input').bound
    assert stn_arguments(**json.loads(json.dumps(one.json))).json == one.json
    with pytest.raises(TypeError, match="unknown setting 'resolved' of stage 1"):
        stn_arguments(stn_stages={1: dict(resolved=dict(resolved=dict(bound=True)))})
    with pytest.raises(ValueError, match="resolved of stage 1 must have settings, got 3"):
        stn_arguments(stn_stages={1: dict(resolved=3)})


def test_none_means_the_default():
    assert stn_arguments(**dict.fromkeys(DEFAULTS)).json == stn_arguments().json


def test_given_objects_are_not_changed_or_kept():
    stages = {'input': dict(TPS)}
    arguments = stn_arguments(stn_stages=stages)
    stages['input']['transform'] = 'affine'
    assert arguments.settings('input').transform == 'tps' and stn_arguments().stages == {'input': {}}


def test_split():
    ours, rest = split_arguments({'stn_scale': 0.5, 'num_classes': 3, 'stnx': 1})
    assert ours == {'stn_scale': 0.5} and rest == {'num_classes': 3, 'stnx': 1}


@pytest.mark.parametrize(('name', 'nearest'), [
    ('stn_transforms', 'stn_transform'),
    ('stn_stage', 'stn_stages'),
    ('stn_padding', 'stn_padding_mode'),
    ('stn_lrscale', 'stn_lr_scale'),
    ('stn_glimpse', 'stn_glimpses'),
    ('stn_localisation', 'stn_localization'),
    ('stn_', None),
    ('stn_xyzzy', None),
])
def test_unknown_names(name, nearest):
    match = rf"unknown argument '{name}'\. Did you mean '{nearest or 'stn_'}"
    for call in (lambda: stn_arguments(**{name: 1}), lambda: split_arguments({name: 1, 'num_classes': 2})):
        with pytest.raises(TypeError, match=match) as error:
            call()
        assert all(accepted in str(error.value) for accepted in DEFAULTS)


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    ({'stn_towers': 'joint'}, ValueError, r"stn_towers must be one of \('shared', 'separate'\), got 'joint'"),
    ({'stn_join': 'sum'}, ValueError, r"stn_join must be one of \('mean', 'concat', 'channels'\), got 'sum'"),
    ({'stn_target': 'inputs'}, ValueError, r"stn_target must be one of \('stage', 'input'\), got 'inputs'"),
    ({'stn_glimpses': 0}, ValueError, 'stn_glimpses must be a positive integer, got 0'),
    ({'stn_glimpses': '2'}, ValueError, "stn_glimpses must be a positive integer, got '2'"),
    ({'stn_glimpses': True}, ValueError, 'stn_glimpses must be a positive integer, got True'),
    ({'stn_stages': ()}, ValueError, "stn_stages is empty; it takes 'input', feature indices or module names"),
    ({'stn_stages': {}}, ValueError, 'stn_stages is empty'),
    ({'stn_stages': 1.5}, ValueError, "stn_stages takes 'input', feature indices or module names, got 1.5"),
    ({'stn_stages': [1.5]}, ValueError, "stn_stages takes 'input'.*got 1.5"),
    ({'stn_stages': True}, ValueError, "stn_stages takes 'input'.*got True"),
    ({'stn_stages': ('input', 1, '1')}, ValueError, 'stn_stages names 1 twice'),
    ({'stn_stages': [['input', {}, 1]]}, ValueError, r"stages or \[stage, settings\] pairs, got \['input', {}, 1\]"),
    ({'stn_stages': [('layer1', 'layer2')]}, ValueError, r"\[stage, settings\] pairs, got \['layer1', 'layer2'\]"),
    ({'stn_stages': {'input': 'tps'}}, ValueError, r"\[stage, settings\] pairs, got \['input', 'tps'\]"),
    ({'stn_stages': {1: {'transfrom': 'tps'}}}, TypeError, "setting 'transfrom' of stage 1. Did you mean 'transform'"),
    ({'stn_stages': {1: {'glimpses': 2}}}, TypeError, "setting 'glimpses' of stage 1.*Accepted: transform, scale"),
    ({'stn_stages': 1, 'stn_glimpses': 2}, ValueError, r"stn_glimpses=2 needs 'input' in stn_stages, got \[1\]"),
    ({'stn_stages': 1, 'stn_size': 64}, ValueError, r"stn_size=64 needs 'input' in stn_stages, got \[1\]"),
    ({'stn_stages': 1, 'stn_towers': 'separate'}, ValueError, "stn_towers='separate' needs 'input'"),
    ({'stn_stages': ('input', 1), 'stn_target': 'input'}, ValueError, "stn_target='input' takes one feature stage"),
    ({'stn_target': 'input'}, ValueError, r"stn_target='input' takes one feature stage in stn_stages, got \['input'\]"),
    ({'stn_stages': 2, 'stn_localization': 'shared:1'}, ValueError, "shared.* is for the input, not for stage 2"),
])
def test_wrong_values(arguments, error, message):
    with pytest.raises(error, match=message):
        stn_arguments(**arguments)


@pytest.mark.parametrize('arguments', [
    {'stn_stages': 2, 'stn_target': 'input', 'stn_size': 64},
    {'stn_stages': ('input', 2), 'stn_glimpses': 2, 'stn_towers': 'separate', 'stn_join': 'mean'},
    {'stn_stages': {'input': {'localization': 'shared:2'}, 1: {}}},
])
def test_what_goes_together(arguments):
    assert stn_arguments(**arguments).json['stn_stages']


GIVEN = dict(
    stn_stages=(('input', {}), (1, dict(localization='fc', iterations=2, localization_size=(4, 5), scale=0.5))),
    stn_glimpses=2, stn_size=(8, 9), stn_scale=(0.25, 0.5), stn_localization='saliency:1', stn_localization_size=16,
    stn_whole=True, stn_bound=False, stn_padding_mode='fill', stn_fill=(0.5, 1.0, 2.0), stn_antialias=True,
    stn_lr_scale=0.5, stn_penalty=2.0, stn_freeze_steps=3)


def of(kind, value):
    """A value with all its numbers as numpy, torch or YAML have them."""
    if isinstance(value, dict):
        return {of(kind, k): of(kind, v) for k, v in value.items()}
    if isinstance(value, tuple):
        numbers = all(isinstance(v, (int, float)) for v in value)
        return kind['list'](value) if numbers and value else [of(kind, v) for v in value]
    return value if isinstance(value, str) else kind[type(value)](value)


KINDS = {
    'numpy': {bool: np.bool_, int: np.int64, float: np.float32, 'list': np.array},
    'tuples of numpy': {bool: np.bool_, int: np.uint8, float: np.float16, 'list': lambda values: tuple(
        np.float64(v) if isinstance(v, float) else np.int32(v) for v in values)},
    'torch': {bool: torch.tensor, int: torch.tensor, float: torch.tensor, 'list': torch.tensor},
}


@pytest.mark.parametrize('kind', KINDS)
def test_numbers_of_numpy_and_torch_are_as_good_as_those_of_python(kind):
    found = stn_arguments(**{name: of(KINDS[kind], value) for name, value in GIVEN.items()})
    assert json.dumps(found.json) == json.dumps(stn_arguments(**GIVEN).json)


@pytest.mark.parametrize(('name', 'value', 'message'), [
    ('stn_glimpses', np.bool_(True), 'positive integer, got True'),
    ('stn_glimpses', torch.tensor(2.0), 'positive integer, got 2.0'),
    ('stn_size', np.array([1, 2, 3]), r'two of them \(height, width\), got \[1, 2, 3\]'),
    ('stn_scale', np.float32('nan'), 'positive number, or two, least and largest, got nan'),
    ('stn_lr_scale', '1e-3', "a number from 1e-9 to 1e9, got '1e-3'"),
    pytest.param('stn_penalty', 10 ** 400, 'a number, 0 or more', id='more than a float holds'),
])
def test_what_is_no_such_number_is_refused(name, value, message):
    with pytest.raises(ValueError, match=f'{name} must be .*{message}'):
        arguments = stn_arguments(**{name: value})
        arguments.settings('input')
