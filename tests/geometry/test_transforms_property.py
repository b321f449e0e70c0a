"""What holds for every transform and any parameters."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_stn.geometry.grid import lattice
from timm_stn.geometry.transforms import get_transform, matrix_grid, transform_names


def is_closed(name):
    try:
        return get_transform(name).compose(*torch.zeros(2, 1, get_transform(name).num_params)) is not None
    except NotImplementedError:
        return False


CLOSED = [name for name in transform_names() if is_closed(name)]
ALL = [
    *transform_names(), 'tps:2x3', 'diffeomorphic:3x2', 'rotation+affine', 'tps+affine', 'diffeomorphic+projective+tps',
    'zoom:2x5', 'rotation+zoom']

every_transform = pytest.mark.parametrize('transform', [get_transform(name) for name in ALL], ids=ALL)
every_closed_one = pytest.mark.parametrize('transform', [get_transform(name) for name in CLOSED], ids=CLOSED)
transforms = st.sampled_from([get_transform(name) for name in ALL])
seeds = st.integers(0, 2**31)
sides = st.integers(1, 6)


def few(test):
    return settings(max_examples=8, deadline=None)(test)


def draw(transform, seed, n=2, scale=0.2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    params = scale * torch.randn(n, transform.num_params, dtype=dtype, generator=generator)
    return params, 2 * torch.rand(n, 5, transform.ndim, dtype=dtype, generator=generator) - 1


@every_transform
@few
@given(st.lists(sides, min_size=3, max_size=3), st.sampled_from([torch.float32, torch.float64]))
def test_zero_is_the_identity_exactly(transform, size, dtype):
    size = size[:transform.ndim]
    params, points = draw(transform, 0, scale=0, dtype=dtype)
    assert torch.equal(transform.grid(params, size), lattice(size, dtype=dtype).expand(2, *size, transform.ndim))
    assert torch.equal(transform.map_points(params, points), points)
    torch.testing.assert_close(transform.inverse_points(params, points), points)


@every_transform
@few
@given(seeds, st.lists(sides, min_size=3, max_size=3))
def test_grid_is_the_mapped_lattice(transform, seed, size):
    size = size[:transform.ndim]
    params, _ = draw(transform, seed)
    mapped = transform.map_points(params, lattice(size, dtype=torch.float64)[None])
    torch.testing.assert_close(transform.grid(params, size), mapped)


@every_closed_one
@few
@given(seeds)
def test_linear_transforms_are_their_matrix(transform, seed):
    params, points = draw(transform, seed)
    matrix = transform.matrix(params)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ matrix.mT
    n = transform.ndim
    expected = homogeneous[..., :n] / homogeneous[..., n:] if matrix.shape[1:] == (3, 3) and n == 2 else homogeneous
    torch.testing.assert_close(transform.map_points(params, points), expected)
    size = (3, 4, 5)[:n]
    assert torch.equal(transform.grid(params, size), matrix_grid(matrix, size))


@every_closed_one
@few
@given(seeds)
def test_inverse_undoes(transform, seed):
    params, points = draw(transform, seed, scale=0.05)
    there = transform.map_points(params, points)
    torch.testing.assert_close(transform.map_points(transform.inverse(params), there), points)
    back = transform.map_points(transform.inverse(params), points)
    torch.testing.assert_close(transform.map_points(params, back), points)


@every_transform
@few
@given(seeds)
def test_inverse_points_undo(transform, seed):
    params, points = draw(transform, seed, scale=0.05)
    there = transform.map_points(params, points)
    torch.testing.assert_close(transform.inverse_points(params, there), points, rtol=0, atol=1e-5)


@every_closed_one
@few
@given(seeds)
def test_compose_is_first_of_second(transform, seed):
    (first, points), (second, _) = draw(transform, seed, scale=0.1), draw(transform, seed + 1, scale=0.1)
    expected = transform.map_points(first, transform.map_points(second, points))
    torch.testing.assert_close(transform.map_points(transform.compose(first, second), points), expected)


@settings(max_examples=40, deadline=None)
@given(transforms, transforms, seeds)
def test_chains_apply_the_last_part_first(a, b, seed):
    if a.ndim != b.ndim:
        with pytest.raises(ValueError, match='dimensions'):
            get_transform(f'{a.name}+{b.name}')
        return
    chain = get_transform(f'{a.name}+{b.name}')
    assert chain.num_params == a.num_params + b.num_params
    (first, points), (second, _) = draw(a, seed, scale=0.1), draw(b, seed + 1, scale=0.1)
    expected = a.map_points(first, b.map_points(second, points))
    torch.testing.assert_close(chain.map_points(torch.cat([first, second], 1), points), expected)


@every_transform
def test_what_has_no_closed_form_says_so(transform):
    params, _ = draw(transform, 0)
    if transform.name in CLOSED:
        return
    with pytest.raises(NotImplementedError, match=rf'{transform.name.split("+")[0]}.*compose'.replace('+', r'\+')):
        transform.compose(params, params)
    if 'diffeomorphic' not in transform.name or '+' in transform.name:
        with pytest.raises(NotImplementedError, match='inverse_points'):
            transform.inverse(params)


@every_transform
@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(width=32),
            st.floats(-2, 2, width=32),
            st.sampled_from([0.0, -1.0, 1e6, -1e6, 1e-30, 9e5, 1e30]),
        ),
        min_size=3, max_size=12),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_finite_for_any_params(transform, values, dtype):
    repeats = -(-3 * transform.num_params // len(values))
    params = torch.tensor(values * repeats, dtype=torch.float64)[:3 * transform.num_params]
    params = params.reshape(3, -1).to(dtype).requires_grad_()
    grid = transform.grid(params, (3, 4, 5)[:transform.ndim])
    assert grid.isfinite().all()
    gradient, = torch.autograd.grad(grid.sum(), params)
    if dtype != torch.float16:  # in which a finite float32 gradient may be infinite
        assert gradient.isfinite().all()


def test_families_that_are_closed():
    groups = 'translation rotation attention scale_translation similarity affine projective affine3d'
    assert {*groups.split()} <= {*CLOSED} and not {'tps', 'diffeomorphic'} & {*CLOSED}
