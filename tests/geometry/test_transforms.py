"""Transforms against independent references: torch, OpenCV, SciPy and formulas written out."""
import copy
import math
import pickle

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers import rand
from scipy.integrate import cumulative_trapezoid, solve_ivp
from scipy.interpolate import BSpline, RBFInterpolator

from timm_stn.geometry.grid import lattice
from timm_stn.geometry.transforms import (
    compose_matrices,
    get_transform,
    guard,
    invert_matrix,
    map_points_matrix,
    matrix_grid,
    transform_names,
)
from timm_stn.geometry.transforms.zoom import _parts

FAMILIES = {
    'affine': 6, 'translation': 2, 'rotation': 1, 'attention': 3, 'scale_translation': 4, 'similarity': 4,
    'projective': 8, 'tps': 32, 'diffeomorphic': 32, 'zoom': 14, 'affine3d': 12,
}
CHAINS = (
    'rotation+affine', 'affine+projective', 'tps+affine', 'projective+tps:3x5', 'diffeomorphic:3x3+similarity',
    'zoom:3x5+rotation')
ALL = (*FAMILIES, *CHAINS)


def size_of(transform):
    return (5, 7) if transform.ndim == 2 else (3, 4, 5)


def random_params(transform, n=3, scale=0.1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, transform.num_params, dtype=dtype, generator=generator)


def random_points(*shape, seed=1):
    return 2 * rand(*shape, dtype=torch.float64, seed=seed) - 1


# names

def test_registry_lists_every_family():
    assert sorted(transform_names()) == sorted(FAMILIES)
    for name, num_params in FAMILIES.items():
        transform = get_transform(name)
        assert (transform.name, transform.num_params) == (name, num_params)
        assert transform.ndim == (3 if name == 'affine3d' else 2)
        assert transform.linear == (name not in ('tps', 'diffeomorphic', 'zoom'))


def test_lattices_in_names_and_settings():
    assert get_transform('tps:4x5') == get_transform('tps', lattice=(4, 5)) != get_transform('tps')
    assert get_transform('tps', lattice=(4, 4)) == get_transform('tps') == get_transform('tps', lattice=4)
    for numbers in (np.array([4, 5]), torch.tensor([4, 5]), (np.int64(4), 5)):
        assert get_transform('tps', lattice=numbers).name == 'tps:4x5'
    assert get_transform('tps:4x5').num_params == 40
    chain = get_transform('diffeomorphic:3x3+tps:2x2+rotation')
    assert chain.num_params == 18 + 8 + 1
    assert get_transform(chain.name) == chain
    assert get_transform(chain) is chain


def test_chains_are_linear_where_their_parts_are():
    assert get_transform('affine+projective').linear
    assert not get_transform('affine+tps').linear
    assert get_transform('affine3d+affine3d').ndim == 3


@pytest.mark.parametrize('name, settings, words', [
    ('afine', {}, ['afine', 'affine', 'tps']),
    ('affine+', {}, ["joined by '+'", "'affine+'"]),
    ('affine+affine3d', {}, ['dimensions', 'affine+affine3d']),
    ('affine', {'lattice': (4, 4)}, ['affine', 'lattice']),
    ('affine+tps', {'lattice': (4, 4)}, ['affine+tps', 'lattice']),
    ('affine:4x4', {}, ['affine', 'lattice']),
    ('tps:5', {}, ['tps', '2 x 2', '(5,)']),
    ('tps:5xb', {}, ['tps:5xb', 'tps:5x5']),
    ('tps:1x9', {}, ['tps', '2 x 2', '(1, 9)']),
    ('diffeomorphic', {'lattice': (4, 1)}, ['diffeomorphic', '2 x 2', '(4, 1)']),
    ('zoom:1x7', {}, ['zoom', '2 x 2', '(1, 7)']),
    ('zoom:7x33', {}, ['zoom', '32 x 32', '(7, 33)']),
    ('tps', {'lattice': (2.5, 4)}, ['tps', '2 x 2', '(2.5, 4)']),
    ('tps', {'lattice': '45'}, ['tps', '2 x 2', "'45'"]),
    (get_transform('tps'), {'lattice': (4, 4)}, ['tps', 'lattice']),
])
def test_wrong_names_and_settings(name, settings, words):
    with pytest.raises(ValueError) as error:
        get_transform(name, **settings)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('name', ALL)
