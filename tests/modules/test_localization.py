"""Localization networks: the paper's layers, and sizes."""
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import randn
from torch import nn

from timm_stn.modules.localization import Localization, localization_names


def counts(net):
    return sum(p.numel() for p in net.parameters())


class TestPaper:
    """Appendix A.4; parameters of an affine theta on one channel."""

    @pytest.mark.parametrize(('side', 'expected'), [(28, 11_086), (42, 17_086), (60, 43_086)])
    def test_conv(self, side, expected):
        net = Localization('conv', 1, (side, side), 6)
        convs = [m for m in net.body if isinstance(m, nn.Conv2d)]
        pool, = (m for m in net.body if isinstance(m, nn.MaxPool2d))
        hidden, = (m for m in net.body if isinstance(m, nn.Linear))
        kinds = [type(m).__name__ for m in net.body]
        assert net.size == (side // 2, side // 2)
        assert kinds == ['Conv2d', 'ReLU', 'MaxPool2d', 'Conv2d', 'ReLU', 'Flatten', 'Linear'] and net.standardize.relu
        layers = [(c.kernel_size, c.stride, c.padding, c.out_channels) for c in convs]
        assert layers == [((5, 5), (1, 1), (0, 0), 20)] * 2
        assert (pool.kernel_size, pool.stride, hidden.out_features) == (2, 2, 20)
        assert counts(net) == expected

    @pytest.mark.parametrize(('side', 'expected'), [(28, 27_430), (42, 58_790), (60, 117_542)])
    def test_fc(self, side, expected):
        net = Localization('fc', 1, (side, side), 6)
        assert net.size == (side, side)
        assert [m.out_features for m in net.body if isinstance(m, nn.Linear)] == [32, 32, 32]
        assert sum(isinstance(m, nn.ReLU) for m in net.body) == 2 and net.standardize.relu
        assert counts(net) == expected


SIDES = st.integers(1, 60)


class TestLocalization:
    @settings(max_examples=20, deadline=None)
    @given(kind=st.sampled_from(localization_names()), made=st.tuples(SIDES, SIDES), seen=st.tuples(SIDES, SIDES))
    def test_any_size(self, kind, made, seen):
        net = Localization(kind, 2, made, 6)
        theta = net(randn(3, 2, *seen)).params
        assert torch.equal(theta, torch.zeros(3, 6)) and theta.dtype == torch.float32
        theta.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    @pytest.mark.parametrize(('kind', 'made', 'size'), [
        ('conv', (1, 1), (1, 1)),
        ('conv', (10, 20), (10, 14)),
        ('conv', (42, 60), (21, 30)),
        ('conv', (224, 300), (64, 64)),
        ('fc', (7, 60), (7, 60)),
        ('fc', (224, 100), (64, 64)),
        ('linear', (7, 60), (7, 16)),
        ('timm:test_resnet', (40, 224), (40, 160)),
        ('conv', (10, 42, 60), (10, 21, 30)),
    ])
    def test_default_size(self, kind, made, size):
        assert Localization(kind, 1, made, 6).size == size

    @pytest.mark.parametrize('size', [(1, 1, 1), (5, 7, 9), (28, 20, 30)])
    @pytest.mark.parametrize('kind', localization_names())
    def test_volumes(self, kind, size):
        net = Localization(kind, 2, size, 12)
        assert net(randn(2, 2, 6, 11, 8)).params.shape == (2, 12)
        assert any(isinstance(m, nn.Conv3d) for m in net.modules()) == (kind == 'conv')

    def test_settings(self):
        net = Localization('fc', 1, (8, 8), 6, hidden=5, depth=2, size=4)
        assert [(m.in_features, m.out_features) for m in net.body if isinstance(m, nn.Linear)] == [(16, 5), (5, 5)]
        net = Localization('conv', 1, (28, 28), 6, channels=3, hidden=4)
        assert net.body[0].out_channels == 3 and net.regression.in_features == 4

    @settings(max_examples=20, deadline=None)
    @given(hidden=st.integers(1, 9), depth=st.integers(1, 4), channels=st.integers(1, 5))
    def test_settings_in_the_name(self, hidden, depth, channels):
        fc = Localization(f'fc:hidden={hidden},depth={depth}', 2, (8, 8), 6)
        widths = [2 * 8 * 8] + depth * [hidden]
        assert [(m.in_features, m.out_features) for m in fc.body if isinstance(m, nn.Linear)] == list(
            pairwise(widths))
        assert sum(isinstance(m, nn.ReLU) for m in fc.body) == depth - 1 and fc.standardize.relu
        assert counts(fc) == (128 + 1) * hidden + (depth - 1) * (hidden + 1) * hidden + (hidden + 1) * 6
        conv = Localization(f'conv:depth={depth},channels={channels},hidden={hidden}', 2, (28, 28), 6)
        of_convs = (2 * 25 + 1) * channels + (channels * 25 + 1) * channels
        flat = channels * 1 * 1  # of 14: 10 after the first, 5 after the pool, 1 after the second
        assert counts(conv) == of_convs + (flat + 1) * hidden + (depth - 1) * (hidden + 1) * hidden + (hidden + 1) * 6
        assert [type(m).__name__ for m in conv.body][6:] == ['Linear'] + (depth - 1) * ['ReLU', 'Linear']
        for net in (fc, conv):
            net(randn(2, 2, 11, 9)).params.sum().backward()
            assert all(p.grad is not None for p in net.parameters())

    def test_an_argument_beats_the_name(self):
        net = Localization('fc:hidden=8', 1, (8, 8), 6, depth=2, size=4)
        assert [(m.in_features, m.out_features) for m in net.body if isinstance(m, nn.Linear)] == [(16, 8), (8, 8)]
        assert Localization('fc:hidden=8', 1, (8, 8), 6, hidden=3).regression.in_features == 3

    def test_a_name_with_settings_sees_what_the_plain_one_sees(self):
        for kind, own in (('conv', 'depth=2'), ('fc', 'hidden=8')):
            for size in ((42, 60), (100, 10), (9, 9, 9)):
                assert Localization.resolve_size(f'{kind}:{own}', size, None) == Localization.resolve_size(
                    kind, size, None)

    @pytest.mark.parametrize('kind', [
        'fc:', 'fc:hidden', 'fc:hidden=', 'fc:hidden=0', 'fc:hidden=-1', 'fc:hidden=2.5', 'fc:hidden=8193',
        'fc:hiden=3', 'fc:channels=3', 'fc:hidden=3,', 'fc:hidden=3,hidden=4', 'fc:hidden=3;depth=2', 'fc:hidden= 3',
        'conv:hidden=3,width=2', 'linear:hidden=3', 'moments:', 'fcc:hidden=3', 'auto:hidden=3'])
    def test_settings_that_are_none(self, kind):
        with pytest.raises(ValueError, match='localization must be one of .*conv:channels=<n>,hidden=<n>,depth=<n>, '
                                             'fc:hidden=<n>,depth=<n>.*got ') as raised:
            Localization(kind, 1, (28, 28), 6)
        assert repr(kind) in str(raised.value)

    @pytest.mark.parametrize('kind', [*localization_names(), 'timm:test_resnet'])
    def test_dtypes(self, kind):
        for dtype in (torch.bfloat16, torch.float64):
            net = Localization(kind, 3, (20, 20), 6, dtype=dtype).eval()
            theta = net(randn(2, 3, 20, 20, dtype=torch.float64).to(dtype)).params
            assert theta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        net = Localization(kind, 3, (20, 20), 6)
        with torch.autocast('cpu', torch.bfloat16):
            assert net(randn(2, 3, 20, 20)).params.dtype == torch.float32

    @pytest.mark.parametrize(('arguments', 'error', 'message'), [
        ({'kind': 'convv'}, ValueError,
         "one of conv, fc, linear, moments, timm:<arch>, .*got 'convv'. Did you mean 'conv'"),
        ({'kind': 3}, ValueError, 'localization must be one of .*got 3'),
        ({'kind': 'timm:resnet9999'}, ValueError, "timm knows no model 'resnet9999'"),
        ({'kind': 'timm:test_resnet', 'input_size': (8, 8, 8)}, ValueError, 'test_resnet.*volumes take one of conv'),
        ({'kind': 'shared:2'}, ValueError, "'shared:2' needs the backbone.*conv, fc, linear"),
        ({'size': 0}, ValueError, 'localization_size must be 2 positive integers, or one, got 0'),
        ({'size': (4, -1)}, ValueError, r'localization_size must be 2 .*got \(4, -1\)'),
        ({'size': (4, 4, 4)}, ValueError, r'localization_size must be 2 .*got \(4, 4, 4\)'),
        ({'size': (4.5, 4)}, ValueError, r'localization_size must be 2 .*got \(4.5, 4\)'),
        ({'size': 4.0}, ValueError, 'localization_size must be 2 .*got 4.0'),
        ({'size': True}, ValueError, 'localization_size must be 2 .*got True'),
        ({'hiden': 3}, TypeError, "'conv' takes channels, hidden, depth, got hiden=3"),
        ({'kind': 'linear', 'hidden': 3}, TypeError, "'linear' takes no settings, got hidden=3"),
        ({'hidden': 0}, ValueError, "hidden of localization 'conv' must be a positive integer, got 0"),
        ({'lr_scale': 0}, ValueError, 'lr_scale must be .*got 0'),
    ])
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Localization(**{'kind': 'conv', 'in_chans': 1, 'input_size': (28, 28), 'num_params': 6, **arguments})
