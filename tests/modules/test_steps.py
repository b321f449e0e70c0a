"""Bounded steps: what an optimizer's step does to theta, whatever the optimizer, and what it leaves alone."""
import copy
import gc
import pickle
import sys
import threading

import pytest
import timm
import torch
import torch.nn.utils.parametrizations
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import generator, randn
from timm.optim import create_optimizer_v2
from torch import nn

import timm_stn  # noqa: F401
from timm_stn.modules import steps
from timm_stn.modules.localization import Localization

OPTIMIZERS = {
    'sgd': dict(momentum=0.9), 'nesterov': dict(momentum=0.9), 'adamw': {}, 'lion': {}, 'muon': {}, 'lamb': {}}


def network(seed=0, lr_scale=10.0):
    torch.manual_seed(seed)
    return Localization('conv', 1, (28, 28), 6, lr_scale=lr_scale)


def loss(net, x, scale=1.0, slope_seed=5):
    return scale * (net(x).params * randn(6, seed=slope_seed)).sum(1).mean()


def train(net, opt='sgd', lr=10.0, count=5, scale=1.0, accumulate=1):
    """Theta's move of each step (root mean square over features that are standard and uncorrelated, by the weights)."""
    optimizer = create_optimizer_v2(net, opt, lr=lr, weight_decay=0.0, **OPTIMIZERS.get(opt, {}))
    moves = []
    for i in range(count):
        optimizer.zero_grad()
        for part in randn(8, 1, 28, 28, seed=i).chunk(accumulate):
            (loss(net, part, scale, slope_seed=i) / accumulate).backward()
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.step()
        changes = {n: (p.detach() - q, q) for (n, p), q in zip(net.named_parameters(), before)}
        weight, bias = changes['regression.weight'][0], changes['regression.bias'][0]
        theta = net.regression.lr_scale * (weight.double().square().sum() / 20 + bias.double().square().sum()).sqrt()
        shares = [float(c.norm() / q.norm().clamp_min(0.01 * q.numel() ** 0.5))
                  for n, (c, q) in changes.items() if n.startswith('body')]
        moves.append((float(theta), max(shares)))
    return moves


class TestBound:
    @pytest.mark.parametrize('scale', [1e-3, 1.0, 1e6])
    @pytest.mark.parametrize('lr_scale', [0.1, 10.0])
    @pytest.mark.parametrize('opt', OPTIMIZERS)
    def test_of_every_step_under_every_optimizer(self, opt, lr_scale, scale):
        for theta, share in train(network(lr_scale=lr_scale), opt, scale=scale):
            assert 0 < theta <= steps.STEP * lr_scale * 1.001 and share <= steps.SHARE * 1.001

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
    def test_in_other_dtypes(self, dtype):
        net = network().to(dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=10.0, momentum=0.9)
        for i in range(3):
            optimizer.zero_grad()
            loss(net, randn(8, 1, 28, 28, seed=i).to(dtype)).backward()
            before = copy.deepcopy(net.state_dict())
            optimizer.step()
            weight, bias = (net.state_dict()[f'regression.{n}'].double() - before[f'regression.{n}'].double()
                            for n in ('weight', 'bias'))
            moved = (weight.square().sum() / 20 + bias.square().sum()).sqrt()
            assert 0 < moved <= steps.STEP * 1.02 and net.regression.weight.dtype == dtype

    def test_a_step_that_fails_leaves_nothing_to_the_next(self):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        loss(net, randn(8, 1, 28, 28)).backward()

        def fail():
            raise RuntimeError('of the user')

        with pytest.raises(RuntimeError, match='of the user'):
            optimizer.step(fail)
        net.eval().zero_grad()
        with torch.no_grad():
            net.regression.weight.fill_(3.0)
        optimizer.step()
        assert not steps._steps.open and (net.regression.weight == 3).all()

    def test_without_it_the_same_steps_are_larger(self, monkeypatch):
        monkeypatch.setattr(steps, 'STEP', 1e9)
        assert max(theta for theta, _ in train(network())) > 1

    def test_small_steps_are_left_alone(self, monkeypatch):
        bounded, plain = network(), network()
        train(bounded, 'adamw', lr=1e-6)
        monkeypatch.setattr(steps, 'STEP', 1e9)
        monkeypatch.setattr(steps, 'SHARE', 1e9)
        train(plain, 'adamw', lr=1e-6)
        for p, q in zip(bounded.parameters(), plain.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-9)

    def test_theta_really_moves_by_no_more(self):
        """On images, root mean square: the features are a little correlated."""
        net = network()
        x = randn(256, 1, 28, 28, seed=3)
        for _ in range(20):
            net(x).params.sum().backward()  # statistics
        start = net.eval()(x).params
        net.train()
        optimizer = torch.optim.SGD(net.regression.parameters(), lr=1e3)
        optimizer.zero_grad()
        loss(net, x).backward()
        optimizer.step()
        moved = (net.eval()(x).params - start).square().sum(1).mean().sqrt()
        assert 0 < moved < 2 * steps.STEP * 10

    def test_is_exact_under_accumulation(self):
        """Steps count, not backward passes: of the regression, whose gradients no batch statistics enter."""
        nets = [network(), network()]
        for net, parts in zip(nets, (1, 4)):
            net.standardize.eval()  # whose statistics are of each backward pass
            net.body.requires_grad_(False)
            train(net, accumulate=parts)
        torch.testing.assert_close(nets[0].regression.weight, nets[1].regression.weight, rtol=1e-3, atol=1e-6)

    @settings(max_examples=50, deadline=None)
    @given(st.floats(1e-9, 1e9), st.integers(1, 40), st.integers(1, 50))
    def test_excess(self, size, params, features):
        weight, bias = size * randn(params, features), size * randn(params, seed=1)
        times = steps.excess(dict(weight=weight, bias=bias))
        short = [weight / times, bias / times]
        moved = (short[0].double().square().sum() / features + short[1].double().square().sum()).sqrt()
        limit = steps.STEP * max(1, params / steps.TOGETHER) ** 0.5
        assert times >= 1 and moved <= limit * 1.0001 and (times == 1 or moved >= limit * 0.9999)