def test_wrong_shapes(name):
    transform = get_transform(name)
    p = transform.num_params
    for shape in ((p,), (2, p + 1), (2, p, 1)):
        with pytest.raises(ValueError, match=rf'(?s){name.partition(":")[0].partition("+")[0]}.*\(N, {p}\)'):
            transform.grid(torch.zeros(shape), size_of(transform))
    with pytest.raises(ValueError, match='size'):
        transform.grid(torch.zeros(2, p), (4,))
    for shape in ((), (transform.ndim,), (5, 4), (3, 5, transform.ndim)):
        with pytest.raises(ValueError, match='points'):
            transform.map_points(torch.zeros(2, p), torch.zeros(shape))


def test_wrong_matrices():
    for call in (invert_matrix, lambda theta: matrix_grid(theta, (4, 4))):
        with pytest.raises(ValueError, match=r'\(N, 2, 3\).*got \(2, 4, 4\)'):
            call(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match='size'):
        matrix_grid(torch.zeros(2, 3, 4), (4, 4))
    with pytest.raises(ValueError, match='compose'):
        compose_matrices(torch.zeros(2, 3, 4), torch.zeros(2, 2, 3))


# the linear families

@pytest.mark.parametrize('rows, size', [(2, (5, 7)), (2, (1, 1)), (3, (3, 4, 5))])
def test_affine_grid_is_torchs(rows, size):
    theta = torch.randn(3, rows, rows + 1, dtype=torch.float64)
    expected = F.affine_grid(theta, [3, 1, *size], align_corners=False)
    torch.testing.assert_close(matrix_grid(theta, size), expected, rtol=0, atol=1e-12)
    transform = get_transform('affine' if rows == 2 else 'affine3d')
    params = (theta - torch.eye(rows, rows + 1)).flatten(1)
    torch.testing.assert_close(transform.grid(params, size), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name, params, expected', [
    ('translation', [0.3, -0.2], [[1, 0, 0.3], [0, 1, -0.2]]),
    ('rotation', [math.pi / 2], [[0, -1, 0], [1, 0, 0]]),
    ('attention', [-0.5, 0.3, -0.2], [[0.5, 0, 0.3], [0, 0.5, -0.2]]),
    ('scale_translation', [-0.5, 1, 0.3, -0.2], [[0.5, 0, 0.3], [0, 2, -0.2]]),
    ('similarity', [1, math.pi / 2, 0.3, -0.2], [[0, -2, 0.3], [2, 0, -0.2]]),
    ('affine', [1, 2, 3, 4, 5, 6], [[2, 2, 3], [4, 6, 6]]),
    ('projective', [1, 2, 3, 4, 5, 6, 7, 8], [[2, 2, 3], [4, 6, 6], [7, 8, 1]]),
    ('affine3d', list(range(12)), [[1, 1, 2, 3], [4, 6, 6, 7], [8, 9, 11, 11]]),
])
def test_matrices_written_out(name, params, expected):
    matrix = get_transform(name).matrix(torch.tensor([params], dtype=torch.float64))
    torch.testing.assert_close(matrix[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('name', ['rotation', 'similarity'])
def test_rotation_turns_x_towards_y(name):
    transform = get_transform(name)
    params = torch.zeros(1, transform.num_params)
    params[0, 0 if name == 'rotation' else 1] = math.pi / 2
    torch.testing.assert_close(transform.map_points(params, torch.tensor([[1.0, 0.0]])), torch.tensor([[[0.0, 1.0]]]))


def test_projective_is_opencvs():
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float32)
    sources = corners + np.random.default_rng(0).uniform(-0.3, 0.3, (4, 2)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, sources)
    params = torch.from_numpy(matrix - np.eye(3)).flatten()[None, :8]
    transform = get_transform('projective')
    found = transform.map_points(params, torch.from_numpy(corners))[0]
    np.testing.assert_allclose(found, sources, atol=1e-6)
    points = lattice((5, 7), dtype=torch.float64)
    expected = cv2.perspectiveTransform(points.reshape(1, -1, 2).numpy(), matrix).reshape(5, 7, 2)
    np.testing.assert_allclose(transform.grid(params, (5, 7))[0], expected, atol=1e-12)


def test_matrices_compose_and_invert_as_numpys():
    affine, other = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    homography, volume = torch.randn(3, 3, 3, dtype=torch.float64), torch.randn(3, 3, 4, dtype=torch.float64)

    def square(theta):
        last = np.eye(theta.shape[2])[None, -1:].repeat(len(theta), 0)
        return theta.numpy() if theta.shape[1] == theta.shape[2] else np.concatenate([theta, last], 1)

    for first, second in ((affine, other), (affine, homography), (homography, affine), (volume, 2 * volume)):
        product = compose_matrices(first, second)
        assert product.shape == (first if first.shape[1] >= second.shape[1] else second).shape
        np.testing.assert_allclose(square(product), square(first) @ square(second), atol=1e-12)
    for theta in (affine, homography, volume):
        np.testing.assert_allclose(square(invert_matrix(theta)), np.linalg.inv(square(theta)), rtol=1e-9, atol=1e-9)


# thin-plate splines

def lattice_of_control_points(rows, columns):
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing='ij')
    return torch.from_numpy(np.stack([x.ravel(), y.ravel()], -1))


