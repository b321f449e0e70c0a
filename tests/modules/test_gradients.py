"""The training knobs: what they do to gradients, what they count, and that they cost nothing when they are off."""
import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import NETWORKS, PLANAR, in_training, rand, randn, save_for_hf, transformers
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_stn
from timm_stn import SpatialTransformer
from timm_stn.modules import gradients as training


def backward(model, x=None, scale=1.0, net=None):
    """Gradients of one backward pass."""
    model.zero_grad()
    loss = (model if net is None else net)(rand(4, 3, 64, 64) if x is None else x).square().mean()
    (scale * loss).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def counts(model):
    return {int(t.backward_passes) for t in transformers(model)}


def is_own(name):
    return 'stn.' in name


class TestFreeze:
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_first_gradients_are_exactly_zero_and_then_as_without(self, kwargs):
        model, free = in_training(**kwargs, stn_freeze_steps=2), in_training(**kwargs)
        for _ in range(2):
            plain = backward(free)
            grads = backward(model)
            own = {n: g for n, g in grads.items() if is_own(n)}
            assert len(own) >= 4 and all(g is not None and not g.any() for g in own.values())
            assert all(g.any() for n, g in grads.items() if not is_own(n) and plain[n].any()), 'the rest is trained'
        plain, grads = backward(free), backward(model)
        assert counts(model) == {3}
        assert all(plain[n].any() for n in grads if 'regression' in n)
        for n, g in grads.items():
            torch.testing.assert_close(g, plain[n], rtol=0, atol=0, msg=n)

    def test_the_rest_gets_the_gradients_of_the_network_with_its_transformer_held(self):
        plain, grads = backward(in_training()), backward(in_training(stn_freeze_steps=1))
        for n, g in grads.items():
            if not is_own(n):
                torch.testing.assert_close(g, plain[n], rtol=0, atol=0, msg=n)

    def test_per_stage(self):
        model = in_training(stn_stages={'input': {}, 1: dict(freeze_steps=1, penalty=0.5)})
        grads = backward(model)
        assert [(t.freeze_steps, t.penalty) for t in transformers(model)] == [(0, 0), (1, 0.5)]
        assert all(g.any() for n, g in grads.items() if n.startswith('stn.'))
        assert not any(g.any() for n, g in grads.items() if '.stn.' in n)
        assert [k for k in model.state_dict() if training.COUNT in k] == ['backbone.layer1.stn.backward_passes']

    def test_untouched_weights_stay_under_momentum_and_decay_shrinks_the_rest(self):
        model = in_training(move=0, stn_freeze_steps=3)
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5.0)
        for _ in range(3):
            backward(model)
            optimizer.step()
        for name, p in model.named_parameters():
            if is_own(name):
                torch.testing.assert_close(p.data, 0.995 ** 3 * before[name], rtol=1e-5, atol=0)
        backward(model)
        optimizer.step()
        assert model.stn.localization.regression.weight.any()

    def test_needs_no_gradient_where_the_localization_network_is_fixed(self):
        model = in_training(stn_freeze_steps=1, stn_penalty=1.0)
        model.stn.localization.requires_grad_(False)
        grads = backward(model)
        assert all((g is None) == is_own(n) for n, g in grads.items()) and counts(model) == {0}


