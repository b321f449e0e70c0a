"""Sides and counts, as arguments give them."""
import numpy as np
import pytest
import torch

from timm_stn.geometry.sizes import are_sides, as_sides, is_count


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
    ('45', 2, '45'), (2.5, 2, 2.5), (None, 2, None),
])
def test_one_side_stands_for_all_and_what_is_none_stays(size, ndim, expected):
    found = as_sides(size, ndim)
    assert found == expected and type(found) is type(expected)