@pytest.mark.parametrize('rows, columns', [(4, 4), (3, 5), (2, 2)])
def test_tps_is_scipys(rows, columns):
    transform = get_transform('tps', lattice=(rows, columns))
    control = lattice_of_control_points(rows, columns).numpy()
    params = random_params(transform, n=2, scale=0.3)
    points = 1.5 * random_points(50, 2)
    for row, mapped in zip(params, transform.map_points(params, points)):
        sources = control + row.reshape(-1, 2).numpy()
        expected = RBFInterpolator(control, sources, kernel='thin_plate_spline', degree=1)(points.numpy())
        np.testing.assert_allclose(mapped, expected, atol=1e-8)
    at_control = transform.map_points(params, torch.from_numpy(control))
    np.testing.assert_allclose(at_control, control + params.reshape(2, -1, 2).numpy(), atol=1e-10)


def test_tps_sources_may_coincide():
    transform = get_transform('tps')
    params = -lattice_of_control_points(4, 4).reshape(1, 32).float()
    torch.testing.assert_close(transform.grid(params, (5, 7)), torch.zeros(1, 5, 7, 2), atol=1e-5, rtol=0)


def test_tps_inverse_points_find_what_is_there_to_find():
    transform = get_transform('tps')
    for dtype, accuracy in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        params, points = random_params(transform, n=8, dtype=dtype), random_points(8, 50, 2).to(dtype)
        found = transform.inverse_points(params, transform.map_points(params, points))
        assert (found - points).abs().max() < accuracy
    folded = transform.inverse_points(random_params(transform, scale=1.0), random_points(50, 2))
    assert folded.shape == (3, 50, 2) and folded.isfinite().all()
    collapsed = -lattice_of_control_points(4, 4).reshape(1, 32).requires_grad_()
    there = transform.inverse_points(collapsed, random_points(50, 2))
    assert there.isfinite().all() and torch.autograd.grad(there.sum(), collapsed)[0].abs().max() < 1


def test_tps_inverse_points_have_the_gradients_of_the_inverse():
    transform = get_transform('tps:2x3')
    params, points = random_params(transform, n=2).requires_grad_(), random_points(2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, x: transform.inverse_points(p, x, iterations=8), (params, points))


# diffeomorphisms

def flow(velocities, points):
    """The flow of the documented field, by SciPy: B-spline basis, tanh bound, adaptive integration."""
    rows, columns = velocities.shape[:2]
    spacing = 2 / (np.array([columns, rows]) - 1)
    coefficients = 0.9 * spacing * np.tanh(velocities / (0.9 * spacing))
    basis = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)

    def weights(x, n, step):
        return np.nan_to_num(basis((x + 1)[:, None] / step - np.arange(n)))

    def velocity(_, flat):
        x, y = flat.reshape(2, -1)
        by, bx = weights(y, rows, spacing[1]), weights(x, columns, spacing[0])
        return np.einsum('pi,pj,ijc->cp', by, bx, coefficients).ravel()

    end = solve_ivp(velocity, (0, 1), points.T.ravel(), rtol=1e-10, atol=1e-12).y[:, -1]
    return end.reshape(2, -1).T