class TestCount:
    def test_accumulation_counts_every_pass(self):
        model = in_training(stn_freeze_steps=2)
        for _ in range(3):
            model(rand(2, 3, 64, 64)).sum().backward()
        assert counts(model) == {3} and model.stn.localization.regression.bias.grad.any()

    def test_several_calls_are_one_pass(self):
        model = in_training(stn_freeze_steps=1)
        sum(model(rand(2, 3, 64, 64, seed=s)).sum() for s in range(3)).backward()
        assert counts(model) == {1} and not model.stn.localization.regression.bias.grad.any()

    def test_forward_passes_made_before_count_when_their_backward_comes(self):
        model = in_training(stn_freeze_steps=1)
        first, second = (model(rand(2, 3, 64, 64, seed=s)).sum() for s in range(2))
        first.backward()
        assert counts(model) == {1} and not model.stn.localization.regression.bias.grad.any()
        second.backward(retain_graph=True)
        second.backward()
        assert counts(model) == {3} and model.stn.localization.regression.bias.grad.any()

    def test_a_pass_that_fails_does_not_count(self):
        model = in_training(stn_freeze_steps=1)

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
        model = in_training(stn_freeze_steps=5).eval()
        assert all(g.any() for n, g in backward(model).items() if is_own(n))
        with torch.no_grad():
            model.train()(rand(2, 3, 64, 64))
        assert counts(model) == {0}

    @pytest.mark.parametrize('kwargs', NETWORKS)
    @pytest.mark.parametrize('name', ['stn_test_efficientnet', 'stn_test_vit'])
    def test_gradient_checkpointing_counts_once(self, name, kwargs):
        size = {} if name != 'stn_test_vit' else dict(img_size=64)
        plain, model = (in_training(name, **kwargs, **size, stn_freeze_steps=1, stn_penalty=1.0) for _ in range(2))
        model.set_grad_checkpointing()
        for n in range(1, 3):
            expected, grads = backward(plain), backward(model)
            assert counts(model) == {n}
            torch.testing.assert_close(usual_gradients(model), usual_gradients(plain))
            for key, g in grads.items():
                torch.testing.assert_close(g, expected[key], msg=key)

    @pytest.mark.parametrize('use_reentrant', [False, True])
    def test_the_transformer_itself_checkpointed(self, use_reentrant):
        stn = SpatialTransformer(3, (16, 16), localization='linear', freeze_steps=1, penalty=1.0)
        plain = copy.deepcopy(stn)
        x = rand(2, 3, 16, 16).requires_grad_()
        for n in range(1, 3):
            torch.utils.checkpoint.checkpoint(stn, n * x, use_reentrant=use_reentrant).square().sum().backward()
            plain(n * x).square().sum().backward()
            assert int(stn.backward_passes) == n and stn.usual_gradient == plain.usual_gradient > 0
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
            torch.testing.assert_close(stn.usual_gradient, plain.usual_gradient)
            assert stn.usual_gradient > 0
            for p, expected in zip(stn.parameters(), plain.parameters()):
                torch.testing.assert_close(p.grad, expected.grad, rtol=1e-4, atol=1e-4)
                assert p.grad.any() == (n > 2)

    @pytest.mark.slow
    @pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_networks_compiled_as_one_graph(self, kwargs, backend):
        knobs = dict(stn_freeze_steps=2, stn_penalty=1.0)
        plain, model = in_training(**kwargs, **knobs), in_training(**kwargs, **knobs)
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
        model = in_training(stn_freeze_steps=2)
        backward(model)
        assert model.state_dict()['stn.backward_passes'] == 1
        torch.save(model.state_dict(), tmp_path / 'last.pth')
        resumed = in_training(stn_freeze_steps=2)
        resumed.load_state_dict(torch.load(tmp_path / 'last.pth'))
        assert not backward(resumed)['stn.localization.regression.bias'].any()
        assert backward(resumed)['stn.localization.regression.bias'].any()

    def test_checkpoints_with_and_without_a_count_load(self):
        without, having = in_training(stn_stages=('input', 1)), in_training(stn_stages=('input', 1), stn_freeze_steps=2)
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
        model = in_training(stn_freeze_steps=1, stn_penalty=0.5)
        backward(model)
        save_for_hf(model, tmp_path)
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
        model = in_training(stn_freeze_steps=5)
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
        model = in_training(stn_freeze_steps=2)
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
    @pytest.mark.parametrize('transform', [*PLANAR, 'affine3d'])
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

    @pytest.mark.parametrize('transform', [*(name for name in PLANAR if name != 'zoom'), 'affine3d'])  # it stays inside
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


def half_square(theta):
    """A penalty whose gradient p is theta itself."""
    return (theta.square() / 2).flatten(1).sum(1)


