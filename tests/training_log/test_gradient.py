"""Thetas and their gradients as a training gives them: compared with those of leaves, whatever the scale."""
import contextlib

import pytest
import torch
from makers import in_training, rand, randn
from torch import nn

from timm_stn import SpatialTransformer, warp
from timm_stn.training_log.gradient import Gradients, named_transformers


class Given(nn.Module):
    """A localization network whose answers are parameters: for an affine family theta's gradient is theirs."""

    def __init__(self, n):
        super().__init__()
        self.params = nn.Parameter(0.1 * randn(n, 6))
        self.begin = 0

    def forward(self, x):
        self.begin += len(x)
        return self.params[self.begin - len(x):self.begin]


class Net(nn.Module):
    def __init__(self, n=6):
        super().__init__()
        torch.manual_seed(0)
        self.stn = SpatialTransformer(2, (8, 10), localization=Given(n))
        self.head = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 3))

    def spatial_transformers(self):
        return {'input': self.stn}

    def forward(self, x):
        return self.head(self.stn(x))


@contextlib.contextmanager
def gathering(net, wanted=lambda: True):
    gradients = Gradients(net, wanted, lambda run: run)
    try:
        yield gradients
    finally:
        gradients.detach()
        assert SpatialTransformer.recorder is None


def target(net, x):
    return net(x).square().mean()


X = rand(6, 2, 8, 10)


def norm(tensors):
    return torch.cat([t.flatten() for t in tensors]).norm().item()


@pytest.mark.parametrize('scale', [1.0, 65536.0, 1e-3])
def test_ratio_is_that_of_the_norms_whatever_the_scale(scale):
    """As with mixed precision, where gradients are unscaled, and clipped, only after the backward pass."""
    net = Net()
    with gathering(net) as gradients:
        (scale * target(net, X)).backward()
        want = net.stn.localization.params.grad.norm().item() / norm([p.grad for p in net.head.parameters()])
        for p in net.parameters():
            p.grad.mul_(0.01)
        assert gradients.ratios('input') == pytest.approx([want], rel=1e-5)
        assert torch.equal(gradients.thetas()['input'], net.stn.last_theta)


def test_accumulated_passes_are_as_one_of_the_whole_batch():
    ratios = []
    for parts in (1, 3):
        net = Net()
        with gathering(net) as gradients:
            for x in X.chunk(parts):
                (target(net, x) / parts).backward()
            ratios += gradients.ratios('input')
            assert len(gradients.thetas()['input']) == 6
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)


def test_an_overflow_gives_no_ratio_and_the_next_pass_its_own():
    net = Net()
    with gathering(net) as gradients:
        (float('inf') * target(net, X)).backward()
        assert gradients.ratios('input') is None and not gradients.thetas()
        net.zero_grad()
        net.stn.localization.begin = 0
        target(net, X).backward()
        want = net.stn.localization.params.grad.norm().item() / norm([p.grad for p in net.head.parameters()])
        assert gradients.ratios('input') == pytest.approx([want], rel=1e-5)


def test_only_what_trains_is_seen():
    net = Net(30)
    with gathering(net) as gradients:
        with torch.no_grad():
            net(X)
        net.eval()
        target(net, X).backward()
        assert not gradients.thetas()
        net.train()
        net(X)  # no gradient comes to it
        assert not gradients.thetas()
        net.stn.requires_grad_(False)
        target(net, X).backward()
        assert len(gradients.thetas()['input']) == 6 and gradients.ratios('input') is None
    with gathering(Net(), lambda: False) as gradients:
        target(net, X).backward()
        assert not gradients.thetas()


def test_a_frozen_backbone_has_no_ratio():
    net = Net()
    net.head.requires_grad_(False)
    with gathering(net) as gradients:
        target(net, X).backward()
        assert len(gradients.thetas()['input']) == 6 and gradients.ratios('input') is None


def test_recomputed_passes_count_once():
    net = Net(12)
    with gathering(net) as gradients:
        seen = torch.utils.checkpoint.checkpoint(net.stn, X, use_reentrant=False)
        net.head(seen).square().mean().backward()
        assert len(gradients.thetas()['input']) == 6


def test_each_glimpse_has_its_own():
    """The theta that `look` returns has the gradient of what was seen: that of a leaf in its place."""
    stn = SpatialTransformer(2, (8, 10), 'affine', 'linear', glimpses=2, scale=0.5)
    weight = randn(6, 2, 2, 8, 10) * torch.tensor([1.0, 5.0])[:, None, None, None]

    class Glimpsing(nn.Module):
        def __init__(self):
            super().__init__()
            self.stn, self.gain = stn, nn.Parameter(torch.ones(()))

        def spatial_transformers(self):
            return {'input': self.stn}

    net = Glimpsing()
    with gathering(net) as gradients:
        (net.gain * (stn(X) * weight).sum()).backward()
        ratios = gradients.ratios('input')
    leaf = stn.last_theta.clone().requires_grad_()
    (warp(X.repeat_interleave(2, 0), leaf.flatten(0, 1)).unflatten(0, (6, 2)) * weight).sum().backward()
    want = [leaf.grad[:, g].norm().item() / net.gain.grad.abs().item() for g in range(2)]
    assert ratios == pytest.approx(want, rel=1e-4) and want[1] > 2 * want[0]


@pytest.mark.parametrize('kwargs', [
    dict(stn_stages=('input', 1)), dict(stn_stages=('input', 1), stn_glimpses=2, stn_scale=0.5, stn_towers='separate'),
    dict(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5)])
def test_all_transformers_of_a_network_are_seen(kwargs):
    net = in_training(**kwargs)
    names = named_transformers(net)
    assert [str(stage) for stage in net.spatial_transformers()] == list(names)[:2]
    with gathering(net) as gradients:
        net(rand(3, 3, 64, 64)).square().mean().backward()
        assert set(gradients.thetas()) == set(names)
        for name, stn in names.items():
            assert len(gradients.ratios(name)) == stn.rows * stn.glimpses
            assert all(0 < ratio < 1e4 for ratio in gradients.ratios(name))