@pytest.mark.parametrize('name, scale, accuracy', [
    ('diffeomorphic', 0.1, 2e-6), ('diffeomorphic:3x5', 0.1, 1e-5), ('diffeomorphic', 0.5, 2e-3)])
def test_diffeomorphic_is_the_flow(name, scale, accuracy):
    transform = get_transform(name)
    params = random_params(transform, n=2, scale=scale)
    points = 1.5 * random_points(60, 2)
    for row, mapped in zip(params, transform.map_points(params, points)):
        expected = flow(row.reshape(transform.rows, transform.columns, 2).numpy(), points.numpy())
        np.testing.assert_allclose(mapped, expected, atol=accuracy)


@pytest.mark.parametrize('scale', [0.1, 1, 1e5])
@pytest.mark.parametrize('name', ['diffeomorphic', 'diffeomorphic:2x3', 'diffeomorphic:7x7'])
def test_diffeomorphic_never_folds(name, scale):
    transform = get_transform(name)
    params = random_params(transform, n=4, scale=scale)
    points = (2 * lattice((70, 70), dtype=torch.float64)).expand(4, 70, 70, 2).clone().requires_grad_()
    mapped = transform.map_points(params, points)
    jacobian = [torch.autograd.grad(row.sum(), points, retain_graph=True)[0] for row in mapped.unbind(-1)]
    assert torch.linalg.det(torch.stack(jacobian, -2)).min() > 0
    assert mapped.abs().max() < 2 + 0.9 * 2


@pytest.mark.parametrize('name, size', [
    ('diffeomorphic', (112, 90)), ('diffeomorphic', (40, 224)), ('diffeomorphic:2x3', (60, 64))])
@pytest.mark.parametrize('scale, accuracy', [(0.1, 5e-6), (1, 1e-4), (1e5, 2e-4)])
def test_diffeomorphic_grids_of_large_images_are_interpolated(name, size, scale, accuracy, monkeypatch):
    transform = get_transform(name)
    _map = type(transform)._map
    exact = random_params(transform, n=4, scale=scale).requires_grad_()
    params = exact.detach().float().requires_grad_()
    moved = []
    monkeypatch.setattr(type(transform), '_map', lambda self, params, points: moved.append(points) or _map(
        self, params, points))
    grid, expected = transform.grid(params, size), transform.grid(exact, size)
    assert 2 * moved[0].numel() <= moved[1].numel() == 2 * math.prod(size)
    assert 0 < (grid - expected).abs().max() < accuracy
    quads = [grid.double().diff(dim=axis).narrow(3 - axis, 0, size[2 - axis] - 1) for axis in (2, 1)]
    assert torch.linalg.det(torch.stack(quads, -1)).min() > 0, 'no pixel is folded'
    weight = rand(*grid.shape, dtype=torch.float64)
    (grid * weight).sum().backward()
    (expected * weight).sum().backward()
    assert (params.grad - exact.grad).abs().max() < 20 * accuracy * exact.grad.abs().max().clamp_min(1)


def test_diffeomorphic_inverse_is_accurate():
    for name, scale, accuracy in (('diffeomorphic', 0.1, 1e-5), ('diffeomorphic', 1, 2e-2)):
        transform = get_transform(name)
        params = random_params(transform, n=8, scale=scale)
        points = random_points(8, 50, 2)
        back = transform.map_points(transform.inverse(params), transform.map_points(params, points))
        assert (back - points).abs().max() < accuracy
        torch.testing.assert_close(transform.inverse_points(params, points), transform.map_points(-params, points))


def test_velocities_vanish_far_outside():
    transform = get_transform('diffeomorphic')
    far = torch.tensor([[2.4, 0.0], [0.0, -1e6]])
    torch.testing.assert_close(transform.map_points(torch.ones(1, 32), far)[0], far, rtol=0, atol=0)


# degenerate parameters

@pytest.mark.parametrize('name, params, center', [
    ('attention', [-1, 0.3, -0.2], [0.3, -0.2]),
    ('scale_translation', [-1, -1, 0.3, -0.2], [0.3, -0.2]),
    ('similarity', [-1, 0.7, 0.3, -0.2], [0.3, -0.2]),
    ('affine', [-1, 0, 0.3, 0, -1, -0.2], [0.3, -0.2]),
])
def test_scale_zero_looks_at_one_point_and_has_the_identity_for_an_inverse(name, params, center):
    transform = get_transform(name)
    params = torch.tensor([params], requires_grad=True)
    torch.testing.assert_close(transform.grid(params, (5, 7)), torch.tensor(center).expand(1, 5, 7, 2))
    points = random_points(1, 6, 2)
    torch.testing.assert_close(transform.inverse_points(params, points), points)
    inverse = transform.inverse(params)
    assert not inverse.any()
    assert not torch.autograd.grad(inverse.sum(), params)[0].any()