def attached(theta, slope, strength=0.5, usual=None, penalty=half_square, glimpses=1):
    """The gradient that theta gets where the loss gives ``slope``."""
    theta, usual = theta.clone().requires_grad_(), torch.zeros(()) if usual is None else usual
    out = training.attach_penalty(theta, penalty, strength, usual, glimpses)
    assert torch.equal(out, theta) or theta.isnan().any()
    out.backward(slope)
    return theta.grad


def pass_by_numpy(theta, slope, strength, usual):
    """Gradients (N, ...) of one pass, and the usual norm after it, in the words of the docstring."""
    norm = np.linalg.norm(slope.sum(0))
    if norm > 0 and np.isfinite(norm):
        usual = usual + 0.1 * (norm - usual) if usual else norm
    size = strength * usual / len(theta)
    return np.stack([g + size * p / max(1, np.linalg.norm(p)) for p, g in zip(theta, slope)]), usual


class TestAttachPenalty:
    """The penalty here is |theta| ** 2 / 2, whose gradient p is theta itself."""

    def test_what_is_added(self):
        usual, wanted, norms = torch.zeros(()), 0.0, []
        for seed, (n, size) in enumerate([(5, 1.0), (3, 50.0), (1, 0.01), (4, 0.0), (6, 1.0)]):
            theta = randn(n, 2, 3, seed=seed) * torch.tensor([0.01, 100, 1, 0.1, 10, 1])[:n, None, None]
            slope = size * randn(n, 2, 3, seed=seed + 10)
            found = attached(theta, slope, 0.5, usual)
            expected, wanted = pass_by_numpy(theta.double().numpy(), slope.double().numpy(), 0.5, wanted)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * size)
            assert usual.item() == pytest.approx(wanted, rel=1e-5) and not torch.equal(found, slope)
            norms.append(usual.item())
        assert len(set(norms)) == 4 and norms[2] == norms[3], 'a gradient of zero tells nothing'

    @settings(max_examples=200, deadline=None)
    @given(
        st.integers(0, 2 ** 31), st.integers(1, 9), st.integers(1, 3), st.floats(0, 10),
        *[st.floats(-6, 6)] * 3, st.booleans(), st.booleans())
    @example(0, 9, 2, 0.5, 0.0, 2.0, 0.0, True, True)
    def test_over_a_batch_at_most_strength_times_the_gradient_of_the_loss(
            self, seed, n, glimpses, strength, of_loss, of_penalty, before, cancels, together):
        """Gradients of images that cancel, or not; penalties that all point the same way, or not."""
        theta, slope = (randn(n * glimpses, 2, 3, seed=s, dtype=torch.float64) for s in (seed, seed + 1))
        theta, slope = 10 ** of_penalty * theta, 10 ** of_loss * slope
        slope = slope - 0.99 * slope.mean(0) if cancels else slope
        theta = theta[:glimpses].repeat(n, 1, 1) if together else theta
        rounding = 1e-12 * slope.abs().sum()

        def judge(theta):
            return (theta.square() / 2).reshape(n, -1).sum(1)
        first, later = torch.zeros(()), torch.tensor(10 ** before)
        for usual in (first, later):
            added = attached(theta, slope, strength, usual, judge, glimpses) - slope
            of_batch = added.reshape(n, -1).sum(0).norm()
            assert of_batch <= strength * usual * (1 + 1e-6) + rounding
            if together and 10 ** of_penalty > 100:
                assert of_batch >= strength * usual * (1 - 1e-6) - rounding, 'nor is it less'
        norm = slope.reshape(n, -1).sum(0).norm().item()
        assert first.item() == pytest.approx(norm, rel=1e-6)
        assert later.item() == pytest.approx(0.9 * 10 ** before + 0.1 * norm, rel=1e-6)

    def test_glimpses_of_an_image_go_together(self):
        theta, slope = randn(6, 2, 3), randn(6, 2, 3, seed=1)
        slope[0] = 0  # that glimpse sees nothing
        of_image = attached(theta, slope, glimpses=2, penalty=lambda t: (t.square() / 2).reshape(3, -1).sum(1))
        torch.testing.assert_close(of_image.reshape(3, -1), attached(theta.reshape(3, -1), slope.reshape(3, -1)))
        assert of_image[0].any()

    @pytest.mark.parametrize('scale', [2.0 ** 16, 2.0 ** -16])
    def test_follows_loss_scaling(self, scale):
        theta, slope = randn(5, 2, 3), randn(5, 2, 3, seed=1)
        assert torch.equal(attached(theta, scale * slope), scale * attached(theta, slope))
        usual = slope.sum(0).norm()
        for _ in range(30 if scale < 1 else 60):
            found = attached(theta, 2 * slope, usual=usual)
        torch.testing.assert_close(found, 2 * attached(theta, slope), rtol=0.03, atol=0.01)

    def test_looks_at_nothing_are_pulled_back_once_there_was_a_gradient(self):
        theta, nothing, usual = randn(5, 2, 3), torch.zeros(5, 2, 3), torch.zeros(())
        assert not attached(theta, nothing, usual=usual).any() and usual == 0
        attached(theta, randn(5, 2, 3, seed=1), usual=usual)
        known = usual.clone()
        for _ in range(100):
            added = attached(theta, nothing, usual=usual)
        expected, _ = pass_by_numpy(theta.numpy(), nothing.numpy(), 0.5, known.item())
        np.testing.assert_allclose(added, expected, rtol=1e-5)
        assert usual == known > 0

    @pytest.mark.parametrize('known', [0.0, 2.0])
    def test_what_is_not_finite_is_not_taken_in(self, known):
        theta, slope, usual = randn(5, 2, 3), randn(5, 2, 3, seed=1), torch.tensor(known)
        slope[1, 0, 0], slope[2, 0, 0], theta[3, 0, 0], slope[4] = torch.inf, torch.nan, torch.nan, 1e30
        grad = attached(theta, slope, usual=usual)
        assert usual == known
        assert torch.equal(grad.isfinite(), slope.isfinite()) and grad[1, 0, 0] == torch.inf
        torch.testing.assert_close(grad[3], slope[3], rtol=0, atol=0)
        expected, _ = pass_by_numpy(theta[:1].numpy(), slope[:1].numpy() * 0, 0.5, known / 5)
        torch.testing.assert_close(grad[0] - slope[0], torch.from_numpy(expected[0]).float())
        slope = slope.nan_to_num(0, 0)[:4] + 1
        assert attached(theta[:3], slope[:3], usual=usual).isfinite().all() and 0 < usual < torch.inf

    def test_too_large_for_the_buffer(self):
        usual = torch.tensor(2.0)
        attached(randn(2, 2, 3, dtype=torch.float64), torch.full((2, 2, 3), 1e100, dtype=torch.float64), usual=usual)
        assert usual == 2

    def test_empty_batch(self):
        usual = torch.tensor(2.0)
        assert attached(torch.zeros(0, 2, 3), torch.zeros(0, 2, 3), usual=usual).shape == (0, 2, 3) and usual == 2
        stn = SpatialTransformer(3, (8, 8), localization='linear', penalty=1.0, freeze_steps=1, glimpses=2)
        stn(torch.zeros(0, 3, 8, 8)).sum().backward()
        assert not stn.localization.regression.bias.grad.any()

    def test_second_derivatives(self):
        """The usual gradient is a constant, which later passes may change."""
        theta, usual = randn(3, 2, 3).requires_grad_(), torch.zeros(())
        out = training.attach_penalty(theta, half_square, 0.5, usual)
        grad, = torch.autograd.grad(out.pow(3).sum(), theta, create_graph=True)
        attached(theta.detach(), randn(3, 2, 3, seed=1), usual=usual)
        assert not usual.requires_grad
        second, = torch.autograd.grad(grad.sum(), theta)
        assert second.isfinite().all() and second.any()


