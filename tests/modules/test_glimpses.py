"""Where parallel glimpses start, and how they are kept inside the image, against numpy."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import constant, create, num_params, randn, transformer

from timm_stn.modules.glimpses import jittered, tile_offsets


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


HOMOGRAPHIES = ('projective', 'rotation+projective', 'projective+affine')
FAMILIES = ['translation', 'rotation', 'attention', 'scale_translation', 'similarity', 'affine', *HOMOGRAPHIES]
CORNERS = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)]).T
BOUNDED = ['translation', 'rotation', 'attention', 'similarity', 'affine']


class TestBound:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), glimpses=st.integers(1, 5), scale=SCALES, iterations=st.integers(1, 2))
    def test_translated_glimpses_never_leave(self, data, glimpses, scale, iterations):
        stn = transformer('translation', glimpses=glimpses, scale=scale, iterations=iterations)
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
        center, half = extents(transformer(transform, scale=scale).regress(randn(1, 2, 12, 10), constant(params)))
        assert (np.abs(center) <= np.maximum(1 - half, 0) + 2e-3 + 1e-6 * half).all()

    @settings(max_examples=40, deadline=None)
    @given(params=st.lists(st.floats(-2, 2), min_size=8, max_size=8))
    def test_projective(self, params):
        center, half = extents(transformer('projective', scale=0.4).regress(randn(1, 2, 12, 10), constant(params)))
        assert (np.abs(center) <= np.maximum(1 - half, 0) + 2e-3 + 1e-4 * half).all()

    @settings(max_examples=300, deadline=None)
    @given(
        data=st.data(), transform=st.sampled_from(FAMILIES), scale=st.sampled_from([0.1, 0.9, 1.0, 2.0]),
        iterations=st.integers(1, 2), glimpses=st.integers(1, 2))
    def test_corners_are_inside_whatever_is_regressed(self, data, transform, scale, iterations, glimpses):
        """And nothing between them is at infinity: the denominators of a homography have one sign."""
        stn = transformer(transform, scale=scale, bound=True, iterations=iterations, glimpses=glimpses)
        count = num_params(transform) * glimpses
        params = data.draw(st.lists(ANY, min_size=count, max_size=count))
        theta = stn.regress(randn(1, 2, 12, 10), constant(params)).double()
        rows = theta.reshape(-1, *theta.shape[-2:]).numpy() @ CORNERS
        if transform in HOMOGRAPHIES:
            assert ((rows[:, 2] > 0).all(1) | (rows[:, 2] < 0).all(1)).all()
            rows = rows[:, :2] / rows[:, 2:]
        assert (np.abs(rows) <= 1 + 1e-5).all()

    @pytest.mark.parametrize(('transform', 'params', 'expected'), [
        ('attention', [-6.3, 0.0, 0.0], [-1, 0, 0, 0, -1, 0]),
        ('attention', [0.2, 0.5, -0.5], [1, 0, 0, 0, 1, 0]),
        ('scale_translation', [1.0, -0.75, 9.0, 9.0], [1, 0, 0, 0, 0.125, 0.875]),
        ('rotation', [np.pi / 4], [0.5, -0.5, 0, 0.5, 0.5, 0]),
        ('affine', [0, 0, 0, 2, 0, 0], [1 / 3, 0, 0, 2 / 3, 1 / 3, 0]),
    ])
    def test_what_is_larger_than_the_image_is_shrunk_in_proportion(self, transform, params, expected):
        theta = transformer(transform, bound=True).regress(randn(1, 2, 12, 10), constant(params))
        torch.testing.assert_close(theta.flatten(), torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)

    def test_a_loss_makes_a_glimpse_that_is_too_large_smaller(self):
        params = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
        stn = transformer('attention', scale=0.5)
        stn.regress(randn(1, 2, 12, 10), lambda x: params)[0, 0, 0].backward()
        assert params.grad[0, 0] > 0

    def test_volumes(self):
        stn = transformer('affine3d', (4, 5, 6), 1, scale=0.5)
        params = torch.zeros(3, 4)
        params[:, 3] = torch.tensor([100.0, -100.0, 0.3])
        theta = stn.regress(randn(1, 1, 4, 5, 6), constant(params))
        torch.testing.assert_close(theta[0, :, 3], torch.tensor([0.5, -0.5, 0.5 * np.tanh(0.3)], dtype=torch.float32))

    @pytest.mark.parametrize(('glimpses', 'scale'), [(1, 0.5), (2, 0.5), (4, 0.3), (2, 0.9)])
    def test_monotone_and_reaches_every_inside_centre(self, glimpses, scale):
        stn = transformer('translation', glimpses=glimpses, scale=scale)
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
            stn = transformer(transform, scale=0.5, bound=bound)
            return torch.autograd.functional.jacobian(lambda params: stn.regress(x, lambda _: params), start)

        assert slopes(False).any()
        torch.testing.assert_close(slopes(True), slopes(False), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize('glimpses', [2, 4, 9])
    def test_slope_of_tiled_translations(self, glimpses):
        x, eps = torch.zeros(1, 2, 12, 10, dtype=torch.float64), 1e-5
        start = torch.zeros(1, 2 * glimpses, dtype=torch.float64)
        stn = transformer('translation', glimpses=glimpses, scale=0.5)
        ahead, behind = (stn.regress(x, lambda _, e=e: start + e)[..., 2] for e in (eps, -eps))
        torch.testing.assert_close((ahead - behind) / (2 * eps), torch.full_like(ahead, 0.5), rtol=1e-6, atol=1e-6)

    def test_a_refinement_by_zero_changes_nothing(self):
        x, calls = randn(2, 2, 12, 10), []

        def first_only(image):
            calls.append(image)
            return torch.full((len(image), 4), 0.8 if len(calls) == 1 else 0.0)

        one = transformer('translation', glimpses=2, scale=0.5).regress(x, constant([0.8] * 4))
        three = transformer('translation', glimpses=2, scale=0.5, iterations=3).regress(x, first_only)
        assert len(calls) == 3
        torch.testing.assert_close(three, one)

    def test_is_on_below_scale_1(self):
        assert [transformer(scale=s).bound for s in (0.5, 1.0, 2.0)] == [True, False, False]
        assert not transformer(scale=0.5, bound=False).bound and transformer(bound=True).bound
        assert not transformer('tps', scale=0.5).bound


class TestJitter:
    @settings(max_examples=30, deadline=None)
    @given(
        seed=st.integers(0, 999), share=st.floats(0.01, 1), scale=SCALES, bound=st.booleans(), d=st.integers(2, 3))
    def test_squares_stay_near_and_inside(self, seed, share, scale, bound, d):
        torch.manual_seed(seed)
        base = torch.cat([scale * torch.eye(d).expand(50, d, d), torch.full((50, d, 1), 0.5 * (1 - scale))], 2)
        moved = jittered(base, share, bound)
        half, center = moved[:, 0, 0], moved[:, :, -1]
        assert torch.equal(moved[:, :, :d], half[:, None, None] * torch.eye(d))
        assert (half <= scale * (1 + share) * 1.001).all() and (half >= scale / (1 + share) * 0.999).all()
        reach = 0.8 * (1 - half) if bound else torch.ones_like(half)
        before = torch.minimum(base[:, :, -1], reach[:, None])  # where there is no more room, it stays at the edge
        assert ((center - before).abs() <= share * half[:, None] * 1.001 + 1e-6).all()
        assert half.std() > 0 and center.std(0).min() > 0
        assert not bound or (center.abs() + half[:, None] <= 1 + 1e-6).all()

    def test_in_training_only(self):
        x, kwargs = randn(4, 2, 12, 10), dict(glimpses=2, scale=0.5)
        stn, still = transformer('translation', jitter=0.3, **kwargs), transformer('translation', **kwargs)
        zero = constant([0.0] * 4)
        assert torch.equal(stn.eval().regress(x, zero), still.eval().regress(x, zero))
        assert not torch.allclose(stn.train().regress(x, zero), still.train().regress(x, zero), atol=1e-3)
        assert torch.equal(still.train().regress(x, zero), still.eval().regress(x, zero))
        torch.manual_seed(0)
        one = stn.regress(x, zero)
        torch.manual_seed(0)
        assert torch.equal(stn.regress(x, zero), one) and not torch.equal(stn.regress(x, zero), one)

    def test_every_family_starts_there(self):
        x = randn(4, 2, 12, 10)
        for family in ('affine', 'projective', 'tps'):
            stn = transformer(family, scale=0.5, jitter=0.5).train()
            theta = stn.regress(x)
            centers = stn.map_points(theta, torch.zeros(1, 2))
            assert centers.std(0).min() > 0.01

    @pytest.mark.parametrize('given, words', [
        (dict(jitter=2.0, scale=0.5), 'jitter must be a number from 0 to 1, got 2.0'),
        (dict(jitter=0.5), 'jitter must be 0 where scale is not below 1: it is for glimpses; got 0.5, 1.0')])
    def test_wrong_values(self, given, words):
        with pytest.raises(ValueError, match=words):
            transformer('affine', **given)
        with pytest.raises(ValueError, match='stn_' + words):
            create(**{f'stn_{k}': v for k, v in given.items()})

    def test_is_that_of_glimpses_of_the_image(self):
        net = create(stn_stages=('input', 1), stn_jitter=0.5, stn_scale=0.5)
        assert [stn.jitter for stn in net.spatial_transformers().values()] == [0.5, 0.0]