@pytest.mark.parametrize('shape', [(2, 3), (3, 3), (3, 4)])
def test_singular_matrices_have_the_identity_for_an_inverse(shape):
    theta = torch.stack([torch.zeros(shape), torch.ones(shape), 1e-7 * torch.eye(*shape), 2 * torch.eye(*shape)])
    theta[2, -1, -1] = 1
    theta.requires_grad_()
    inverse = invert_matrix(theta)
    torch.testing.assert_close(inverse[:3], torch.eye(*shape).expand(3, *shape))
    assert not torch.allclose(inverse[3], torch.eye(*shape))
    gradient, = torch.autograd.grad(inverse.square().sum(), theta)
    assert not gradient[:3].any() and gradient[3].any() and gradient.isfinite().all()


def test_vanishing_denominators_keep_their_sign():
    transform = get_transform('projective')
    params = torch.zeros(2, 8)
    params[:, 6] = -1  # w = 1 - x
    params.requires_grad_()
    points = torch.tensor([[1.0, 0.5], [1 - 1e-7, 0.5], [1 + 1.2e-7, 0.5], [0.5, 0.5]])
    mapped = transform.map_points(params, points)
    torch.testing.assert_close(mapped[0, :, 1], torch.tensor([0.5e6, 0.5e6, -0.5e6, 1.0]))
    assert torch.autograd.grad(mapped.sum(), params)[0].isfinite().all()
    assert transform.grid(params, (1, 7)).isfinite().all()


def test_homographies_without_a_last_entry_are_the_identity():
    transform = get_transform('projective')
    params = torch.tensor([[-1.0, 0, 1, 0, 0, 0, 1, 0]], requires_grad=True)  # x -> 1 / x: its inverse ends in 0
    assert transform.map_points(params, torch.tensor([[0.5, 0.25]]))[0].isfinite().all()
    inverse = transform.inverse(params)
    assert not inverse.any() and not torch.autograd.grad(inverse.sum(), params)[0].any()


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1.01e6, -1e30])
@pytest.mark.parametrize('name', ALL)
def test_broken_samples_are_the_identity_and_only_they(name, bad):
    transform = get_transform(name)
    params = random_params(transform, dtype=torch.float32)
    params[1, -1] = bad
    params.requires_grad_()
    grid = transform.grid(params, size_of(transform))
    torch.testing.assert_close(grid[1], lattice(size_of(transform)))
    good = transform.grid(params[[0, 2]], size_of(transform))
    torch.testing.assert_close(grid[[0, 2]], good)
    gradient, = torch.autograd.grad(grid.square().sum(), params)
    assert not gradient[1].any() and gradient.isfinite().all()
    assert gradient[[0, 2]].any(1).all()


def test_long_chains_stay_finite():
    transform = get_transform('+'.join(['tps'] * 6))
    params = random_params(transform, dtype=torch.float32).sign().mul(9e5).requires_grad_()
    points = random_points(3, 5, 2).float()
    for coordinates in (transform.grid(params, (4, 5)), transform.map_points(params, points),
                        transform.inverse_points(params, points)):
        assert coordinates.isfinite().all()
        assert torch.autograd.grad(coordinates.sum(), params)[0].isfinite().all()


def test_guard_of_matrices():
    theta = torch.full((2, 2, 3), 7.0, dtype=torch.bfloat16)
    theta[1, 0, 0] = math.nan
    expected = torch.stack([torch.full((2, 3), 7.0), torch.eye(2, 3)])
    torch.testing.assert_close(guard(theta), expected)
    torch.testing.assert_close(matrix_grid(theta, (4, 4))[1], lattice((4, 4)))
    torch.testing.assert_close(map_points_matrix(theta, torch.tensor([[0.5, 0.25]]))[1], torch.tensor([[0.5, 0.25]]))
    torch.testing.assert_close(guard(torch.tensor([[1e6, 0.0], [0.0, 1.01e6]])), torch.tensor([[1e6, 0], [0, 0]]))