class TestWhom:
    def test_copies_and_pickles_too(self):
        for net in (copy.deepcopy(network()), pickle.loads(pickle.dumps(network()))):
            assert max(theta for theta, _ in train(net)) <= steps.STEP * 10 * 1.001

    def test_not_what_is_in_evaluation_nor_old_weights_nor_other_layers(self):
        for change in (lambda net: net.eval(), lambda net: net.standardize.num_batches_tracked.fill_(-1)):
            net = network()
            change(net.train())
            net.standardize.train(net.training)
            assert max(theta for theta, _ in train(net)) > 10 * steps.STEP
        layer = nn.Linear(3, 3)
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.ones(3, 3)
        torch.optim.SGD(layer.parameters(), lr=10.0).step()
        torch.testing.assert_close(layer.weight, before - 10)

    def test_nothing_is_kept(self):
        gc.collect()
        before = len(steps._bounded)
        net = network()
        train(net)
        assert len(steps._bounded) == before + 1 and not steps._steps.open
        del net
        gc.collect()
        assert len(steps._bounded) == before

    def test_an_optimizer_of_other_parameters_does_not_matter(self):
        net, other = network(), nn.Linear(2, 2)
        loss(net, randn(4, 1, 28, 28)).backward()
        gradient = net.regression.bias.grad.clone()
        other.weight.grad = torch.ones(2, 2)
        torch.optim.SGD(other.parameters(), lr=10.0).step()
        assert torch.equal(net.regression.bias.grad, gradient)


@pytest.mark.parametrize('opt', ['nesterov', 'adamw', 'lion', 'muon', 'lamb'])
def test_theta_stays_near_the_identity_at_first(opt):
    """Default arguments, a backbone from scratch, and a rate that is too high for it."""
    torch.manual_seed(0)
    model = timm.create_model('stn_mnist_cnn', in_chans=1, img_size=28, num_classes=10)
    optimizer = create_optimizer_v2(model, opt, lr=0.1, momentum=0.9)
    x, y = randn(64, 1, 28, 28), torch.arange(64) % 10
    for i in range(60):
        index = torch.randperm(64, generator=generator(i))[:16]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
        distance = (model.stn.last_theta - torch.eye(2, 3)).flatten(1).norm(dim=1)
        assert distance.max() < 1


