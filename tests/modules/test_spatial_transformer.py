"""The module of the paper, against numpy matrix products, torch's own grid sampler and finite differences."""
import copy
import gc
import io
import pickle
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from timm_stn import SpatialTransformer
from timm_stn.geometry.grid import lattice
from timm_stn.geometry.transforms import get_transform
from timm_stn.modules.glimpses import tile_offsets

LINEAR = ['translation', 'rotation', 'attention', 'scale_translation', 'similarity', 'affine', 'projective']
LINEAR.append('affine+similarity')
OTHERS = ['tps', 'diffeomorphic', 'affine+tps']
FAMILIES = LINEAR + OTHERS
MATRICES = {  # independent of the package: increments to 3 x 3
    'affine': lambda p: np.array([[1 + p[0], p[1], p[2]], [p[3], 1 + p[4], p[5]], [0, 0, 1]]),
    'projective': lambda p: np.eye(3) + np.append(p, 0).reshape(3, 3),
    'similarity': lambda p: np.array([
        [(1 + p[0]) * np.cos(p[1]), -(1 + p[0]) * np.sin(p[1]), p[2]],
        [(1 + p[0]) * np.sin(p[1]), (1 + p[0]) * np.cos(p[1]), p[3]],
        [0, 0, 1],
    ]),
}


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(transform='affine', input_size=(12, 10), channels=2, localization='linear', std=0.0, **arguments):
    """A transformer whose theta depends on the image, if `std` is not zero."""
    stn = SpatialTransformer(channels, input_size, transform, localization, **arguments)
    if std:
        regression = stn.localization.regression
        with torch.no_grad():
            regression.weight.copy_(std * randn(*regression.weight.shape, seed=5))
            regression.bias.copy_(std * randn(*regression.bias.shape, seed=6))
    return stn


def constant(params):
    """A localization that gives every image the same parameters."""
    return lambda x: torch.as_tensor(params, dtype=torch.float32).reshape(1, -1).expand(len(x), -1)


def num_params(transform):
    return get_transform(transform).num_params


class TestIdentity:
    @pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 5), (28, 28)])
    @pytest.mark.parametrize('transform', FAMILIES)
    def test_at_the_start(self, transform, size):
        x = randn(2, 3, *size)
        for iterations in (1, 2):
            stn = make(transform, size, 3, localization='conv', iterations=iterations)
            torch.testing.assert_close(stn(x), x, rtol=0, atol=2e-5)

    def test_volumes(self):
        x = randn(2, 1, 4, 5, 6)
        for arguments in ({}, {'antialias': True}, {'padding_mode': 'zeros'}):
            torch.testing.assert_close(make('affine3d', (4, 5, 6), 1, **arguments)(x), x, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('scale', [0.5, 0.3, 1.7])
    @pytest.mark.parametrize('glimpses', [1, 3])
    @pytest.mark.parametrize('transform', FAMILIES)
    def test_zero_parameters_give_the_base(self, transform, glimpses, scale):
        stn, x = make(transform, glimpses=glimpses, scale=scale, iterations=2), randn(2, 2, 12, 10)
        seen = stn(x).reshape(2, glimpses, 2, 12, 10)
        for g, (tx, ty) in enumerate(tile_offsets(glimpses, scale, stn.bound).tolist()):
            theta = torch.tensor([[scale, 0, tx], [0, scale, ty]]).expand(2, 2, 3)
            expected = F.grid_sample(x, F.affine_grid(theta, x.shape, False), 'bilinear', 'border', False)
            torch.testing.assert_close(seen[:, g], expected, rtol=0, atol=2e-4)

    @pytest.mark.parametrize('glimpses', [1, 2])
    @pytest.mark.parametrize('transform', FAMILIES)
    def test_gradients_at_the_start(self, transform, glimpses):
        for scale in (1.0, 0.5):
            stn = make(transform, localization='conv', glimpses=glimpses, scale=scale)
            (stn(randn(3, 2, 12, 10)) * randn(12, 10, seed=1)).sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in stn.parameters())
            regression = stn.localization.regression
            assert (regression.weight.grad.abs().amax(1) > 0).all() and (regression.bias.grad.abs() > 0).all()