# gradients

@pytest.mark.parametrize('name', ALL)
def test_gradients(name):
    transform = get_transform(name)
    params = random_params(transform, n=2).requires_grad_()
    points = random_points(2, 3, transform.ndim).requires_grad_()
    fast = transform.num_params > 12  # along random directions only
    assert torch.autograd.gradcheck(transform.map_points, (params, points), fast_mode=fast)
    assert torch.autograd.gradcheck(lambda p: transform.grid(p, size_of(transform)), (params,), fast_mode=fast)
    assert torch.autograd.gradgradcheck(lambda p: transform.grid(p, (2,) * transform.ndim), (params,), fast_mode=True)


@pytest.mark.parametrize('name', [name for name in ALL if get_transform(name).linear])
def test_gradients_of_inverse_points(name):
    transform = get_transform(name)
    params = random_params(transform, n=2).requires_grad_()
    points = random_points(2, 3, transform.ndim).requires_grad_()
    assert torch.autograd.gradcheck(transform.inverse_points, (params, points))


# functions of functions

@pytest.mark.parametrize('name', ALL)
def test_gradients_of_every_sample_are_those_of_a_loop(name):
    transform = get_transform(name)
    params = random_params(transform, n=4)
    params[2, -1] = math.nan
    points = random_points(6, transform.ndim)

    def loss(row):
        grid, mapped = transform.grid(row[None], size_of(transform)), transform.map_points(row[None], points)
        return grid.square().sum() + mapped.square().sum()

    expected = []
    for row in params:
        leaf = row.clone().requires_grad_()
        expected += torch.autograd.grad(loss(leaf), leaf)
    found = torch.vmap(torch.func.grad(loss))(params)
    torch.testing.assert_close(found, torch.stack(expected))
    assert not found[2].any() and found[[0, 1, 3]].any(1).all()
    torch.testing.assert_close(torch.stack([torch.func.grad(loss)(row) for row in params]), found)


@pytest.mark.parametrize('name', ALL)
def test_jacobians_forward_and_reverse_are_autograds(name):
    transform = get_transform(name)
    params, points = random_params(transform, n=1)[0], random_points(2, transform.ndim)

    def outputs(row):
        grid, mapped = transform.grid(row[None], size_of(transform)), transform.map_points(row[None], points)
        return torch.cat([grid.flatten(), mapped.flatten()])

    expected = torch.autograd.functional.jacobian(outputs, params)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(outputs)(params), expected)
    tangent = random_params(transform, n=1, seed=3)[0]
    torch.testing.assert_close(torch.func.jvp(outputs, (params,), (tangent,))[1], expected @ tangent)


@pytest.mark.parametrize('name', ['affine', 'projective', 'tps', 'diffeomorphic', 'affine3d'])
def test_parameters_from_outside_of_a_transformed_function(name):
    transform = get_transform(name)
    params = random_params(transform).requires_grad_()
    weights = random_points(4)
    expected = transform.grid(params, size_of(transform)).square().sum()

    def loss(weight):
        return weight * transform.grid(params, size_of(transform)).square().sum()

    losses = torch.vmap(loss)(weights)
    torch.testing.assert_close(losses, weights * expected)
    found, = torch.autograd.grad(losses.sum(), params)
    torch.testing.assert_close(found, weights.sum() * torch.autograd.grad(expected, params)[0])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(weights), expected.detach().expand(4))


# precision, devices, copies, compilers

@pytest.mark.parametrize('name', ALL)
def test_dtypes(name):
    transform = get_transform(name)
    params = random_params(transform)
    exact = transform.grid(params, size_of(transform))
    assert exact.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = params.to(dtype).requires_grad_()
        grid = transform.grid(rounded, size_of(transform))
        assert grid.dtype == transform.map_points(rounded, torch.zeros(1, transform.ndim)).dtype == torch.float32
        exact = transform.grid(rounded.double(), size_of(transform))
        torch.testing.assert_close(grid, exact.float(), atol=2e-6, rtol=0)
        grid.sum().backward()
        assert rounded.grad.dtype == dtype


