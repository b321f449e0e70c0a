"""The module of the paper, against numpy matrix products, torch's own grid sampler and finite differences."""
import copy
import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers import PLANAR, constant, copies, num_params, rand, randn, transformer
from torch import nn

from timm_stn import SpatialTransformer
from timm_stn.geometry.grid import lattice
from timm_stn.geometry.transforms import get_transform
from timm_stn.modules.glimpses import tile_offsets

OTHERS = PLANAR[-3:]  # without a matrix
MATRICES = {  # independent of the package: increments to 3 x 3
    'affine': lambda p: np.array([[1 + p[0], p[1], p[2]], [p[3], 1 + p[4], p[5]], [0, 0, 1]]),
    'projective': lambda p: np.eye(3) + np.append(p, 0).reshape(3, 3),
    'similarity': lambda p: np.array([
        [(1 + p[0]) * np.cos(p[1]), -(1 + p[0]) * np.sin(p[1]), p[2]],
        [(1 + p[0]) * np.sin(p[1]), (1 + p[0]) * np.cos(p[1]), p[3]],
        [0, 0, 1],
    ]),
}


class TestIdentity:
    @pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 5), (28, 28)])
    @pytest.mark.parametrize('transform', PLANAR)
    def test_at_the_start(self, transform, size):
        x = randn(2, 3, *size)
        for iterations in (1, 2):
            stn = transformer(transform, size, 3, localization='conv', iterations=iterations)
            torch.testing.assert_close(stn(x), x, rtol=0, atol=2e-5)

    def test_volumes(self):
        x = randn(2, 1, 4, 5, 6)
        for arguments in ({}, {'antialias': True}, {'padding_mode': 'zeros'}):
            torch.testing.assert_close(transformer('affine3d', (4, 5, 6), 1, **arguments)(x), x, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('scale', [0.5, 0.3, 1.7])
    @pytest.mark.parametrize('glimpses', [1, 3])
    @pytest.mark.parametrize('transform', PLANAR)
    def test_zero_parameters_give_the_base(self, transform, glimpses, scale):
        stn, x = transformer(transform, glimpses=glimpses, scale=scale, iterations=2), randn(2, 2, 12, 10)
        seen = stn(x).reshape(2, glimpses, 2, 12, 10)
        for g, (tx, ty) in enumerate(tile_offsets(glimpses, scale, stn.bound).tolist()):
            theta = torch.tensor([[scale, 0, tx], [0, scale, ty]]).expand(2, 2, 3)
            expected = F.grid_sample(x, F.affine_grid(theta, x.shape, False), 'bilinear', 'border', False)
            torch.testing.assert_close(seen[:, g], expected, rtol=0, atol=2e-4)

    @pytest.mark.parametrize('glimpses', [1, 2])
    @pytest.mark.parametrize('transform', PLANAR)
    def test_gradients_at_the_start(self, transform, glimpses):
        for scale in (1.0, 0.5):
            stn = transformer(transform, localization='conv', glimpses=glimpses, scale=scale)
            (stn(randn(3, 2, 12, 10)) * randn(12, 10, seed=1)).sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in stn.parameters())
            regression = stn.localization.regression
            assert (regression.weight.grad.abs().amax(1) > 0).all() and (regression.bias.grad.abs() > 0).all()


