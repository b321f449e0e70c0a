"""The training knobs: what they do to gradients, what they count, and that they cost nothing when they are off."""
import copy
import gc
import importlib.util
import itertools
import re
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_stn
from timm_stn import SpatialTransformer, training

FAMILIES = ['translation', 'rotation', 'attention', 'scale_translation', 'similarity', 'affine', 'projective',
            'affine+similarity', 'tps', 'diffeomorphic', 'affine+tps', 'affine3d']
NETWORKS = [
    dict(),
    dict(stn_stages=('input', 1), stn_iterations=2),
    dict(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_transform='similarity'),
    dict(stn_stages=('input', 1), stn_glimpses=2, stn_scale=0.5, stn_towers='separate'),
    dict(stn_stages=(2,), stn_target='input'),
]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def create(name='stn_test_resnet', move=0.3, **kwargs):
    """A network in training mode, but for the statistics of its batch norms, with transformers off the identity."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).train()
    for n, p in model.named_parameters():
        if 'regression' in n:
            p.data = move * randn(*p.shape, seed=2)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    return model


def backward(model, x=None, scale=1.0, net=None):
    """Gradients of one backward pass."""
    model.zero_grad()
    loss = (model if net is None else net)(rand(4, 3, 64, 64) if x is None else x).square().mean()
    (scale * loss).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def transformers(model):
    return [m for m in model.modules() if isinstance(m, SpatialTransformer)]


def counts(model):
    return {int(t.backward_passes) for t in transformers(model)}


def is_own(name):
    return 'stn.' in name


class TestFreeze:
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_first_gradients_are_exactly_zero_and_then_as_without(self, kwargs):
        plain = backward(create(**kwargs))
        model = create(**kwargs, stn_freeze_steps=2)
        for _ in range(2):
            grads = backward(model)
            own = {n: g for n, g in grads.items() if is_own(n)}
            assert len(own) >= 4 and all(g is not None and not g.any() for g in own.values())
            assert all(g.any() for n, g in grads.items() if not is_own(n) and plain[n].any()), 'the rest is trained'
        grads = backward(model)
        assert counts(model) == {3}
        assert all(plain[n].any() for n in grads if 'regression' in n)
        for n, g in grads.items():
            torch.testing.assert_close(g, plain[n], rtol=0, atol=0, msg=n)

    def test_the_rest_gets_the_gradients_of_the_network_with_its_transformer_held(self):
        plain, grads = backward(create()), backward(create(stn_freeze_steps=1))
        for n, g in grads.items():
            if not is_own(n):
                torch.testing.assert_close(g, plain[n], rtol=0, atol=0, msg=n)

    def test_per_stage(self):
        model = create(stn_stages={'input': {}, 1: dict(freeze_steps=1, penalty=0.5)})
        grads = backward(model)
        assert [(t.freeze_steps, t.penalty) for t in transformers(model)] == [(0, 0), (1, 0.5)]
        assert all(g.any() for n, g in grads.items() if n.startswith('stn.'))
        assert not any(g.any() for n, g in grads.items() if '.stn.' in n)
        assert [k for k in model.state_dict() if training.COUNT in k] == ['backbone.layer1.stn.backward_passes']

    def test_untouched_weights_stay_under_momentum_and_decay_shrinks_the_rest(self):
        model = create(move=0, stn_freeze_steps=3)
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=50.0)
        for _ in range(3):
            backward(model)
            optimizer.step()
        for name, p in model.named_parameters():
            if is_own(name):
                torch.testing.assert_close(p.data, 0.95 ** 3 * before[name], rtol=1e-5, atol=0)
        backward(model)
        optimizer.step()
        assert model.stn.localization.regression.weight.any()

    def test_needs_no_gradient_where_the_localization_network_is_fixed(self):
        model = create(stn_freeze_steps=1, stn_penalty=1.0)
        model.stn.localization.requires_grad_(False)
        grads = backward(model)
        assert all((g is None) == is_own(n) for n, g in grads.items()) and counts(model) == {0}


class TestCount:
    def test_accumulation_counts_every_pass(self):
        model = create(stn_freeze_steps=2)
        for _ in range(3):
            model(rand(2, 3, 64, 64)).sum().backward()
        assert counts(model) == {3} and model.stn.localization.regression.bias.grad.any()

    def test_several_calls_are_one_pass(self):
        model = create(stn_freeze_steps=1)
        sum(model(rand(2, 3, 64, 64, seed=s)).sum() for s in range(3)).backward()
        assert counts(model) == {1} and not model.stn.localization.regression.bias.grad.any()

    def test_forward_passes_made_before_count_when_their_backward_comes(self):
        model = create(stn_freeze_steps=1)
        first, second = (model(rand(2, 3, 64, 64, seed=s)).sum() for s in range(2))
        first.backward()
        assert counts(model) == {1} and not model.stn.localization.regression.bias.grad.any()
        second.backward(retain_graph=True)
        second.backward()
        assert counts(model) == {3} and model.stn.localization.regression.bias.grad.any()

    def test_a_pass_that_fails_does_not_count(self):
        model = create(stn_freeze_steps=1)

        def fail(grad):
            raise RuntimeError('stopped')
        handle = model.stn.localization.body[0].weight.register_hook(fail)
        with pytest.raises(RuntimeError, match='stopped'):
            backward(model)
        assert counts(model) == {0}
        handle.remove()
        backward(model)
        assert counts(model) == {1}

    def test_evaluation_does_not_count_and_is_not_held(self):
        model = create(stn_freeze_steps=5).eval()
        assert all(g.any() for n, g in backward(model).items() if is_own(n))
        with torch.no_grad():
            model.train()(rand(2, 3, 64, 64))
        assert counts(model) == {0}

    @pytest.mark.parametrize('kwargs', NETWORKS)
    @pytest.mark.parametrize('name', ['stn_test_efficientnet', 'stn_test_vit'])
    def test_gradient_checkpointing_counts_once(self, name, kwargs):
        size = {} if name != 'stn_test_vit' else dict(img_size=64)
        plain, model = (create(name, **kwargs, **size, stn_freeze_steps=1, stn_penalty=1.0) for _ in range(2))
        model.set_grad_checkpointing()
        for n in range(1, 3):
            expected, grads = backward(plain), backward(model)
            assert counts(model) == {n}
            for key, g in grads.items():
                torch.testing.assert_close(g, expected[key], msg=key)

    @pytest.mark.parametrize('use_reentrant', [False, True])
    def test_the_transformer_itself_checkpointed(self, use_reentrant):
        stn = SpatialTransformer(3, (16, 16), localization='linear', freeze_steps=1, penalty=1.0)
        x = rand(2, 3, 16, 16).requires_grad_()
        for n in range(1, 3):
            torch.utils.checkpoint.checkpoint(stn, x, use_reentrant=use_reentrant).square().sum().backward()
            assert int(stn.backward_passes) == n
            assert stn.localization.regression.bias.grad.any() == (n > 1)

    @pytest.mark.parametrize('transform', ['affine', pytest.param('tps', marks=pytest.mark.slow)])
    def test_compiled_as_one_graph(self, transform):
        stn = SpatialTransformer(
            3, (16, 16), transform, 'linear', size=8, glimpses=2, scale=0.5, iterations=2, freeze_steps=2, penalty=1.0)
        nn.init.normal_(stn.localization.regression.bias)
        plain = copy.deepcopy(stn)
        torch._dynamo.reset()
        compiled = torch.compile(stn, fullgraph=True, backend='aot_eager')
        for n in range(1, 4):
            for net in (plain, compiled):
                net.zero_grad()
                net(rand(2, 3, 16, 16)).square().sum().backward()
            assert stn.backward_passes == plain.backward_passes == n
            for p, expected in zip(stn.parameters(), plain.parameters()):
                torch.testing.assert_close(p.grad, expected.grad, rtol=1e-4, atol=1e-4)
                assert p.grad.any() == (n > 2)

    @pytest.mark.slow
    @pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_networks_compiled_as_one_graph(self, kwargs, backend):
        knobs = dict(stn_freeze_steps=2, stn_penalty=1.0)
        plain, model = create(**kwargs, **knobs), create(**kwargs, **knobs)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for n in range(1, 4):
            expected, grads = backward(plain), backward(model, net=compiled)
            assert counts(model) == {n}
            for key, g in grads.items():
                torch.testing.assert_close(g, expected[key], rtol=1e-3, atol=1e-3 * expected[key].abs().max(), msg=key)
                assert 'regression' not in key or g.any() == (n > 2)


class TestPersistence:
    def test_resume(self, tmp_path):
        model = create(stn_freeze_steps=2)
        backward(model)
        assert model.state_dict()['stn.backward_passes'] == 1
        torch.save(model.state_dict(), tmp_path / 'last.pth')
        resumed = create(stn_freeze_steps=2)
        resumed.load_state_dict(torch.load(tmp_path / 'last.pth'))
        assert not backward(resumed)['stn.localization.regression.bias'].any()
        assert backward(resumed)['stn.localization.regression.bias'].any()

    def test_checkpoints_with_and_without_a_count_load(self):
        without, having = create(stn_stages=('input', 1)), create(stn_stages=('input', 1), stn_freeze_steps=2)
        backward(having)
        assert not any(training.COUNT in k for k in without.state_dict())
        state = having.state_dict()
        keys = list(state)
        without.load_state_dict(state)
        assert list(state) == keys, "the caller's state dict is not touched"
        having.load_state_dict(without.state_dict())
        assert counts(having) == {1}, 'nothing was loaded, and the count stays'
        plain = timm.create_model('test_resnet', num_classes=10).state_dict()
        having.load_state_dict(plain)
        assert counts(having) == {1}

    @pytest.mark.parametrize('asked', [{}, dict(stn_freeze_steps=0), dict(stn_freeze_steps=4)])
    def test_another_training_from_saved_weights_starts_at_zero(self, tmp_path, asked):
        model = create(stn_freeze_steps=1, stn_penalty=0.5)
        backward(model)
        args = {} if hasattr(timm.models, 'get_model_args') else dict(
            model_args=dict(model._model_args, in_chans=3, num_classes=10))
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True, **args)
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **asked)
        assert loaded.stn.penalty == 0.5 and loaded.stn.freeze_steps == asked.get('stn_freeze_steps', 1)
        torch.testing.assert_close(loaded.eval()(rand(2, 3, 64, 64)), model.eval()(rand(2, 3, 64, 64)), rtol=0, atol=0)
        if loaded.stn.freeze_steps:
            assert counts(loaded) == {0}

    def test_weights_of_before_load(self):
        model = timm.create_model('stn_mnist_cnn_rts', pretrained=True, stn_freeze_steps=3, stn_penalty=0.1)
        assert counts(model) == {0} and model.stn.penalty == 0.1

    @pytest.mark.parametrize('foreach', [False, True])
    def test_ema_has_the_count_and_a_copy_its_own(self, foreach):
        model = create(stn_freeze_steps=5)
        ema = ModelEmaV3(model, decay=0.9, foreach=foreach)
        twin = copy.deepcopy(model)
        backward(model)
        ema.update(model)
        assert counts(model) == counts(ema.module) == {1} and counts(twin) == {0}
        assert ema.module.stn.backward_passes.dtype == torch.int64
        backward(twin)
        backward(twin)
        assert counts(model) == {1} and counts(twin) == {2}

    def test_casts_keep_the_count_and_initialisation_starts_it_anew(self):
        model = create(stn_freeze_steps=2)
        backward(model)
        assert model.bfloat16().stn.backward_passes.dtype == torch.int64 and counts(model) == {1}
        model.init_weights()
        assert counts(model) == {0}


def points_of(matrices):
    """Lattices as affine maps (..., d, d + 1) place them, by numpy: (..., 25, 2), x the slower index."""
    axis = np.linspace(-1, 1, 5)
    lattice = np.array([[x, y, 1] for x in axis for y in axis])
    return np.einsum('...ij,pj->...pi', np.asarray(matrices), lattice)


def areas(points):
    p = points.reshape(5, 5, 2)
    cells = [(p[i + 1, j] - p[i, j], p[i, j + 1] - p[i, j]) for i in range(4) for j in range(4)]
    return [np.linalg.det(np.stack(cell)) for cell in cells]


def penalty_by_numpy(points, start):
    """One image: (G, 25, 2). Loops and words of the docstring, on purpose."""
    total = 0.0
    for own, first in zip(points, start):
        edge = np.maximum(np.abs(first).max(0), 1) + 1e-3
        over = np.maximum(np.abs(own) - edge, 0)
        total += 16 * np.where(over < 1, over ** 2 / 2, over - 0.5).sum(1).mean()
        side = np.sqrt(np.abs(np.divide(areas(own), areas(first))))
        total += (np.maximum(1 - side / 0.25, 0) ** 2 / 2).mean()
    for g, h in itertools.combinations(range(len(points)), 2):
        apart, wanted = (np.sqrt(((p[g] - p[h]) ** 2).sum(1).mean()) for p in (points, start))
        if wanted:
            total += max(1 - apart / (0.25 * wanted), 0) ** 2 / 2
    return total


class TestPlacementPenalty:
    @pytest.mark.parametrize('glimpses,scale', [(1, 1.0), (1, 1.5), (2, 0.5), (2, 1.0), (3, 0.3)])
    @pytest.mark.parametrize('transform', FAMILIES)
    def test_start_has_none(self, transform, glimpses, scale):
        size = (8,) * (3 if transform == 'affine3d' else 2)
        stn = SpatialTransformer(2, size, transform, 'linear', glimpses=glimpses, scale=scale)
        theta = stn.regress(rand(4, 2, *size)).detach().requires_grad_()
        penalty = stn.placement_penalty(theta)
        slope, = torch.autograd.grad(penalty.sum(), theta)
        assert penalty.shape == (4,) and not penalty.any() and not slope.any()

    @pytest.mark.parametrize('glimpses,scale,spread', [(1, 1.0, 0.6), (2, 0.5, 0.5), (3, 0.4, 1.5), (3, 0.4, 0.05)])
    def test_against_numpy(self, glimpses, scale, spread):
        stn = SpatialTransformer(2, (8, 8), 'affine', 'linear', glimpses=glimpses, scale=scale, bound=False)
        theta = spread * randn(6, glimpses, 2, 3, seed=1, dtype=torch.float64)
        start = points_of(stn.base.double())
        expected = [penalty_by_numpy(points_of(t), start) for t in theta]
        assert np.count_nonzero(expected) >= 4
        penalty = stn.placement_penalty(theta.squeeze(1))
        np.testing.assert_allclose(penalty, expected, rtol=1e-4, atol=1e-9)

    @pytest.mark.parametrize('transform', FAMILIES)
    def test_gradient_by_finite_differences(self, transform):
        size = (8,) * (3 if transform == 'affine3d' else 2)
        stn = SpatialTransformer(2, size, transform, 'linear', glimpses=2, scale=0.5, bound=False)
        theta = stn.regress(rand(3, 2, *size), lambda x: 1.5 * randn(3, 2 * stn.transform.num_params, seed=4))
        theta = theta.detach().double().requires_grad_()
        assert stn.placement_penalty(theta).min() > 0
        assert torch.autograd.gradcheck(stn.placement_penalty, theta, atol=1e-4)

    def test_each_part_answers_to_its_own_fault(self):
        stn = SpatialTransformer(2, (8, 8), 'attention', 'linear', glimpses=2, scale=0.5, bound=False)
        base = stn.base[None]
        outside, point, together, apart = (base.clone() for _ in range(4))
        outside[0, 0, 0, 2] = -0.9
        point[0, 0, :, :2] *= 0.1
        together[0, 0] = together[0, 1]
        apart[0, 0, 0, 2] = -0.2
        lattice = training.lattice_of_glimpse(2, base)
        start = timm_stn.map_points(stn.base, lattice)
        found = []
        for theta in (outside, point, together, apart):
            points = timm_stn.map_points(theta[0], lattice)[None]
            parts = training._outside(points, start), training._shrunk(points, start), training._together(points, start)
            found.append([bool(p.any()) for p in parts])
        assert found == [[True, False, False], [False, True, False], [False, False, True], [False, False, False]]

    @pytest.mark.parametrize('transform', ['affine', 'projective', 'tps'])
    @pytest.mark.parametrize('size', [1e3, 1e6])
    def test_far_away_it_is_finite(self, transform, size):
        stn = SpatialTransformer(2, (8, 8), transform, 'linear', glimpses=2, scale=0.5, bound=False)
        params = size * randn(3, 2 * stn.transform.num_params)
        assert stn.placement_penalty(stn.regress(rand(3, 2, 8, 8), lambda x: params)).isfinite().all()


def attached(theta, slope, strength=0.5, penalty=None, glimpses=1):
    theta = theta.clone().requires_grad_()
    out = training.attach_penalty(theta, penalty or (lambda t: (t.square() / 2).flatten(1).sum(1)), strength, glimpses)
    assert torch.equal(out, theta)
    out.backward(slope)
    return theta.grad


class TestAttachPenalty:
    """The penalty here is |theta| ** 2 / 2, whose gradient p is theta itself."""

    def test_what_is_added(self):
        theta, slope = randn(5, 2, 3) * torch.tensor([0.01, 0.1, 1, 10, 100])[:, None, None], randn(5, 2, 3, seed=1)
        length = theta.flatten(1).norm(dim=1)
        assert (length < 1).any() and (length > 1).any()
        added = 0.5 * (slope.flatten(1).norm(dim=1) / length.clamp(min=1))[:, None, None] * theta
        torch.testing.assert_close(attached(theta, slope), slope + added)

    def test_glimpses_of_an_image_go_together(self):
        theta, slope = randn(6, 2, 3), randn(6, 2, 3, seed=1)
        slope[0] = 0  # that glimpse sees nothing: the others' gradient is the measure
        of_image = attached(theta, slope, glimpses=2, penalty=lambda t: (t.square() / 2).reshape(3, -1).sum(1))
        torch.testing.assert_close(of_image.reshape(3, -1), attached(theta.reshape(3, -1), slope.reshape(3, -1)))
        assert of_image[0].any()

    @pytest.mark.parametrize('scale', [2.0 ** 16, 2.0 ** -16])
    def test_same_under_loss_scaling(self, scale):
        theta, slope = randn(5, 2, 3), randn(5, 2, 3, seed=1)
        assert torch.equal(attached(theta, scale * slope), scale * attached(theta, slope))

    def test_same_for_any_split_of_the_batch(self):
        theta, slope = randn(6, 2, 3), randn(6, 2, 3, seed=1)
        parts = [attached(t, s) for t, s in zip(theta.split([1, 3, 2]), slope.split([1, 3, 2]))]
        assert torch.equal(torch.cat(parts), attached(theta, slope))

    def test_nothing_is_added_where_there_is_no_measure(self):
        theta, slope = randn(5, 2, 3), randn(5, 2, 3, seed=1)
        slope[0], slope[1, 0, 0], slope[2, 0, 0], theta[3, 0, 0] = 0, torch.inf, torch.nan, torch.nan
        grad = torch.zeros(5, 2, 3)
        unchecked = theta.clone().requires_grad_()
        out = training.attach_penalty(unchecked, lambda t: (t.square() / 2).flatten(1).sum(1), 0.5)
        out.backward(slope)
        grad = unchecked.grad
        torch.testing.assert_close(grad[:4], slope[:4], rtol=0, atol=0, equal_nan=True)
        assert not torch.equal(grad[4], slope[4])

    def test_empty_batch(self):
        assert attached(torch.zeros(0, 2, 3), torch.zeros(0, 2, 3)).shape == (0, 2, 3)
        stn = SpatialTransformer(3, (8, 8), localization='linear', penalty=1.0, freeze_steps=1, glimpses=2)
        stn(torch.zeros(0, 3, 8, 8)).sum().backward()
        assert not stn.localization.regression.bias.grad.any()


class TestPenalty:
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_at_the_start_gradients_are_as_without(self, kwargs):
        plain, model = create(**kwargs, move=0), create(**kwargs, move=0, stn_penalty=3.0)
        expected, grads = backward(plain), backward(model)
        assert all(torch.equal(g, expected[n]) for n, g in grads.items())

    def test_evaluation_has_the_gradients_of_the_loss_alone(self):
        knobs = dict(move=3, stn_bound=False, stn_glimpses=2, stn_scale=0.5)
        expected, grads = (backward(create(**knobs, stn_penalty=p).eval()) for p in (0.0, 3.0))
        assert all(torch.equal(g, expected[n]) for n, g in grads.items())
        key = 'stn.localization.regression.bias'
        assert not torch.allclose(backward(create(**knobs, stn_penalty=3.0))[key], expected[key])

    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_accumulated_and_scaled_gradients_are_those_of_the_joined_batch(self, kwargs):
        model, x = create(**kwargs, stn_penalty=2.0, stn_bound=False), rand(4, 3, 64, 64, seed=3)
        joined = backward(model, x)
        plain = backward(create(**kwargs, stn_bound=False), x)
        assert any(not torch.allclose(joined[n], plain[n], rtol=0.01) for n in joined if 'regression' in n)
        model.zero_grad()
        for part in x.split(2):
            (1024 * model(part).square().mean() / 2).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad / 1024, joined[name], rtol=1e-3, atol=1e-5 * joined[name].abs().max())

    @pytest.mark.parametrize('opt', ['sgd', 'adamw'])
    @pytest.mark.parametrize('fault', ['outside', 'point', 'together'])
    def test_keeps_glimpses_in_place_against_a_loss_that_drives_them_away(self, fault, opt):
        placed = {}
        for strength in (0.0, 2.0):
            stn = SpatialTransformer(
                1, (16, 16), 'attention', 'linear', glimpses=2, scale=0.5, bound=False, penalty=strength)
            optimizer = create_optimizer_v2(stn, opt, lr=0.02, weight_decay=0.0)
            x = rand(8, 1, 16, 16)
            for _ in range(150):
                theta = stn.regress(x)
                loss = dict(
                    outside=-theta[..., 2].sum((1, 2)), point=theta[..., 0, 0].square().sum(1),
                    together=(theta[:, 0] - theta[:, 1]).square().sum((1, 2)))[fault].mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            placed[strength] = theta.detach()
        free, kept = placed[0.0], placed[2.0]
        if fault == 'outside':
            corners = [(t[..., 2] + t[..., :2].abs().sum(-1)).max() for t in (free, kept)]
            assert corners[0] > 2 and corners[1] < 1.25
        if fault == 'point':
            assert free[..., 0, 0].abs().max() < 0.06 and kept[..., 0, 0].min() > 0.08, 'the base is 0.5'
        if fault == 'together':
            apart = [(t[:, 0, :, 2] - t[:, 1, :, 2]).norm(dim=1) for t in (free, kept)]
            assert apart[0].max() < 0.03 and apart[1].min() > 0.12, 'the bases are 1 apart'


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def nodes(out):
    found, todo = Counter(), [out.grad_fn]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found[node.name()] += 1
        todo += [n for n, _ in node.next_functions]
    return found


@pytest.mark.parametrize('kwargs', NETWORKS)
def test_off_they_cost_nothing(kwargs, monkeypatch):
    """Operations and autograd nodes are those of a transformer that does not know the knobs."""
    def run(**knobs):
        model = create(**kwargs, **knobs)
        with Operations() as operations:
            out = model(rand(2, 3, 64, 64)).sum()
            graph = nodes(out)
            out.backward()
        return operations.found, graph, set(model.state_dict())
    off, on = run(), run(stn_freeze_steps=1, stn_penalty=1.0)
    monkeypatch.setattr(SpatialTransformer, '_held', lambda self, params: params)
    monkeypatch.setattr(SpatialTransformer, '_penalised', lambda self, theta: theta)
    assert off == run()
    assert {'_HoldBackward', '_ForkBackward', '_JoinBackward'} <= set(on[1]) and on[0].total() > off[0].total()
    assert all(k.endswith('stn.backward_passes') for k in on[2] - off[2]) and on[2] > off[2]


class TestPenaltyLoss:
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_is_that_of_every_transformer(self, kwargs):
        model, x = create(**kwargs, move=2.0, stn_bound=False), rand(4, 3, 64, 64)
        with model.record_thetas() as thetas:
            model(x)
        found = {n: m for n, m in model.named_modules() if isinstance(m, SpatialTransformer)}
        assert thetas.keys() == found.keys()
        loss = model.stn_penalty_loss(thetas)
        expected = sum(t.placement_penalty(t.last_theta).mean().item() for t in found.values())
        assert loss.shape == () and expected > 0 and loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert all(m.localization.regression.bias.grad.any() for m in found.values())

    def test_of_look(self):
        model, x = create(move=2.0, stn_bound=False), rand(4, 3, 64, 64)
        _, theta = model.look(x)
        with model.record_thetas() as thetas:
            model(x)
        assert torch.equal(model.stn_penalty_loss({'stn': theta}), model.stn_penalty_loss(thetas))

    def test_keeps_nothing_alive(self):
        model, x = create(stn_stages=('input', 1)), rand(2, 3, 64, 64)
        with model.record_thetas() as thetas:
            model(x)
        graphs = [weakref.ref(t) for t in thetas.values()]
        assert len(graphs) == 2 and all(t.requires_grad for t in thetas.values())
        model(rand(1, 3, 64, 64))
        assert all(len(t) == 2 for t in thetas.values()), 'it ends with the context'
        gc.collect()
        gc.disable()
        try:
            loss = model.stn_penalty_loss(thetas)
            del thetas
            loss.backward()
            del loss
            assert all(g() is None for g in graphs)
        finally:
            gc.enable()
        assert all(t.recorder is None and not t.last_theta.requires_grad for t in transformers(model))

    def test_contexts_nest_and_end_with_an_error(self):
        model = create()
        with pytest.raises(RuntimeError), model.record_thetas() as outer:
            with model.record_thetas() as inner:
                model(rand(2, 3, 64, 64))
            assert inner and not outer
            model(rand(2, 3, 64, 64))
            assert outer
            raise RuntimeError
        assert model.stn.recorder is None

    def test_with_gradient_checkpointing(self):
        plain, model = (create('stn_test_efficientnet', move=2.0, stn_stages=('input', 2)) for _ in range(2))
        model.set_grad_checkpointing()
        for net in (plain, model):
            with net.record_thetas() as thetas:
                out = net(rand(2, 3, 64, 64))
            (out.square().mean() + net.stn_penalty_loss(thetas)).backward()
        for (name, p), (_, expected) in zip(model.named_parameters(), plain.named_parameters()):
            torch.testing.assert_close(p.grad, expected.grad, msg=name)

    @pytest.mark.parametrize('thetas', [{}, {'input': torch.zeros(1, 2, 3)}])
    def test_wrong_names(self, thetas):
        with pytest.raises(ValueError, match=r"thetas of transformers \['stn'\], got those of"):
            create().stn_penalty_loss(thetas)


@pytest.fixture(scope='module')
def script():
    path = Path(__file__).parents[1] / 'scripts' / 'measure_lr_scale.py'
    spec = importlib.util.spec_from_file_location('measure_lr_scale', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def measured(script):
    return script.measure()


class TestLrScale:
    """Steps of real optimizers on a real network, as scripts/measure_lr_scale.py measures them for docs/training.md."""

    @pytest.mark.parametrize('scale', [0.1, 10.0])
    @pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lion', 'muon', 'lamb'])
    def test_steps_are_in_proportion(self, measured, opt, scale):
        one, other = measured[opt][1.0], measured[opt][scale]
        assert one[1] > 1e-5 and one[10] > 3 * one[1]
        assert other[1] / one[1] == pytest.approx(scale, rel=1e-3)
        assert other[10] / one[10] == pytest.approx(scale, rel=0.15), 'the rest of the localization network learns, too'

    def test_the_page_has_what_is_measured(self, script, measured):
        page = script.PAGE.read_text()
        begin, end = script.MARKS
        written, now = ([re.split(r'\s*\|\s*', row) for row in text.splitlines()]
                        for text in (page[page.index(begin) + len(begin):page.index(end)], script.table(measured)))
        assert [row[:3] for row in written] == [row[:3] for row in now] and len(written) == 7
        for row, expected in zip(written[2:], now[2:]):
            np.testing.assert_allclose([float(v) for v in row[3:-1]], [float(v) for v in expected[3:-1]], rtol=0.03)