@pytest.mark.parametrize('name', ALL)
def test_autocast_changes_nothing(name):
    transform = get_transform(name)
    params = random_params(transform, dtype=torch.float32).requires_grad_()
    points = random_points(3, 6, transform.ndim).float()

    def run():
        grid, mapped = transform.grid(params, size_of(transform)), transform.map_points(params, points)
        back = transform.inverse_points(params, points)
        return grid, mapped, back, *torch.autograd.grad(grid.square().sum() + mapped.square().sum(), params)

    expected = run()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for found, value in zip(run(), expected):
            torch.testing.assert_close(found, value, rtol=0, atol=0)


@pytest.mark.parametrize('name', ALL)
def test_empty_batches_and_shapes_of_points(name):
    transform = get_transform(name)
    n = transform.ndim
    empty = torch.zeros(0, transform.num_params, requires_grad=True)
    grid = transform.grid(empty, size_of(transform))
    assert grid.shape == (0, *size_of(transform), n)
    grid.sum().backward()
    params = random_params(transform)
    shared = random_points(4, n)
    expected = transform.map_points(params, shared.expand(3, 4, n))
    torch.testing.assert_close(transform.map_points(params, shared), expected)
    torch.testing.assert_close(transform.map_points(params, shared[None]), expected)
    torch.testing.assert_close(transform.map_points(params, shared.reshape(1, 2, 2, n)), expected.reshape(3, 2, 2, n))
    for points, shape in ((shared, (4, n)), (shared.reshape(1, 2, 2, n), (2, 2, n))):
        assert transform.map_points(empty, points).shape == (0, *shape)
        assert transform.inverse_points(params, points).shape == (3, *shape)


@pytest.mark.parametrize('name', ALL)
def test_copies(name):
    transform = get_transform(name)
    params = random_params(transform)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform)), get_transform(name)):
        assert other == transform and hash(other) == hash(transform)
        assert torch.equal(other.grid(params, size_of(transform)), transform.grid(params, size_of(transform)))
    assert transform != get_transform('affine' if name != 'affine' else 'rotation')


@pytest.mark.parametrize('name', ALL)
def test_made_under_another_default_device(name):
    with torch.device('meta'):
        transform = get_transform(name)
    params = random_params(transform)
    expected = get_transform(name).grid(params, size_of(transform))
    assert torch.equal(transform.grid(params, size_of(transform)), expected)


class Grid(torch.nn.Module):
    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def forward(self, params):
        return self.transform.grid(params, size_of(self.transform))


@pytest.mark.parametrize('name', ['affine', 'projective', 'tps', 'diffeomorphic', 'tps+affine', 'affine3d'])
def test_compile(name):
    grid = Grid(get_transform(name))
    params = random_params(grid.transform, dtype=torch.float32).requires_grad_()
    expected = grid(params)
    gradient, = torch.autograd.grad(expected.square().sum(), params)
    torch.compiler.reset()
    compiled = torch.compile(grid, fullgraph=True, backend='aot_eager')(params)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled.square().sum(), params)[0], gradient)


@pytest.mark.parametrize('name', ['affine', 'projective', pytest.param('diffeomorphic', marks=pytest.mark.slow), 'tps'])
def test_export(name):
    grid = Grid(get_transform(name))
    params = random_params(grid.transform, dtype=torch.float32)
    params[1, 0] = math.nan  # the guard is part of the program
    torch.testing.assert_close(torch.export.export(grid, (params,)).module()(params), grid(params))


# the zoom

def densities(params, n, points=400_001):
    """Density along an axis as the docstring says it, on a fine lattice: bounded, linear between centres of cells."""
    x = np.linspace(-1, 1, points)
    log = math.log(4) * np.tanh(np.asarray(params) / math.log(4))
    return x, np.interp(x, (2 * np.arange(n) + 1) / n - 1, np.exp(log))


@pytest.mark.parametrize('name, scale', [('zoom', 0.3), ('zoom', 3), ('zoom:2x5', 1), ('zoom:5x2', 30)])
def test_zoom_is_the_inverse_of_the_cumulative_sum_of_its_densities(name, scale):
    zoom = get_transform(name)
    params, points = random_params(zoom, scale=scale), random_points(3, 50, 2)
    back, there = zoom.inverse_points(params, points).numpy(), zoom.map_points(params, points).numpy()
    for i in range(3):
        for axis, own in enumerate((params[i, :zoom.columns], params[i, zoom.columns:])):
            x, density = densities(own, len(own))
            area = cumulative_trapezoid(density, x, initial=0)
            area = 2 * area / area[-1] - 1
            np.testing.assert_allclose(back[i, :, axis], np.interp(points[i, :, axis], x, area), atol=2e-6)
            np.testing.assert_allclose(there[i, :, axis], np.interp(points[i, :, axis], area, x), atol=2e-6)


