"""The stages of a backbone: which can have a transformer, how they lay out features, and what refuses the others."""

import pytest
import timm
import torch
from makers import create, images, put_transformer, rand
from torch import nn

from timm_stn.network.stages import stage_layouts

SMALL = (3, 64, 64)


VIT = (3, 160, 160)


def test_no_random_numbers_for_layouts():
    backbone = timm.create_model('test_vit', drop_rate=0.5).train()
    random_state = torch.get_rng_state()
    stage_layouts(backbone, [0, 3], VIT)
    assert torch.equal(torch.get_rng_state(), random_state)


class Shared(nn.Module):
    """Stages of many kinds that have no transformer's place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.unused = nn.Conv2d(3, 4, 1)
        self.windows = Windows()
        self.named = Named()
        self.pair = Pair()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_info = [
            {'module': 'conv', 'num_chs': 4, 'reduction': 1},
            {'module': 'pool', 'num_chs': 4, 'reduction': 1, 'hook_type': 'forward_pre'},
            {'module': 'gone', 'num_chs': 4, 'reduction': 1},
        ]

    def forward(self, x):
        x = self.relu(self.relu(self.conv(x)))
        return self.pool(self.pair(self.named(x)['x'])[0]) + self.windows(x).mean()


class Windows(nn.Module):
    """Folds windows into the batch, as some attention does within a block."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, c, h // 2, w // 2)


class Named(nn.Module):
    def forward(self, x):
        return {'x': x}


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(('stage', 'message'), [
    ('relu', r"stage 'relu' \(relu\) of Shared is called 2 times.*use 'input' or another stage"),
    ('unused', r"stage 'unused'.*is called 0 times"),
    ('pair', r"stage 'pair'.*yields several things \(\(1, 4, 8, 8\), \(1, 4, 8, 8\)\), not one map \(N, C, H, W\)"),
    ('windows', r"stage 'windows'.*yields \(4, 4, 4, 4\), not one map"),
    ('named', r"stage 'named'.*yields a dict, not one map"),
    ('pool.1', r"stage 'pool.1'.*yields \(1, 4\), not one map"),
    ('nope', r"Shared has no module 'nope'; use 'input' or another stage: conv, pool\."),
    ('', "Shared has no module ''; use 'input' or another stage: conv, pool"),
    (1, r"stage 1 \(pool\) of Shared is read before its module runs; use 'input'"),
    (2, r"stage 2 \(gone\) of Shared has no such module; use 'input' or another stage, for example 'conv'\."),
    (3, 'Shared has feature indices 0 to 2, got 3'),
    (-4, 'Shared has feature indices 0 to 2, got -4'),
])
def test_impossible_stages(stage, message):
    with pytest.raises(ValueError, match='stn_stages: .*' + message):
        stage_layouts(Shared(), [stage], (3, 8, 8))


def test_stages_that_yield_lists():
    backbone = timm.create_model('hrnet_w18_small')
    for stage in range(len(backbone.feature_info)):
        with pytest.raises(ValueError, match=r'stn_stages: .*hrnet_w18_small.*(several|no such module).*input'):
            stage_layouts(backbone, [stage], SMALL)


@pytest.mark.parametrize(('arch', 'size', 'instead'), [
    ('hrnet_w18_small', SMALL, ['act1', *(f'incre_modules.{i}' for i in range(4))]),
    ('mvitv2_tiny', (3, 224, 224), ['stages.0', 'stages.1', 'stages.2', 'norm']),
])
def test_what_to_use_instead(arch, size, instead):
    """The error names a module that has as many channels and as large a map; a transformer there moves what follows."""
    backbone = timm.create_model(arch).eval()
    for stage, name in enumerate(instead):
        with pytest.raises(ValueError, match=f"use 'input' or another stage, for example '{name}'"):
            stage_layouts(backbone, [stage], size)
    x = rand(2, *size)
    with torch.no_grad():
        plain = backbone(x)
        stn, _ = put_transformer(backbone, instead[1], size)
        torch.testing.assert_close(backbone(x), plain, rtol=0, atol=1e-4 * float(plain.max() - plain.min()))
        stn.localization.regression.bias.fill_(0.5)
        assert (backbone(x) - plain).abs().max() > 1e-3 * (plain.max() - plain.min())


def test_a_map_that_nothing_looks_at():
    """Only the class tokens leave PiT's last stage: a transformer of its map would never get a gradient."""
    for arch in ('pit_ti_224', 'pit_ti_distilled_224'):
        backbone = timm.create_model(arch)
        for stages in ([0, 1, 2], [2], ['transformers.2'], [2, 'transformers']):
            with pytest.raises(ValueError, match='stn_stages: stage .* yields a map that nothing looks at afterwards'):
                stage_layouts(backbone, stages, (3, 224, 224))
        assert set(stage_layouts(backbone, [0, 1], (3, 224, 224))) == {0, 1}


@pytest.mark.parametrize('use', [
    lambda x: x.mT, lambda x: x[:, 0], lambda x: x.add_(1), lambda x: torch.cat([x, x]), lambda x: x,
    lambda x: {'a': [x]},
])
def test_every_look_at_a_map_counts(use):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return use(self.conv(x))

    assert stage_layouts(Net(), ['conv'], (3, 8, 8))['conv'][1].size == (8, 8)
    Net.forward = lambda self, x: x.mean() if self.conv(x).shape[0] else None
    with pytest.raises(ValueError, match='nothing looks at'):
        stage_layouts(Net(), ['conv'], (3, 8, 8))


def test_a_stage_named_twice():
    with pytest.raises(ValueError, match=r"stn_stages: 2 and 'layer2' are the same stage \(layer2\).*name it once"):
        stage_layouts(timm.create_model('test_resnet'), [2, 'layer2'], SMALL)
    with pytest.raises(ValueError, match='2 and -3 are the same stage'):
        stage_layouts(timm.create_model('test_resnet'), [2, -3], SMALL)


def test_stages_of_tokens_of_which_training_drops_some_are_refused():
    for name in ('stn_vit_tiny_patch16_224', 'stn_eva02_tiny_patch14_224'):
        with pytest.raises(ValueError, match=r'stage 2 \(blocks.2\).*patch_drop_rate drops tokens.*patch_drop_rate=0'):
            create(name, patch_drop_rate=0.75, stn_stages=('input', 2))
        assert create(name, patch_drop_rate=0.75).train()(images(size=224)).shape[0] == 2