class TestGlimpses:

    def test_exact_tiles_are_slices(self):
        x = randn(2, 3, 8, 12)
        halves = transformer('translation', (8, 12), 3, glimpses=2, scale=0.5, bound=False, size=(4, 6))(x)
        torch.testing.assert_close(halves, torch.stack([x[:, :, 2:6, :6], x[:, :, 2:6, 6:]], 1), rtol=0, atol=1e-5)
        quadrants = transformer('translation', (8, 12), 3, glimpses=4, scale=0.5, bound=False, size=(4, 6))(x)
        expected = torch.stack([x[:, :, :4, :6], x[:, :, :4, 6:], x[:, :, 4:, :6], x[:, :, 4:, 6:]], 1)
        torch.testing.assert_close(quadrants, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('iterations', [1, 3])
    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    def test_each_is_what_it_would_be_alone(self, transform, iterations):
        """Every glimpse sees its own crop and is moved by its own part of the parameters.

        In float64: looks at noise make much of the rounding of batches of another size, more on some CPUs.
        """
        x, count = randn(3, 2, 12, 10, dtype=torch.float64), num_params(transform)
        stn = transformer(transform, glimpses=3, scale=0.6, iterations=iterations, std=0.3, bound=False).double()
        seen, theta = stn.look(x)
        assert seen.shape == (3, 3, 2, 12, 10) and theta.shape[:2] == (3, 3)
        for g in range(3):
            alone = transformer(transform, scale=0.6, iterations=iterations, bound=False).double()
            alone.base[0] = stn.base[g]
            part = slice(g * count, (g + 1) * count)
            alone_seen, alone_theta = alone.look(x, lambda image, part=part: stn.localization(image).params[:, part])
            torch.testing.assert_close(theta[:, g], alone_theta)
            # theta may differ by 1e-5, that is 1e-4 pixels, and neighbours in the noise differ by about 1
            torch.testing.assert_close(seen[:, g], alone_seen, rtol=0, atol=1e-4)


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
        stn, x = transformer(transform, glimpses=glimpses, scale=0.7, iterations=3, bound=False), randn(2, 2, 12, 10)
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
        stn = transformer(transform, glimpses=glimpses, scale=0.7, iterations=3)
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
        transformer(transform, scale=0.7, iterations=3, size=(6, 5)).look(x, localize)
        assert len(localize.seen) == 3 and localize.seen[0] is x
        for iterations in (1, 2):
            again = Successive(count, 0.1)
            expected, _ = transformer(transform, scale=0.7, iterations=iterations, size=(6, 5)).look(x, again)
            torch.testing.assert_close(localize.seen[iterations], expected)

    def test_pixels_are_sampled_once(self):
        """A round trip of two opposite rotations gives the image, not one blurred twice."""
        x = randn(1, 2, 16, 16)
        params = iter([0.3, -0.3])
        stn = transformer('rotation', (16, 16), iterations=2)
        seen, _ = stn.look(x, lambda image: torch.full((len(image), 1), next(params)))
        torch.testing.assert_close(seen, x, rtol=0, atol=1e-4)


class TestOutput:
    @pytest.mark.parametrize(('size', 'expected'), [(7, (7, 7)), ((5, 9), (5, 9)), ([5, 9], (5, 9)), (None, (12, 10))])
    @pytest.mark.parametrize('transform', ['affine', 'tps'])
    def test_size(self, transform, size, expected):
        x = randn(2, 2, 12, 10)
        seen = transformer(transform, size=size)(x)
        theta = torch.eye(2, 3).expand(2, 2, 3)
        grid = F.affine_grid(theta, (2, 2, *expected), False)
        torch.testing.assert_close(seen, F.grid_sample(x, grid, 'bilinear', 'border', False), rtol=0, atol=2e-5)
        assert transformer(transform, size=size, glimpses=2)(x).shape == (2, 2, 2, *expected)

    def test_another_input_size_works(self):
        assert transformer(localization='conv')(randn(2, 2, 31, 17)).shape == (2, 2, 31, 17)

    def test_sampling_options_reach_the_sampler(self):
        x, away = rand(1, 2, 12, 10), constant([0, 0, 5, 0, 0, 0])
        seen, _ = transformer(padding_mode='fill', fill=(0.25, -3.0)).look(x, away)
        torch.testing.assert_close(seen, torch.tensor([0.25, -3.0])[None, :, None, None].expand(1, 2, 12, 10))
        assert not transformer(padding_mode='zeros').look(x, away)[0].any()
        nearest, _ = transformer(mode='nearest').look(x, constant([0.1, 0.2, 0.1, 0, 0.1, 0]))
        assert np.isin(nearest.numpy(), x.numpy()).all()

    @pytest.mark.parametrize('glimpses', [1, 2])
    def test_channels_last(self, glimpses):
        x = randn(2, 3, 12, 10)
        stn = transformer(channels=3, std=0.3, glimpses=glimpses)
        seen = stn(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(seen, stn(x), rtol=0, atol=1e-6)
        if glimpses == 1:
            assert seen.is_contiguous(memory_format=torch.channels_last) and not seen.is_contiguous()

    @pytest.mark.parametrize(
        ('dtype', 'tolerance'), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2), (torch.float64, 1e-5)])
    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    def test_dtypes(self, transform, dtype, tolerance):
        stn, x = transformer(transform, glimpses=2, scale=0.35, std=0.05), rand(2, 2, 12, 10)
        exact, exact_theta = stn.look(x)
        seen, theta = stn.to(dtype).look(x.to(dtype))
        assert seen.dtype == dtype and theta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(theta.float(), exact_theta, rtol=0, atol=tolerance)
        torch.testing.assert_close(seen.float(), exact, rtol=0, atol=10 * tolerance)

    def test_the_base_is_not_rounded_to_half_precision(self):
        for cast in (nn.Module.bfloat16, nn.Module.half, nn.Module.double):
            stn = cast(transformer(glimpses=2, scale=0.3))
            assert stn.base.dtype == torch.float32 and torch.equal(stn.base, transformer(glimpses=2, scale=0.3).base)

    @pytest.mark.parametrize('transform', PLANAR)
    def test_autocast(self, transform):
        stn, x = transformer(transform, std=0.2, scale=0.5, iterations=2), rand(2, 2, 12, 10)
        exact, exact_theta = stn.look(x)
        with torch.autocast('cpu', torch.bfloat16):
            seen, theta = stn.look(x)
        assert theta.dtype == seen.dtype == torch.float32
        torch.testing.assert_close(theta, exact_theta, rtol=0, atol=1e-6)
        torch.testing.assert_close(seen, exact, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('glimpses', [1, 2])
    @pytest.mark.parametrize('transform', [*PLANAR, 'affine3d'])
    def test_empty_batch(self, transform, glimpses):
        size = (12, 10) if transform != 'affine3d' else (5, 6, 7)
        stn = transformer(
            transform, size, localization='conv', glimpses=glimpses, scale=0.5, iterations=2, antialias=True)
        seen = stn(torch.zeros(0, 2, *size, requires_grad=True))
        assert seen.shape == ((0, 2, *size) if glimpses == 1 else (0, 2, 2, *size))
        seen.sum().backward()

    @pytest.mark.parametrize('iterations', [1, 2])
    @pytest.mark.parametrize('bad', [float('nan'), float('inf')])
    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    def test_a_bad_image_is_seen_untransformed(self, transform, bad, iterations):
        stn, x = transformer(transform, std=0.2, glimpses=2, scale=0.5, iterations=iterations), rand(3, 2, 12, 10)
        fine = stn.look(x)[1]
        x[1, 0, 3, 4] = bad
        seen, theta = stn.look(x)
        untouched = stn.look(x, constant(torch.zeros(2 * num_params(transform))))[1]
        assert theta.isfinite().all() and seen[[0, 2]].isfinite().all()
        torch.testing.assert_close(theta[1], untouched[1])
        torch.testing.assert_close(theta[[0, 2]], fine[[0, 2]])
        theta.sum().backward()

    @pytest.mark.parametrize('transform', PLANAR)
    def test_bad_theta_gets_no_gradient(self, transform):
        params = torch.zeros(3, num_params(transform))
        params[0, 0], params[1, -1] = float('nan'), 1e9
        params.requires_grad_()
        seen, _ = transformer(transform, scale=0.7).look(randn(3, 2, 12, 10), lambda x: params)
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
        stn = transformer('affine', (5, 4), 1, std=0.05, scale=0.6, lr_scale=1.0).double().eval()
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
    @pytest.mark.parametrize('transform', PLANAR)
    def test_points_are_where_pixels_come_from(self, transform, iterations):
        stn = transformer(transform, (24, 20), scale=0.5, iterations=iterations, size=(6, 7))
        seen, theta = stn.look(ramp((24, 20)), constant(0.1 * randn(num_params(transform), seed=2)))
        mapped = stn.map_points(theta, lattice((6, 7))[None])
        assert mapped.abs().max() < 0.95, 'nothing is taken from the border'
        torch.testing.assert_close(seen.movedim(1, -1), mapped, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('transform', PLANAR)
    def test_unwarp_restores_what_was_seen(self, transform):
        image = ramp((24, 20))
        stn = transformer(transform, (24, 20), scale=0.5, size=(40, 40))
        seen, theta = stn.look(image, constant(0.08 * randn(num_params(transform), seed=2)))
        back = stn.unwarp(seen, theta, (24, 20))
        shown = stn.unwarp(torch.ones(1, 1, 40, 40), theta, (24, 20))[0, 0] == 1
        assert 0.1 < shown.float().mean() < 0.6
        torch.testing.assert_close(back[0][:, shown], image[0][:, shown], rtol=0, atol=2e-3)
        assert (stn.unwarp(torch.ones(1, 1, 40, 40), theta, (24, 20)) == 0).float().mean() > 0.3, 'the rest is empty'

    def test_unwarp_of_labels(self):
        stn = transformer('translation', (8, 8), scale=0.5, bound=False, size=4)
        theta = stn.regress(torch.zeros(1, 2, 8, 8), constant([-0.5, 0.5]))
        labels = torch.arange(1, 17).reshape(1, 1, 4, 4)
        expected = F.pad(labels, (1, 3, 3, 1))
        assert torch.equal(stn.unwarp(labels, theta, (8, 8), mode='nearest'), expected)


class TestModule:
    def test_state_dict(self):
        stn = transformer(glimpses=2, scale=0.5)
        stn(randn(1, 2, 12, 10))
        of = dict(standardize=('running_mean', 'running_var', 'num_batches_tracked'),
                  regression=('weight', 'bias', 'lr_scale_nano'))
        keys = ['made_with', *(f'localization.{part}.{n}' for part, names in of.items() for n in names)]
        assert list(stn.state_dict()) == keys
        others = list(transformer(localization='conv').state_dict())[1:]
        assert all(k.startswith('localization.') for k in others)

    @pytest.mark.parametrize('transform', ['affine', 'tps'])
    def test_copies_use_their_own_parameters(self, transform):
        stn, x = transformer(transform, std=0.2, glimpses=2, scale=0.5, iterations=2), randn(2, 2, 12, 10)
        seen = stn(x)
        for other in copies(stn):
            assert torch.equal(other(x), seen)
            theta = stn.last_theta.clone()
            nn.init.zeros_(other.localization.regression.weight)
            assert not torch.equal(other(x), seen)
            assert torch.equal(stn(x), seen) and torch.equal(stn.last_theta, theta)

    def test_last_theta(self):
        stn, x = transformer(std=0.2, glimpses=2, scale=0.5), randn(2, 2, 12, 10)
        assert stn.last_theta is None
        stn(x)
        assert stn.last_theta.grad_fn is None and not stn.last_theta.requires_grad
        assert torch.equal(stn.last_theta, stn.regress(x)) and stn.last_theta.shape == (2, 2, 2, 3)

    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps', 'diffeomorphic'])
    def test_keeps_nothing_alive(self, transform):
        """No graph and no cycle: the image is freed with the output, without the garbage collector."""
        stn = transformer(transform, std=0.1, glimpses=2, scale=0.5, iterations=2)
        x = randn(2, 2, 12, 10).requires_grad_()
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

    def test_what_is_no_localization_network_is_named(self):
        stn = SpatialTransformer(2, (12, 10), localization=nn.Sequential(nn.Flatten(), nn.LSTM(240, 6)))
        with pytest.raises(TypeError, match=r'must give parameters \(N, G \* P\), or a Regressed .* got tuple'):
            stn(randn(2, 2, 12, 10))

    def test_leaves_the_meta_device(self):
        with torch.device('meta'):
            stn = transformer('affine', glimpses=2, scale=0.5)
        assert stn(torch.zeros(3, 2, 12, 10, device='meta')).shape == (3, 2, 2, 12, 10)
        stn = stn.to_empty(device='cpu')
        stn.base.zero_()
        stn.init_non_persistent_buffers()
        assert torch.equal(stn.base, transformer(glimpses=2, scale=0.5).base)

    def test_coordinates_are_float32_whatever_the_default_dtype(self):
        expected = transformer(glimpses=3, scale=0.3).base
        torch.set_default_dtype(torch.bfloat16)
        try:
            stn = transformer(glimpses=3, scale=0.3)
            assert stn.to('cpu').base.dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(stn.base, expected) and stn.localization.regression.weight.dtype == torch.bfloat16

    def test_default_devices_do_not_move_the_base(self):
        stn = transformer(glimpses=2, scale=0.5)
        expected = stn.base.clone()
        with torch.device('meta'):
            stn.float()
            assert torch.equal(tile_offsets(2, 0.5, True), expected[:, :, 2])
        assert torch.equal(stn.base, expected)

    def test_repr_names_the_settings(self):
        stn = transformer('tps', size=6, glimpses=2, scale=0.5)
        assert 'transform=tps, size=(6, 6), glimpses=2, scale=0.5' in repr(stn)


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
    stn = transformer(std=0.2, **arguments).double()  # float32 would show how a CPU rounds batches of another size
    batches = torch.stack([randn(2, 2, 12, 10, seed=seed, dtype=torch.float64).contiguous(memory_format=memory_format)
                           for seed in range(3)])
    expected = torch.stack([stn(x) for x in batches])
    kept = stn.last_theta
    torch.testing.assert_close(torch.vmap(stn)(batches), expected)
    assert stn.last_theta is kept and torch.equal(copy.deepcopy(stn).last_theta, kept)