@pytest.mark.parametrize('scale', [0.1, 1, 100, 1e6])
@pytest.mark.parametrize('name', ['zoom', 'zoom:32x2'])
def test_zoom_shows_all_of_the_image_in_order(name, scale):
    zoom = get_transform(name)
    params = random_params(zoom, n=20, scale=scale).clamp(-1e6, 1e6)
    line = torch.linspace(-1, 1, 3001, dtype=torch.float64)
    mapped = zoom.map_points(params, line[:, None].expand(-1, 2))
    steps = mapped.diff(dim=1)
    assert steps.min() > 0 and (steps.amax(1) / steps.amin(1)).max() <= 16 * (1 + 1e-9), 'densities from 1/4 to 4'
    ends = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64).expand(20, 2, 2)
    torch.testing.assert_close(mapped[:, [0, -1]], ends)
    outside = torch.tensor([[-1.5, 3.0], [2.0, -7.0]], dtype=torch.float64)
    torch.testing.assert_close(zoom.map_points(params, outside), outside.expand(20, 2, 2))


def test_zoom_is_smooth():
    zoom = get_transform('zoom')
    params = random_params(zoom, n=5, scale=1)
    line = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    slopes = zoom.map_points(params, line[:, None].expand(-1, 2)).diff(dim=1) / (line[1] - line[0])
    assert slopes.diff(dim=1).abs().max() < 0.2 < slopes.std(1).min(), 'no jumps'


def test_zoom_comes_back_in_float32_and_has_slopes():
    zoom = get_transform('zoom')
    params, points = random_params(zoom, scale=2), random_points(3, 50, 2)
    there = zoom.map_points(params.float(), points.float())
    torch.testing.assert_close(zoom.inverse_points(params.float(), there), points.float(), rtol=0, atol=2e-6)
    params.requires_grad_()
    points.requires_grad_()
    assert torch.autograd.gradcheck(zoom.map_points, (params, points))
    assert torch.autograd.gradcheck(zoom.inverse_points, (params, points))


def test_zoom_magnifies_where_there_is_mass():
    zoom = get_transform('zoom:4x5')
    mass = torch.zeros(1, 8, 10, dtype=torch.float64)
    mass[0, 6, 2] = 1  # at x = -0.5, y = 0.625
    params = zoom.params_of(mass)
    line = torch.linspace(-0.95, 0.95, 20, dtype=torch.float64)
    slopes = zoom.inverse_points(params, torch.stack([line, line], 1)).diff(dim=1)[0]
    for axis, there in enumerate((-0.5, 0.625)):
        assert slopes[(line[:-1] + 0.05 - there).abs().argmin(), axis] > 2.5 * slopes[:, axis].min()
    assert slopes[:, 0].max() / slopes[:, 0].min() > 2


@pytest.mark.parametrize('mass', [torch.zeros(2, 3, 5), torch.ones(2, 3, 5), torch.full((2, 3, 5), math.inf),
                                  torch.full((2, 3, 5), math.nan)])
def test_zoom_of_no_mass_or_of_the_same_everywhere_is_the_identity(mass):
    torch.testing.assert_close(get_transform('zoom').params_of(mass), torch.zeros(2, 14), atol=1e-6, rtol=0)


def test_the_shares_of_cells_are_those_of_the_maps_columns():
    share = _parts(10, 4, torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(share.sum(1), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(share.sum(0), torch.full((4,), 2.5, dtype=torch.float64))
    torch.testing.assert_close(share[2], torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64))


def test_chains_zoom_with_their_parts_that_can():
    chain = get_transform('rotation+zoom:2x3')
    assert chain.has_density and not get_transform('rotation+tps').has_density
    mass = torch.rand(2, 4, 4)
    params = chain.params_of(mass)
    assert not params[:, :1].any() and torch.equal(params[:, 1:], get_transform('zoom:2x3').params_of(mass))