class TestGlimpses:
    @pytest.mark.parametrize('bound', [True, False])
    @pytest.mark.parametrize('scale', [0.1, 0.5, 0.8, 0.95])
    @pytest.mark.parametrize('glimpses', [2, 3, 4, 5, 8, 9, 16, 17])
    def test_tiles_are_distinct_and_inside(self, glimpses, scale, bound):
        offsets = tile_offsets(glimpses, scale, bound)
        distances = torch.cdist(offsets, offsets) + 9 * torch.eye(glimpses)
        assert offsets.shape == (glimpses, 2) and distances.min() > 1e-3
        assert offsets.abs().max() <= (1 - scale + 1e-6 if bound else max(1 - scale, 0.25) + 1e-6)

    def test_unbounded_halves_and_quadrants(self):
        assert tile_offsets(1, 0.5, False).tolist() == [[0, 0]]
        assert tile_offsets(2, 0.5, False).tolist() == [[-0.5, 0], [0.5, 0]]
        assert tile_offsets(4, 0.5, False).tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
        assert tile_offsets(16, 0.25, False).abs().unique().tolist() == [0.25, 0.75]

    def test_exact_tiles_are_slices(self):
        x = randn(2, 3, 8, 12)
        halves = make('translation', (8, 12), 3, glimpses=2, scale=0.5, bound=False, size=(4, 6))(x)
        torch.testing.assert_close(halves, torch.stack([x[:, :, 2:6, :6], x[:, :, 2:6, 6:]], 1), rtol=0, atol=1e-5)
        quadrants = make('translation', (8, 12), 3, glimpses=4, scale=0.5, bound=False, size=(4, 6))(x)
        expected = torch.stack([x[:, :, :4, :6], x[:, :, :4, 6:], x[:, :, 4:, :6], x[:, :, 4:, 6:]], 1)
        torch.testing.assert_close(quadrants, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('iterations', [1, 3])
    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    def test_each_is_what_it_would_be_alone(self, transform, iterations):
        """Every glimpse sees its own crop and is moved by its own part of the parameters."""
        x, count = randn(3, 2, 12, 10), num_params(transform)
        stn = make(transform, glimpses=3, scale=0.6, iterations=iterations, std=0.3, bound=False)
        seen, theta = stn.look(x)
        assert seen.shape == (3, 3, 2, 12, 10) and theta.shape[:2] == (3, 3)
        for g in range(3):
            alone = make(transform, scale=0.6, iterations=iterations, bound=False)
            alone.base[0] = stn.base[g]
            part = slice(g * count, (g + 1) * count)
            alone_seen, alone_theta = alone.look(x, lambda image, part=part: stn.localization(image)[:, part])
            torch.testing.assert_close(theta[:, g], alone_theta)
            # theta may differ by 1e-5, that is 1e-4 pixels, and neighbours in the noise differ by about 1
            torch.testing.assert_close(seen[:, g], alone_seen, rtol=0, atol=1e-4)


def extents(theta):
    """Centre and half extent (N, 2) of glimpses, by numpy."""
    theta = theta.detach().double().reshape(-1, *theta.shape[-2:]).numpy()
    corners = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)] + [[0, 0, 1]]).T
    mapped = theta @ corners
    if theta.shape[1] == 3:
        mapped = mapped[:, :2] / np.where(mapped[:, 2:] == 0, 1e-6, mapped[:, 2:])
    return mapped[:, :, 4], np.abs(mapped[:, :, :4] - mapped[:, :, 4:]).max(2)


ANY = st.floats(-3, 3) | st.floats(-1e7, 1e7) | st.sampled_from([0.0, 1e6, -1e6, float('inf'), float('nan')])
SCALES = st.sampled_from([0.1, 0.5, 0.9])
BOUNDED = ['translation', 'rotation', 'attention', 'similarity', 'affine']