class TestPenalty:
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_at_the_start_gradients_are_as_without(self, kwargs):
        plain, model = in_training(**kwargs, move=0), in_training(**kwargs, move=0, stn_penalty=3.0)
        expected, grads = backward(plain), backward(model)
        assert all(torch.equal(g, expected[n]) for n, g in grads.items())

    def test_evaluation_has_the_gradients_of_the_loss_alone(self):
        knobs = dict(move=3, stn_bound=False, stn_glimpses=2, stn_scale=0.5)
        expected, grads = (backward(in_training(**knobs, stn_penalty=p).eval()) for p in (0.0, 3.0))
        assert all(torch.equal(g, expected[n]) for n, g in grads.items())
        key = 'stn.localization.regression.bias'
        assert not torch.allclose(backward(in_training(**knobs, stn_penalty=3.0))[key], expected[key])

    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_scaled_gradients_are_those_of_the_loss(self, kwargs):
        knobs = dict(**kwargs, stn_bound=False)
        expected, scaled = (backward(in_training(**knobs, stn_penalty=2.0), scale=s) for s in (1.0, 1024.0))
        plain = backward(in_training(**knobs))
        assert any(not torch.allclose(expected[n], plain[n], rtol=0.01) for n in plain if 'regression' in n)
        for name, g in scaled.items():
            torch.testing.assert_close(g / 1024, expected[name], rtol=1e-3, atol=1e-5 * expected[name].abs().max())

    @pytest.mark.parametrize('opt', ['sgd', 'adamw'])
    @pytest.mark.parametrize('fault', ['outside', 'point', 'together'])
    def test_keeps_glimpses_in_place_against_a_loss_that_drives_them_away(self, fault, opt):
        placed = {}
        for strength in (0.0, 2.0):
            stn = SpatialTransformer(
                1, (16, 16), 'attention', 'linear', lr_scale=30.0, glimpses=2, scale=0.5, bound=False,
                penalty=strength)
            optimizer = create_optimizer_v2(stn, opt, lr=0.02, weight_decay=0.0)
            x = rand(8, 1, 16, 16)
            for _ in range(500):
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
            assert apart[0].max() < 0.06 and apart[1].min() > 0.12, 'the bases are 1 apart'

    @pytest.mark.parametrize('strength', [0.0, 2.0])
    def test_a_blank_look_is_pulled_back(self, strength):
        """Wholly outside an image whose edge is one colour, so that no pixel changes with theta."""
        x = nn.functional.pad(rand(8, 1, 8, 8, seed=3), [4] * 4)
        stn = SpatialTransformer(
            1, (16, 16), 'translation', 'linear', lr_scale=30.0, scale=0.5, bound=False, padding_mode='border',
            penalty=strength)
        optimizer = torch.optim.SGD(stn.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        bias = stn.localization.regression.bias

        def step():
            optimizer.zero_grad()
            (stn(x) - 1).square().mean().backward()
            optimizer.step()
            return bias.grad.any()
        assert all(step() for _ in range(5))
        with torch.no_grad():
            bias.add_(1.6 / stn.scale / stn.localization.regression.lr_scale)
        optimizer.state.clear()
        assert bool(step()) == (strength > 0) and stn.placement_penalty(stn.last_theta).min() > 0
        for _ in range(600):
            step()
        farthest = stn.last_theta[..., 2].abs().max()
        assert farthest < 0.55 if strength else farthest > 1.5, 'the look is inside the image up to 0.5'

    def test_blank_from_the_very_first_pass_nothing_is_added(self):
        stn = SpatialTransformer(1, (16, 16), 'translation', 'linear', scale=0.5, bound=False, penalty=2.0)
        nn.init.constant_(stn.localization.regression.bias, 1.0)
        stn(rand(4, 1, 16, 16) * 0 + 1).square().sum().backward()
        assert stn.placement_penalty(stn.last_theta).min() > 0
        assert stn.usual_gradient == 0 and not stn.localization.regression.bias.grad.any()

    def test_gradients_that_are_not_finite_are_forgotten(self):
        model = in_training(stn_penalty=1.0)
        for scale, known in ((torch.nan, False), (1.0, True), (torch.nan, True), (torch.inf, True)):
            before = usual_gradients(model)
            backward(model, scale=scale)
            assert all(u.isfinite() and bool(u > 0) == known for u in usual_gradients(model))
            assert scale == 1 or usual_gradients(model) == before


def usual_gradients(model):
    return [t.usual_gradient.clone() for t in transformers(model)]


class TestUsualGradient:
    """The buffer that holds it."""

    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_is_that_of_theta(self, kwargs, monkeypatch):
        model, grads, penalised = in_training(**kwargs, stn_penalty=1.0), {}, SpatialTransformer._penalised

        def watched(stn, pose):
            pose = penalised(stn, pose)
            if pose.theta.requires_grad:
                pose.theta.register_hook(lambda g: grads.setdefault(stn, g))
            return pose
        monkeypatch.setattr(SpatialTransformer, '_penalised', watched)
        backward(model)
        assert set(grads) == set(transformers(model))
        for stn, g in grads.items():
            of_batch = g.double().reshape(len(g) // stn.glimpses, -1).numpy().sum(0)
            assert stn.usual_gradient.item() == pytest.approx(np.linalg.norm(of_batch), rel=1e-4)

    def test_is_not_in_checkpoints(self):
        without, having = in_training(), in_training(stn_penalty=1.0)
        backward(having)
        assert having.state_dict().keys() == without.state_dict().keys() and usual_gradients(having)[0] > 0
        assert 'usual_gradient' not in dict(without.stn.named_buffers())
        without.load_state_dict(having.state_dict())
        having.load_state_dict(without.state_dict())
        assert usual_gradients(having)[0] > 0, 'loading leaves it'
        having.init_weights()
        assert usual_gradients(having) == [0]

    def test_copies_have_their_own(self):
        model = in_training(stn_penalty=1.0)
        backward(model)
        twin, before = copy.deepcopy(model), usual_gradients(model)
        backward(twin, scale=2.0)
        assert usual_gradients(model) == before != usual_gradients(twin)

    @pytest.mark.parametrize('cast', [nn.Module.half, nn.Module.bfloat16, nn.Module.double, nn.Module.cpu])
    def test_stays_as_it_is_in_a_model_of_another_dtype(self, cast):
        stn = SpatialTransformer(3, (8, 8), localization='linear', penalty=1.0)
        stn.usual_gradient.fill_(1e6 + 1)  # more than float16 has
        assert cast(stn).usual_gradient == 1e6 + 1 and stn.usual_gradient.dtype == torch.float32
        assert stn._non_persistent_buffers_set == {'base', 'usual_gradient'}

    def test_leaves_the_meta_device(self):
        with torch.device('meta'):
            stn = SpatialTransformer(3, (8, 8), localization='linear', penalty=1.0).half()
        assert stn.usual_gradient.is_meta and stn.usual_gradient.dtype == torch.float32
        stn.to_empty(device='cpu').usual_gradient.fill_(7)
        stn.init_non_persistent_buffers()
        assert stn.usual_gradient == 0 and stn.usual_gradient.dtype == torch.float32

    def test_moves_with_each_call_and_in_training_only(self):
        model, x = in_training(stn_penalty=1.0), rand(4, 3, 64, 64)
        backward(model.eval(), x)
        assert usual_gradients(model) == [0]
        with torch.no_grad():
            model.train()(x)
        assert usual_gradients(model) == [0]

    @pytest.mark.xfail(torch.__version__.startswith('2.6.'), reason='vmap of torch 2.6 wants gradients of all inputs')
    def test_of_every_sample_is_used_and_not_kept(self):
        stn = SpatialTransformer(1, (8, 8), localization='linear', bound=False, penalty=1.0)
        nn.init.normal_(stn.localization.regression.bias, std=0.05)
        weights, x = {n: p.detach() for n, p in stn.named_parameters()}, rand(3, 1, 8, 8)

        def loss(weights, x):
            return torch.func.functional_call(stn, weights, (x[None],)).square().sum()
        found = torch.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        assert stn.usual_gradient == 0
        for i in range(3):
            alone = copy.deepcopy(stn)
            alone(x[i:i + 1]).square().sum().backward()
            assert alone.usual_gradient > 0
            for name, p in alone.named_parameters():
                torch.testing.assert_close(found[name][i], p.grad)


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
        model = in_training(**kwargs, **knobs)
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
