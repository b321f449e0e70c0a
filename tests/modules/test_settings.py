"""What a spatial transformer is made with: what is not accepted, and what the error says."""
import numpy as np
import pytest
import timm
import torch
from makers import GLIMPSES
from torch import nn

import timm_stn  # noqa: F401
from timm_stn import SpatialTransformer


class TestModule:
    @pytest.mark.parametrize(('arguments', 'error', 'message'), [
        ({'transform': 'afine'}, ValueError, "'afine'.*did you mean 'affine'"),
        ({'input_size': 1.5}, ValueError, "input_size must be 2 positive integers, or one, for .*'affine', got 1.5"),
        ({'input_size': (4, 4, 4)}, ValueError, r"input_size must be 2 .*got \(4, 4, 4\)"),
        ({'transform': 'affine3d'}, ValueError, r"input_size must be 3 .*'affine3d', got \(12, 10\)"),
        ({'input_size': (0, 4)}, ValueError, r'input_size must be .*got \(0, 4\)'),
        ({'localization': 'con'}, ValueError, "localization must be one of .*got 'con'.*'conv'"),
        ({'localization_size': -3}, ValueError, 'localization_size must be .*got -3'),
        ({'size': 0}, ValueError, 'size must be 2 positive integers, or one, got 0'),
        ({'size': (3, 3, 3)}, ValueError, r'size must be 2 .*got \(3, 3, 3\)'),
        ({'size': 2.5}, ValueError, 'size must be 2 .*got 2.5'),
        ({'glimpses': 0}, ValueError, 'glimpses must be a positive integer, got 0'),
        ({'glimpses': 1.5}, ValueError, 'glimpses must be a positive integer, got 1.5'),
        ({'glimpses': '2'}, ValueError, "glimpses must be a positive integer, got '2'"),
        ({'iterations': 0}, ValueError, 'iterations must be a positive integer, got 0'),
        ({'scale': 0}, ValueError, 'scale must be a positive number, got 0'),
        ({'scale': float('nan')}, ValueError, 'scale must be a positive number, got nan'),
        ({'scale': '1'}, ValueError, "scale must be a positive number, got '1'"),
        ({'bound': 'yes'}, ValueError, "bound must be True, False or 'auto', got 'yes'"),
        ({'bound': True, 'transform': 'tps'}, ValueError, "bound=True needs a transform with a matrix.*'tps'"),
        ({'mode': 'linear'}, ValueError, "mode must be one of .*'linear'"),
        ({'padding_mode': 'wrap'}, ValueError, "padding_mode must be one of .*'wrap'"),
        ({'padding_mode': 'fill', 'fill': (1, 2, 3)}, ValueError, r'fill must be .*got \(1, 2, 3\)'),
        ({'padding_mode': 'fill', 'fill': '0.5'}, ValueError, "fill must be one number or 2, .*got '0.5'"),
        ({'padding_mode': 'fill', 'fill': 1j}, ValueError, 'fill must be one number or 2, .*got 1j'),
        ({'padding_mode': 'fill', 'fill': {}}, ValueError, 'fill must be one number or 2, .*got {}'),
        ({'transform': 'affine+'}, ValueError, r"must be .*joined by '\+', as in affine\+tps, got 'affine\+'"),
        ({'antialias': 'false'}, ValueError, r"antialias must be one of \(False, True\), got 'false'"),
        ({'lr_scale': -1}, ValueError, 'lr_scale must be .*got -1'),
        ({'penalty': -1}, ValueError, 'penalty must be a number, 0 or more, got -1'),
        ({'penalty': float('nan')}, ValueError, 'penalty must be a number, 0 or more, got nan'),
        ({'penalty': '1'}, ValueError, "penalty must be a number, 0 or more, got '1'"),
        ({'freeze_steps': -1}, ValueError, 'freeze_steps must be an integer, 0 or more, got -1'),
        ({'freeze_steps': 1.5}, ValueError, 'freeze_steps must be an integer, 0 or more, got 1.5'),
        ({'hiden': 3}, TypeError, "'conv' takes channels, hidden, depth, got hiden=3"),
        ({'localization': nn.Identity(), 'hidden': 3}, TypeError, r"takes no settings, got \['hidden'\]"),
    ])
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            SpatialTransformer(**{'in_chans': 2, 'input_size': (12, 10), **arguments})


@pytest.mark.parametrize('scale', [[0.5], [0.8, 0.5], [0, 0.5], ['a', 0.5], '0.5', [True, 2]])
def test_scales_are_one_or_two(scale):
    with pytest.raises(ValueError, match='stn_scale must be a positive number, or two, least and largest, got'):
        timm.create_model('stn_test_resnet', **{**GLIMPSES, 'stn_scale': scale})


@pytest.mark.parametrize('arguments,message', [
    (dict(stn_antialias='false'), r"stn_antialias must be one of \(False, True\), got 'false'"),
    (dict(stn_lr_scale=-1), 'stn_lr_scale must be a number from 1e-9 to 1e9, got -1'),
    (dict(stn_stages={1: dict(iterations=0)}), 'stn_stages: stage 1: iterations must be a positive integer, got 0'),
    (dict(stn_localization='timm:'), "localization 'timm:': timm knows no model ''"),
])
def test_errors_name_the_argument_that_was_given(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('stn_test_resnet', **arguments)


@pytest.mark.parametrize('side', [12, np.int64(12), torch.tensor(12)])
def test_one_side_is_that_of_all_axes(side):
    assert SpatialTransformer(2, side, size=side).input_size == (12, 12)
    assert SpatialTransformer(2, side, transform='affine3d').input_size == (12, 12, 12)


@pytest.mark.parametrize('number', [np.array, torch.tensor])
def test_a_module_takes_numbers_of_numpy_and_torch(number):
    numbers = dict(
        in_chans=2, input_size=[12, 10], size=[6, 5], glimpses=2, scale=0.5, iterations=2, bound=True, hidden=4,
        localization_size=8, lr_scale=0.5, penalty=1.0, freeze_steps=3, fill=[0.5, 1.0])
    texts = dict(localization='fc', padding_mode='fill')
    stn = SpatialTransformer(**texts, **{name: number(value) for name, value in numbers.items()})
    plain = SpatialTransformer(**texts, **numbers)
    assert repr(stn) == repr(plain) and stn(torch.rand(2, 2, 12, 10)).shape == (2, 2, 2, 6, 5)
    kept = ('in_chans', 'input_size', 'size', 'glimpses', 'scale', 'iterations', 'bound', 'penalty', 'freeze_steps')
    assert all(repr(getattr(stn, name)) == repr(getattr(plain, name)) for name in kept)
    assert repr(tuple(stn.sampling)) == repr(tuple(plain.sampling))
