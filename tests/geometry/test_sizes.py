"""Sides and counts, as arguments give them."""
import warnings
from collections import UserList

import numpy as np
import pytest
import torch

from timm_stn.geometry.sizes import are_sides, as_sides, is_count, is_number, plain


@pytest.mark.parametrize(('value', 'counts'), [
    (1, True), (224, True), (0, False), (-3, False), (True, False), (2.0, False), ('2', False), (None, False)])
def test_a_count_is_a_positive_integer(value, counts):
    assert is_count(value) is counts


@pytest.mark.parametrize(('value', 'ndim', 'are'), [
    ((4, 5), 2, True), ([4, 5], 2, True), (torch.Size([4, 5]), 2, True), ((4, 5, 6), 3, True), ((4, 5, 6), 2, False),
    ((4,), 2, False), ((4, 0), 2, False), ((4, 5.0), 2, False), ((4, True), 2, False), ('45', 2, False), (4, 2, False),
    (None, 2, False), (np.array([4, 5]), 2, False),
])
def test_sides_are_one_count_an_axis(value, ndim, are):
    assert are_sides(value, ndim) is are


@pytest.mark.parametrize(('size', 'ndim', 'expected'), [
    (4, 2, (4, 4)), (4, 3, (4, 4, 4)), ([4, 5], 2, (4, 5)), (torch.Size([4, 5, 6]), 2, (4, 5, 6)), (0, 2, (0, 0)),
    ('45', 2, '45'), (2.5, 2, 2.5), (None, 2, None), (np.int64(4), 2, (4, 4)), (np.array([4, 5]), 2, (4, 5)),
    (torch.tensor(4), 2, (4, 4)), (torch.tensor([4, 5]), 2, (4, 5)), ((np.int32(4), 5), 2, (4, 5)),
])
def test_one_side_stands_for_all_and_what_is_none_stays(size, ndim, expected):
    found = as_sides(size, ndim)
    assert found == expected and type(found) is type(expected)


class Config(UserList):
    """A sequence that is no list, as in configs of OmegaConf."""


@pytest.mark.parametrize(('value', 'expected'), [
    (np.int64(2), 2), (np.float32(0.5), 0.5), (np.float64(0.1), 0.1), (np.bool_(True), True), (np.array(3), 3),
    (torch.tensor(2), 2), (torch.tensor(0.5), 0.5), (torch.tensor(False), False), (np.str_('a'), 'a'),
    (np.array([1, 2]), [1, 2]), (torch.tensor([1.0, 2.0]), [1.0, 2.0]), (torch.Size([1, 2]), (1, 2)),
    ((np.int64(1), 'a'), (1, 'a')), ([np.float64(2)], [2.0]),
    ({np.int64(1): {'scale': np.float32(0.5)}}, {1: {'scale': 0.5}}),
    (Config([np.int64(1), 2]), [1, 2]), (2, 2), ('2', '2'), (None, None), (True, True),
])
def test_numbers_of_numpy_and_torch_become_those_of_python(value, expected):
    found = plain(value)
    assert found == expected and repr(found) == repr(expected)


def test_a_number_is_finite_and_what_is_none_stays():
    assert is_number(10 ** 300) and is_number(True) and not is_number('1') and not is_number(None)
    assert not any(map(is_number, (float('nan'), float('inf'), -float('inf'), 10 ** 400)))
    model, meta = torch.nn.Identity(), torch.ones(2, device='meta')
    assert plain(model) is model and plain(meta) is meta


def test_sizes_stay_unknown_in_traced_programs():
    def ones(x):
        return x.new_ones(as_sides((x.shape[2], 4))), x.new_ones(as_sides(x.shape[2:]))

    small, large = torch.ones(1, 1, 3, 5), torch.ones(1, 1, 6, 7)
    expected = [(6, 4), (6, 7)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert [out.shape for out in torch.jit.trace(ones, small)(large)] == expected
    compiled = torch.compile(ones, fullgraph=True, dynamic=True, backend='eager')
    compiled(small)
    assert [out.shape for out in compiled(large)] == expected