class TestWhereStepsAreTaken:
    def optimizer_moves(self, net, optimizers, count=5, closure=False):
        moves = []
        for i in range(count):
            def backward(i=i):
                net.zero_grad()
                value = loss(net, randn(8, 1, 28, 28, seed=i), slope_seed=i)
                value.backward()
                return value
            if not closure:
                backward()
            before = {n: p.detach().clone() for n, p in net.named_parameters()}
            for optimizer in optimizers:
                optimizer.step(*([backward] if closure else []))
            moves.append({n: (p.detach() - before[n]).norm().item() for n, p in net.named_parameters()})
        return moves

    @pytest.mark.parametrize('opt', [torch.optim.SGD, torch.optim.AdamW])
    def test_weight_and_bias_in_two_optimizers(self, opt):
        net = network()
        matrices = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim == 1]
        for move in self.optimizer_moves(net, [opt(matrices, lr=10.0), opt(rest, lr=10.0)]):
            assert 0 < move['regression.weight'] / 20 ** 0.5 <= steps.STEP * 1.001
            assert 0 < move['regression.bias'] <= steps.STEP * 1.001

    def test_one_of_them_frozen(self):
        net = network()
        net.regression.bias.requires_grad_(False)
        for move in self.optimizer_moves(net, [torch.optim.SGD(net.parameters(), lr=10.0)]):
            assert 0 < move['regression.weight'] / 20 ** 0.5 <= steps.STEP * 1.001 and move['regression.bias'] == 0

    def test_gradients_of_a_closure(self):
        net = network()
        for move in self.optimizer_moves(net, [torch.optim.SGD(net.parameters(), lr=10.0)], closure=True):
            length = (move['regression.weight'] ** 2 / 20 + move['regression.bias'] ** 2) ** 0.5
            assert 0 < length <= steps.STEP * 1.001

    def test_a_step_within_a_step_counts_once(self):
        """As of ZeroRedundancyOptimizer, whose processes each step a part of what all of them see."""
        class Outer(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, dict(lr=10.0))
                self.inner = torch.optim.SGD(self.param_groups, lr=10.0)

            def step(self, closure=None):
                self.inner.step()

        nets = network(), network()
        self.optimizer_moves(nets[0], [Outer(list(nets[0].parameters()))])
        self.optimizer_moves(nets[1], [torch.optim.SGD(nets[1].parameters(), lr=10.0)])
        for p, q in zip(nets[0].parameters(), nets[1].parameters()):
            assert torch.equal(p, q)

    @pytest.mark.parametrize('keep', [False, True])
    def test_after_a_step_that_failed_others_are_bounded(self, keep):
        net = network()
        loss(net, randn(8, 1, 28, 28)).backward()

        def fail():
            raise RuntimeError('of the user')

        failed = torch.optim.SGD(net.parameters(), lr=1.0)
        with pytest.raises(RuntimeError) as error:
            failed.step(fail)
        if not keep:
            del failed, error
        for move in self.optimizer_moves(net, [torch.optim.AdamW(net.parameters(), lr=0.1)], count=2):
            assert 0 < move['regression.weight'] / 20 ** 0.5 <= steps.STEP * 1.001
        assert not steps._steps.open

    def test_a_subclass_that_goes_on_where_its_parent_ends(self):
        class Further(torch.optim.SGD):
            def step(self, closure=None):
                super().step(closure)
                with torch.no_grad():
                    for group in self.param_groups:
                        for p in group['params']:
                            p.add_(0.1)

        net = network()
        torch.optim.SGD(net.parameters(), lr=1.0)  # whose class has hooks by now
        for move in self.optimizer_moves(net, [Further(net.parameters(), lr=1.0)]):
            length = (move['regression.weight'] ** 2 / 20 + move['regression.bias'] ** 2) ** 0.5
            assert 0 < length <= steps.STEP * 1.001

    def test_frozen_parameters_that_momentum_still_moves(self):
        net = network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        self.optimizer_moves(net, [optimizer], count=3)
        net.requires_grad_(False)
        before = net.regression.weight.clone()
        optimizer.step()
        assert 0 < (net.regression.weight - before).norm() / 20 ** 0.5 <= steps.STEP * 1.001

    def test_a_regression_that_is_parametrized_or_pruned_is_stepped(self):
        for change in (
                lambda layer: nn.utils.prune.l1_unstructured(layer, 'weight', amount=0.1),
                nn.utils.parametrizations.weight_norm):
            net = network()
            with torch.no_grad():
                net.regression.weight.copy_(randn(6, 20))
            change(net.regression)
            self.optimizer_moves(net, [torch.optim.SGD(net.parameters(), lr=1e-3)], count=2)

    def test_threads_do_not_meet(self):
        net, errors = network(), []

        def work():
            layer = nn.Linear(2, 2)
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
            try:
                for _ in range(200):
                    layer(torch.ones(1, 2)).sum().backward()
                    optimizer.step()
            except RuntimeError as error:
                errors.append(error)

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=work) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
        assert not errors and net.training

    def test_gradients_of_half_precision_do_not_overflow(self):
        net = network().half()
        for p in net.parameters():
            p.grad = torch.full_like(p, 1000.0)
        before = net.regression.bias.clone()
        torch.optim.SGD(net.parameters(), lr=10.0).step()
        assert (net.regression.bias != before).all()