class TestBound:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), glimpses=st.integers(1, 5), scale=SCALES, iterations=st.integers(1, 2))
    def test_translated_glimpses_never_leave(self, data, glimpses, scale, iterations):
        stn = make('translation', glimpses=glimpses, scale=scale, iterations=iterations)
        params = data.draw(st.lists(ANY, min_size=2 * glimpses, max_size=2 * glimpses))
        center, half = extents(stn.regress(randn(1, 2, 12, 10), constant(params)))
        assert np.allclose(half, scale, atol=1e-5)
        assert (np.abs(center) + half <= 1 + 2e-3).all()

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), transform=st.sampled_from(BOUNDED), scale=SCALES)
    def test_no_glimpse_leaves_that_fits(self, data, transform, scale):
        """One that is larger than the image is centred."""
        count = num_params(transform)
        params = data.draw(st.lists(ANY, min_size=count, max_size=count))
        center, half = extents(make(transform, scale=scale).regress(randn(1, 2, 12, 10), constant(params)))
        assert (np.abs(center) <= np.maximum(1 - half, 0) + 2e-3 + 1e-6 * half).all()

    @settings(max_examples=40, deadline=None)
    @given(params=st.lists(st.floats(-2, 2), min_size=8, max_size=8))
    def test_projective(self, params):
        center, half = extents(make('projective', scale=0.4).regress(randn(1, 2, 12, 10), constant(params)))
        assert (np.abs(center) <= np.maximum(1 - half, 0) + 2e-3 + 1e-4 * half).all()

    def test_volumes(self):
        stn = make('affine3d', (4, 5, 6), 1, scale=0.5)
        params = torch.zeros(3, 4)
        params[:, 3] = torch.tensor([100.0, -100.0, 0.3])
        theta = stn.regress(randn(1, 1, 4, 5, 6), constant(params))
        torch.testing.assert_close(theta[0, :, 3], torch.tensor([0.5, -0.5, 0.5 * np.tanh(0.3)], dtype=torch.float32))

    @pytest.mark.parametrize(('glimpses', 'scale'), [(1, 0.5), (2, 0.5), (4, 0.3), (2, 0.9)])
    def test_monotone_and_reaches_every_inside_centre(self, glimpses, scale):
        stn = make('translation', glimpses=glimpses, scale=scale)
        shifts = torch.linspace(-60, 60, 24_001)[:, None].expand(-1, 2 * glimpses)
        center = stn.regress(torch.zeros(len(shifts), 2, 1, 1), lambda x: shifts)[..., 2].reshape(-1, glimpses, 2)
        steps = center.diff(dim=0)
        assert (steps > -1e-6).all() and (steps[11_950:12_050] > 0).all()
        assert steps.max() < 0.02 and (center[0] < scale - 1 + 1e-3).all() and (center[-1] > 1 - scale - 1e-3).all()

    @pytest.mark.parametrize('transform', BOUNDED + ['projective'])
    def test_slope_at_the_start(self, transform):
        """A glimpse in the middle starts exactly as if it were not bounded, in float64."""
        x = torch.zeros(1, 2, 12, 10, dtype=torch.float64)
        start = torch.zeros(1, num_params(transform), dtype=torch.float64)

        def slopes(bound):
            stn = make(transform, scale=0.5, bound=bound)
            return torch.autograd.functional.jacobian(lambda params: stn.regress(x, lambda _: params), start)

        assert slopes(False).any()
        torch.testing.assert_close(slopes(True), slopes(False), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize('glimpses', [2, 4, 9])
    def test_slope_of_tiled_translations(self, glimpses):
        x, eps = torch.zeros(1, 2, 12, 10, dtype=torch.float64), 1e-5
        start = torch.zeros(1, 2 * glimpses, dtype=torch.float64)
        stn = make('translation', glimpses=glimpses, scale=0.5)
        ahead, behind = (stn.regress(x, lambda _, e=e: start + e)[..., 2] for e in (eps, -eps))
        torch.testing.assert_close((ahead - behind) / (2 * eps), torch.full_like(ahead, 0.5), rtol=1e-6, atol=1e-6)

    def test_a_refinement_by_zero_changes_nothing(self):
        x, calls = randn(2, 2, 12, 10), []

        def first_only(image):
            calls.append(image)
            return torch.full((len(image), 4), 0.8 if len(calls) == 1 else 0.0)

        one = make('translation', glimpses=2, scale=0.5).regress(x, constant([0.8] * 4))
        three = make('translation', glimpses=2, scale=0.5, iterations=3).regress(x, first_only)
        assert len(calls) == 3
        torch.testing.assert_close(three, one)

    def test_is_on_below_scale_1(self):
        assert [make(scale=s).bound for s in (0.5, 1.0, 2.0)] == [True, False, False]
        assert not make(scale=0.5, bound=False).bound and make(bound=True).bound
        assert not make('tps', scale=0.5).bound


class Successive:
    """Gives other random parameters at every call, and keeps what it was shown."""

    def __init__(self, width, std):
        self.width, self.std, self.seen, self.given = width, std, [], []

    def __call__(self, x):
        self.seen.append(x)
        self.given.append(self.std * randn(len(x), self.width, seed=len(self.seen)))
        return self.given[-1]

    def of(self, image, glimpse, glimpses):
        """Parameters of one glimpse of one image, one row an iteration."""
        count = self.width // glimpses
        rows = [self.given[0][image], *(given[image * glimpses + glimpse] for given in self.given[1:])]
        return [row[glimpse * count:(glimpse + 1) * count] for row in rows]


class TestIterations:
    @pytest.mark.parametrize('glimpses', [1, 3])
    @pytest.mark.parametrize('transform', MATRICES)
    def test_matrices_compose(self, transform, glimpses):
        stn, x = make(transform, glimpses=glimpses, scale=0.7, iterations=3, bound=False), randn(2, 2, 12, 10)
        localize = Successive(glimpses * num_params(transform), 0.2)
        theta = stn.regress(x, localize)
        theta = theta.reshape(2, glimpses, *theta.shape[-2:])
        for n in range(2):
            for g in range(glimpses):
                expected = np.diag([0.7, 0.7, 1.0])
                expected[:2, 2] = tile_offsets(glimpses, 0.7, False)[g]
                for params in localize.of(n, g, glimpses):
                    expected = expected @ MATRICES[transform](params.double().numpy())
                assert np.allclose(theta[n, g], expected[:theta.shape[2]], atol=1e-5)

    @pytest.mark.parametrize('glimpses', [1, 2])
    @pytest.mark.parametrize('transform', OTHERS)
    def test_maps_without_a_matrix_nest(self, transform, glimpses):
        family, x = get_transform(transform), randn(2, 2, 12, 10)
        stn = make(transform, glimpses=glimpses, scale=0.7, iterations=3)
        localize = Successive(glimpses * family.num_params, 0.1)
        seen, theta = stn.look(x, localize)
        seen, theta = seen.reshape(2, glimpses, *x.shape[1:]), theta.reshape(2, glimpses, -1)
        for n in range(2):
            for g in range(glimpses):
                points = lattice((12, 10))[None]
                for params in reversed(localize.of(n, g, glimpses)):
                    points = family.map_points(params[None], points)
                points = 0.7 * points + tile_offsets(glimpses, 0.7, False)[g]
                expected = F.grid_sample(x[n:n + 1], points, 'bilinear', 'border', False)[0]
                torch.testing.assert_close(seen[n, g], expected, rtol=0, atol=1e-4)
                mapped = stn.map_points(theta[n, g][None], lattice((12, 10))[None])
                torch.testing.assert_close(mapped, points, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('transform', ['affine', 'tps', 'affine+tps'])
    def test_each_looks_through_the_one_before(self, transform):
        x, count = randn(2, 2, 12, 10), num_params(transform)
        localize = Successive(count, 0.1)
        make(transform, scale=0.7, iterations=3, size=(6, 5)).look(x, localize)
        assert len(localize.seen) == 3 and localize.seen[0] is x
        for iterations in (1, 2):
            again = Successive(count, 0.1)
            expected, _ = make(transform, scale=0.7, iterations=iterations, size=(6, 5)).look(x, again)
            torch.testing.assert_close(localize.seen[iterations], expected)

    def test_pixels_are_sampled_once(self):
        """A round trip of two opposite rotations gives the image, not one blurred twice."""
        x = randn(1, 2, 16, 16)
        params = iter([0.3, -0.3])
        stn = make('rotation', (16, 16), iterations=2)
        seen, _ = stn.look(x, lambda image: torch.full((len(image), 1), next(params)))
        torch.testing.assert_close(seen, x, rtol=0, atol=1e-4)


class TestOutput:
    @pytest.mark.parametrize(('size', 'expected'), [(7, (7, 7)), ((5, 9), (5, 9)), ([5, 9], (5, 9)), (None, (12, 10))])
    @pytest.mark.parametrize('transform', ['affine', 'tps'])
    def test_size(self, transform, size, expected):
        x = randn(2, 2, 12, 10)
        seen = make(transform, size=size)(x)
        theta = torch.eye(2, 3).expand(2, 2, 3)
        grid = F.affine_grid(theta, (2, 2, *expected), False)
        torch.testing.assert_close(seen, F.grid_sample(x, grid, 'bilinear', 'border', False), rtol=0, atol=2e-5)
        assert make(transform, size=size, glimpses=2)(x).shape == (2, 2, 2, *expected)

    def test_another_input_size_works(self):
        assert make(localization='conv')(randn(2, 2, 31, 17)).shape == (2, 2, 31, 17)

    def test_sampling_options_reach_the_sampler(self):
        x, away = rand(1, 2, 12, 10), constant([0, 0, 5, 0, 0, 0])
        seen, _ = make(padding_mode='fill', fill=(0.25, -3.0)).look(x, away)
        torch.testing.assert_close(seen, torch.tensor([0.25, -3.0])[None, :, None, None].expand(1, 2, 12, 10))
        assert not make(padding_mode='zeros').look(x, away)[0].any()
        nearest, _ = make(mode='nearest').look(x, constant([0.1, 0.2, 0.1, 0, 0.1, 0]))
        assert np.isin(nearest.numpy(), x.numpy()).all()

    @pytest.mark.parametrize('glimpses', [1, 2])
    def test_channels_last(self, glimpses):
        x = randn(2, 3, 12, 10)
        stn = make(channels=3, std=0.3, glimpses=glimpses)
        seen = stn(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(seen, stn(x), rtol=0, atol=1e-6)
        if glimpses == 1:
            assert seen.is_contiguous(memory_format=torch.channels_last) and not seen.is_contiguous()

    @pytest.mark.parametrize(
        ('dtype', 'tolerance'), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2), (torch.float64, 1e-5)])
    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    def test_dtypes(self, transform, dtype, tolerance):
        stn, x = make(transform, glimpses=2, scale=0.35, std=0.05), rand(2, 2, 12, 10)
        exact, exact_theta = stn.look(x)
        seen, theta = stn.to(dtype).look(x.to(dtype))
        assert seen.dtype == dtype and theta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(theta.float(), exact_theta, rtol=0, atol=tolerance)
        torch.testing.assert_close(seen.float(), exact, rtol=0, atol=10 * tolerance)

    def test_the_base_is_not_rounded_to_half_precision(self):
        for cast in (nn.Module.bfloat16, nn.Module.half, nn.Module.double):
            stn = cast(make(glimpses=2, scale=0.3))
            assert stn.base.dtype == torch.float32 and torch.equal(stn.base, make(glimpses=2, scale=0.3).base)

    @pytest.mark.parametrize('transform', FAMILIES)
    def test_autocast(self, transform):
        stn, x = make(transform, std=0.2, scale=0.5, iterations=2), rand(2, 2, 12, 10)
        exact, exact_theta = stn.look(x)
        with torch.autocast('cpu', torch.bfloat16):
            seen, theta = stn.look(x)
        assert theta.dtype == seen.dtype == torch.float32
        torch.testing.assert_close(theta, exact_theta, rtol=0, atol=1e-6)
        torch.testing.assert_close(seen, exact, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('glimpses', [1, 2])
    @pytest.mark.parametrize('transform', [*FAMILIES, 'affine3d'])
    def test_empty_batch(self, transform, glimpses):
        size = (12, 10) if transform != 'affine3d' else (5, 6, 7)
        stn = make(transform, size, localization='conv', glimpses=glimpses, scale=0.5, iterations=2, antialias=True)
        seen = stn(torch.zeros(0, 2, *size, requires_grad=True))
        assert seen.shape == ((0, 2, *size) if glimpses == 1 else (0, 2, 2, *size))
        seen.sum().backward()

    @pytest.mark.parametrize('iterations', [1, 2])
    @pytest.mark.parametrize('bad', [float('nan'), float('inf')])
    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    def test_a_bad_image_is_seen_untransformed(self, transform, bad, iterations):
        stn, x = make(transform, std=0.2, glimpses=2, scale=0.5, iterations=iterations), rand(3, 2, 12, 10)
        fine = stn.look(x)[1]
        x[1, 0, 3, 4] = bad
        seen, theta = stn.look(x)
        untouched = stn.look(x, constant(torch.zeros(2 * num_params(transform))))[1]
        assert theta.isfinite().all() and seen[[0, 2]].isfinite().all()
        torch.testing.assert_close(theta[1], untouched[1])
        torch.testing.assert_close(theta[[0, 2]], fine[[0, 2]])
        theta.sum().backward()

    @pytest.mark.parametrize('transform', FAMILIES)
    def test_bad_theta_gets_no_gradient(self, transform):
        params = torch.zeros(3, num_params(transform))
        params[0, 0], params[1, -1] = float('nan'), 1e9
        params.requires_grad_()
        seen, _ = make(transform, scale=0.7).look(randn(3, 2, 12, 10), lambda x: params)
        (seen * randn(12, 10, seed=1)).sum().backward()
        assert seen.isfinite().all() and params.grad.isfinite().all()
        assert not params.grad[:2].any() and params.grad[2].any()


class TestGradients:
    @pytest.mark.parametrize('arguments', [
        {'transform': 'affine'},
        {'transform': 'projective', 'iterations': 2},
        {'transform': 'translation', 'scale': 0.6, 'glimpses': 2},
        {'transform': 'tps', 'scale': 0.8, 'iterations': 2},
        {'transform': 'diffeomorphic', 'size': (3, 2)},
    ])
    def test_image(self, arguments):
        """Through the pixels and through what the localization network sees, at a generic theta, in float64."""
        size = arguments.pop('size', None)
        stn = SpatialTransformer(1, (5, 4), localization='linear', localization_size=3, size=size, **arguments).double()
        stn.eval()  # in training the localization network's gradient is another one: test_standardize.py
        regression = stn.localization.regression
        with torch.no_grad():
            regression.weight.copy_(0.3 * randn(*regression.weight.shape, seed=5))
            regression.bias.copy_(0.05 * randn(*regression.bias.shape, seed=6))
        x = randn(1, 1, 5, 4, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(stn, (x,))

    def test_parameters(self):
        stn = make('affine', (5, 4), 1, std=0.3, scale=0.6, lr_scale=1.0).double().eval()
        x = randn(2, 1, 5, 4, dtype=torch.float64)
        bias = stn.localization.regression.bias

        def loss(value):
            return torch.func.functional_call(stn, {'localization.regression.bias': value}, x)

        assert torch.autograd.gradcheck(loss, bias.detach().clone().requires_grad_())


def ramp(size, dtype=torch.float32):
    """An image of its own coordinates (1, 2, H, W), which bilinear sampling reads exactly between the outer centres."""
    return lattice(size, dtype=dtype).movedim(-1, 0)[None]


class TestPlaces:
    @pytest.mark.parametrize('iterations', [1, 2])
    @pytest.mark.parametrize('transform', FAMILIES)
    def test_points_are_where_pixels_come_from(self, transform, iterations):
        stn = make(transform, (24, 20), scale=0.5, iterations=iterations, size=(6, 7))
        seen, theta = stn.look(ramp((24, 20)), constant(0.1 * randn(num_params(transform), seed=2)))
        mapped = stn.map_points(theta, lattice((6, 7))[None])
        assert mapped.abs().max() < 0.95, 'nothing is taken from the border'
        torch.testing.assert_close(seen.movedim(1, -1), mapped, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('transform', FAMILIES)
    def test_unwarp_restores_what_was_seen(self, transform):
        image = ramp((24, 20))
        stn = make(transform, (24, 20), scale=0.5, size=(40, 40))
        seen, theta = stn.look(image, constant(0.08 * randn(num_params(transform), seed=2)))
        back = stn.unwarp(seen, theta, (24, 20))
        shown = stn.unwarp(torch.ones(1, 1, 40, 40), theta, (24, 20))[0, 0] == 1
        assert 0.1 < shown.float().mean() < 0.6
        torch.testing.assert_close(back[0][:, shown], image[0][:, shown], rtol=0, atol=2e-3)
        assert (stn.unwarp(torch.ones(1, 1, 40, 40), theta, (24, 20)) == 0).float().mean() > 0.3, 'the rest is empty'

    def test_unwarp_of_labels(self):
        stn = make('translation', (8, 8), scale=0.5, bound=False, size=4)
        theta = stn.regress(torch.zeros(1, 2, 8, 8), constant([-0.5, 0.5]))
        labels = torch.arange(1, 17).reshape(1, 1, 4, 4)
        expected = F.pad(labels, (1, 3, 3, 1))
        assert torch.equal(stn.unwarp(labels, theta, (8, 8), mode='nearest'), expected)


class TestModule:
    def test_state_dict(self):
        stn = make(glimpses=2, scale=0.5)
        stn(randn(1, 2, 12, 10))
        of = dict(standardize=('running_mean', 'running_var', 'num_batches_tracked'),
                  regression=('weight', 'bias', 'lr_scale_nano'))
        assert list(stn.state_dict()) == [f'localization.{part}.{n}' for part, names in of.items() for n in names]
        assert all(k.startswith('localization.') for k in make(localization='conv').state_dict())

    @pytest.mark.parametrize('transform', ['affine', 'tps'])
    def test_copies_use_their_own_parameters(self, transform):
        stn, x = make(transform, std=0.2, glimpses=2, scale=0.5, iterations=2), randn(2, 2, 12, 10)
        seen = stn(x)
        file = io.BytesIO()
        torch.save(stn, file)
        file.seek(0)
        for other in (copy.deepcopy(stn), pickle.loads(pickle.dumps(stn)), torch.load(file, weights_only=False)):
            assert torch.equal(other(x), seen)
            theta = stn.last_theta.clone()
            nn.init.zeros_(other.localization.regression.weight)
            assert not torch.equal(other(x), seen)
            assert torch.equal(stn(x), seen) and torch.equal(stn.last_theta, theta)

    def test_last_theta(self):
        stn, x = make(std=0.2, glimpses=2, scale=0.5), randn(2, 2, 12, 10)
        assert stn.last_theta is None
        stn(x)
        assert stn.last_theta.grad_fn is None and not stn.last_theta.requires_grad
        assert torch.equal(stn.last_theta, stn.regress(x)) and stn.last_theta.shape == (2, 2, 2, 3)

    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps', 'diffeomorphic'])
    def test_keeps_nothing_alive(self, transform):
        """No graph and no cycle: the image is freed with the output, without the garbage collector."""
        stn, x = make(transform, std=0.1, glimpses=2, scale=0.5, iterations=2), randn(2, 2, 12, 10).requires_grad_()
        image = x * 1
        gone = weakref.ref(image)
        gc.collect()
        gc.disable()
        try:
            seen = stn(image)
            seen.sum().backward()
            del image, seen
            assert gone() is None
        finally:
            gc.enable()

    def test_own_localization(self):
        stn = SpatialTransformer(2, (12, 10), localization=nn.Sequential(nn.Flatten(), nn.Linear(240, 6)))
        seen, theta = stn.look(randn(2, 2, 12, 10))
        params = stn.localization(randn(2, 2, 12, 10)).reshape(2, 2, 3)
        torch.testing.assert_close(theta, torch.eye(2, 3) + params)
        assert seen.shape == (2, 2, 12, 10)

    def test_leaves_the_meta_device(self):
        with torch.device('meta'):
            stn = make('affine', glimpses=2, scale=0.5)
        assert stn(torch.zeros(3, 2, 12, 10, device='meta')).shape == (3, 2, 2, 12, 10)
        stn = stn.to_empty(device='cpu')
        stn.base.zero_()
        stn.init_non_persistent_buffers()
        assert torch.equal(stn.base, make(glimpses=2, scale=0.5).base)

    def test_coordinates_are_float32_whatever_the_default_dtype(self):
        expected = make(glimpses=3, scale=0.3).base
        torch.set_default_dtype(torch.bfloat16)
        try:
            stn = make(glimpses=3, scale=0.3)
            assert stn.to('cpu').base.dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(stn.base, expected) and stn.localization.regression.weight.dtype == torch.bfloat16

    def test_default_devices_do_not_move_the_base(self):
        stn = make(glimpses=2, scale=0.5)
        expected = stn.base.clone()
        with torch.device('meta'):
            stn.float()
            assert torch.equal(tile_offsets(2, 0.5, True), expected[:, :, 2])
        assert torch.equal(stn.base, expected)

    def test_repr_names_the_settings(self):
        assert 'transform=tps, size=(6, 6), glimpses=2, scale=0.5' in repr(make('tps', size=6, glimpses=2, scale=0.5))

    @pytest.mark.parametrize(('arguments', 'error', 'message'), [
        ({'transform': 'afine'}, ValueError, "'afine'.*did you mean 'affine'"),
        ({'input_size': 12}, ValueError, "input_size must be 2 positive integers for transform 'affine', got 12"),
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
        ({'lr_scale': -1}, ValueError, 'lr_scale must be .*got -1'),
        ({'penalty': -1}, ValueError, 'penalty must be a number, 0 or more, got -1'),
        ({'penalty': float('nan')}, ValueError, 'penalty must be a number, 0 or more, got nan'),
        ({'penalty': '1'}, ValueError, "penalty must be a number, 0 or more, got '1'"),
        ({'freeze_steps': -1}, ValueError, 'freeze_steps must be an integer, 0 or more, got -1'),
        ({'freeze_steps': 1.5}, ValueError, 'freeze_steps must be an integer, 0 or more, got 1.5'),
        ({'hiden': 3}, TypeError, "'conv' takes channels and hidden, got hiden=3"),
        ({'localization': nn.Identity(), 'hidden': 3}, TypeError, r"takes no settings, got \['hidden'\]"),
    ])
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            SpatialTransformer(**{'in_chans': 2, 'input_size': (12, 10), **arguments})


@pytest.mark.parametrize('x,got', [
    (torch.rand(2, 8, 48), r'shape \(2, 8, 48\)'), (dict(patches=torch.rand(2, 8, 48)), 'a dict')])
def test_what_is_no_batch_of_images_is_refused(x, got):
    with pytest.raises(ValueError, match=rf'looks at \(N, C, H, W\), got {got}'):
        SpatialTransformer(3, (32, 32))(x)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('arguments', [
    {}, {'transform': 'tps'}, {'glimpses': 2, 'scale': 0.5, 'size': 6}, {'transform': 'projective', 'iterations': 2},
    {'mode': 'bicubic', 'padding_mode': 'reflection'}, {'mode': 'nearest', 'padding_mode': 'fill', 'fill': 0.5},
    {'antialias': True, 'scale': 0.9, 'size': 3},
])
def test_vmap_is_a_loop(arguments, memory_format):
    stn = make(std=0.2, **arguments)
    batches = torch.stack([randn(2, 2, 12, 10, seed=seed).contiguous(memory_format=memory_format) for seed in range(3)])
    expected = torch.stack([stn(x) for x in batches])
    kept = stn.last_theta
    torch.testing.assert_close(torch.vmap(stn)(batches), expected)
    assert stn.last_theta is kept and torch.equal(copy.deepcopy(stn).last_theta, kept)
