"""One transformer at a stage: where it sits, that it runs once, in every way of running, and what refuses it."""
import copy

import pytest
import timm
import torch
from torch import nn

from timm_stn.modules.spatial_transformer import SpatialTransformer
from timm_stn.network.attach import StageTransformer, attach, resolve_stage, stage_layouts

SMALL = (3, 64, 64)
VIT = (3, 160, 160)


def images(input_size, n=2):
    return torch.rand(n, *input_size, generator=torch.Generator().manual_seed(0))


def put(backbone, stage, input_size=SMALL, shift=0.0, **arguments):
    """A transformer at a stage; `shift` moves what is seen there to the right by that part of the width."""
    (name, layout), = stage_layouts(backbone, [stage], input_size).values()
    stn = StageTransformer(layout, transform='translation', localization='linear', **arguments)
    with torch.no_grad():
        stn.localization.regression.bias[0] = shift / stn.localization.regression.lr_scale
    return stn.eval(), attach(backbone, {name: stn}, input_size)[name]


def count(backbone, stn, x):
    """Output, and how often the transformer ran for it."""
    calls = []
    handle = stn.register_forward_pre_hook(lambda *_: calls.append(1))
    out = backbone(x)
    handle.remove()
    return out, len(calls)


CASES = {  # architecture, stage -> input size, name of the transformer, hooks on the stage
    ('test_resnet', 'layer2'): (SMALL, 'layer2.stn', 0),
    ('test_resnet', 0): (SMALL, 'act1.stn', 1),
    ('test_efficientnet', -1): (SMALL, 'blocks.4.stn', 0),
    ('test_mambaout', 1): (SMALL, 'stages.1.stn', 1),
    ('test_vit', 2): (VIT, 'blocks.2.stn', 1),
    ('regnetx_002', 2): (SMALL, 's2.stn', 0),
    ('densenet121', 1): (SMALL, 'features.denseblock1_stn', 0),
    ('pit_ti_224', 1): ((3, 224, 224), 'transformers.1.stn', 1),
}


@pytest.mark.parametrize(('arch', 'stage'), CASES)
class TestPlaces:
    def test_runs_once_and_starts_at_the_identity(self, arch, stage):
        input_size, name, hooks = CASES[arch, stage]
        backbone = timm.create_model(arch).eval()
        x, keys = images(input_size), set(backbone.state_dict())
        with torch.no_grad():
            plain = backbone(x)
            stn, where = put(backbone, stage, input_size)
            out, calls = count(backbone, stn, x)
        module = backbone.get_submodule(resolve_stage(backbone, stage)[0])
        assert where == name and backbone.get_submodule(where) is stn and calls == 1
        assert len(module._forward_hooks) == hooks
        assert {k for k in set(backbone.state_dict()) - keys if 'stn.' not in k} == set()
        torch.testing.assert_close(out, plain, rtol=0, atol=1e-4 * float(plain.max() - plain.min()))

    def test_is_used_and_copied_with_the_backbone(self, arch, stage):
        input_size, name, _ = CASES[arch, stage]
        backbone = timm.create_model(arch).eval()
        x = images(input_size)
        put(backbone, stage, input_size, shift=0.6)
        other = copy.deepcopy(backbone)
        with torch.no_grad():
            moved = backbone(x)
            nn.init.zeros_(other.get_submodule(name).localization.regression.bias)
            plain, calls = count(other, other.get_submodule(name), x)
            assert calls == 1 and not torch.allclose(moved, plain, rtol=0, atol=1e-4 * float(plain.max() - plain.min()))
            assert torch.equal(backbone(x), moved)


def test_the_one_map_among_several_things():
    """PiT's stages yield a map and the class tokens, TNT's blocks the pixels of each patch and the patches."""
    for arch, item, fmt in (('pit_ti_224', 0, 'NCHW'), ('tnt_s_legacy_patch16_224', 1, 'NLC')):
        backbone = timm.create_model(arch).eval()
        stn, _ = put(backbone, 1, (3, 224, 224), shift=0.5)
        pairs = []
        stn.register_forward_hook(lambda m, args, out, pairs=pairs: pairs.append((args[0], out)))
        with torch.no_grad():
            backbone(images((3, 224, 224)))
        (before, after), = pairs
        assert stn.layout.item == item and stn.layout.fmt == fmt and type(after) is tuple
        assert after[1 - item] is before[1 - item]
        moved, still = stn.layout.maps(after[item]), stn.layout.maps(before[item])
        assert moved.shape == still.shape and not torch.allclose(moved, still, atol=1e-3)
        rolled = torch.nn.functional.grid_sample(
            still, torch.nn.functional.affine_grid(
                torch.tensor([[[1, 0, 0.5], [0, 1, 0.0]]]).repeat(2, 1, 1), list(still.shape), align_corners=False),
            padding_mode='border', align_corners=False)
        torch.testing.assert_close(moved, rolled, rtol=0, atol=1e-4)


def test_what_follows_the_stage_sees_the_moved_map():
    backbone = timm.create_model('test_resnet').eval()
    seen = []
    backbone.layer3.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        backbone(images(SMALL))
        put(backbone, 'layer2', shift=0.5)
        seen.clear()
        before, stn = [], backbone.layer2.stn
        stn.register_forward_pre_hook(lambda m, args: before.append(args[0]))
        backbone(images(SMALL))
    torch.testing.assert_close(seen[0][..., :6], before[0][..., 2:], rtol=0, atol=1e-4)  # a quarter of 8 pixels


def test_class_token_passes_by():
    backbone = timm.create_model('test_vit').eval()
    stn, _ = put(backbone, 1, VIT, shift=0.4)
    pairs = []
    stn.register_forward_hook(lambda m, args, out: pairs.append((args[0], out)))
    with torch.no_grad():
        backbone(images(VIT))
    before, after = pairs[0]
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1:], after[:, 1:])
    rows = [tokens[:, 1:].reshape(2, 10, 10, 64) for tokens in (before, after)]
    torch.testing.assert_close(rows[1][:, :, :8], rows[0][:, :, 2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(('arch', 'stages', 'input_size'), [
    ('resnet18', ['layer1', 'layer3'], SMALL),
    ('test_efficientnet', [1, 3], SMALL),
    ('test_vit', [1, 4], VIT),
    ('regnetx_002', [1, 2], SMALL),
])
def test_gradient_checkpointing(arch, stages, input_size):
    """The same logits and gradients, and every transformer once a forward pass (and once more in backward)."""
    torch.manual_seed(0)
    backbone, x = timm.create_model(arch).eval(), images(input_size)
    stns = [put(backbone, stage, input_size, shift=0.3)[0] for stage in stages]

    def run():
        backbone.zero_grad()
        ran = []
        handles = [stn.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, stn in enumerate(stns)]
        out = backbone(x)
        once = [ran.count(i) for i in range(len(stns))]
        out.square().sum().backward()
        for handle in handles:
            handle.remove()
        gradients = [p.grad.clone() for stn in stns for p in stn.parameters()]
        return out.detach(), gradients, once, [ran.count(i) for i in range(len(stns))]

    plain, gradients, once, _ = run()
    backbone.set_grad_checkpointing(True)
    out, again, once_checkpointed, calls = run()
    assert once == once_checkpointed == [1] * len(stns)
    assert calls == [2] * len(stns), 'checkpointing is on'
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(again, gradients)
    assert all(g.isfinite().all() for g in gradients)


def test_dry_passes_leave_no_trace():
    """Modes, BatchNorm's statistics, hooks, gradients and the random state are as they were."""
    backbone = timm.create_model('test_resnet', drop_rate=0.5, drop_path_rate=0.5).train()
    backbone.layer1.eval()
    modes = {n: m.training for n, m in backbone.named_modules()}
    state = copy.deepcopy(backbone.state_dict())
    (name, layout), = stage_layouts(backbone, ['layer2'], SMALL).values()
    stn = StageTransformer(layout, localization='conv')
    random_state = torch.get_rng_state()
    attach(backbone, {name: stn}, SMALL)
    stage_layouts(backbone, ['layer3'], SMALL)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {n: m.training for n, m in backbone.named_modules() if n in modes} == modes
    assert all(m.training for m in stn.modules())
    after = backbone.state_dict()
    assert all(torch.equal(after[k], v) for k, v in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    assert all(p.grad is None for p in backbone.parameters()) and stn.last_theta is None


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


class Children(nn.Module):
    """Runs its own children, each with all that came before, as DenseNet's blocks do; and nobody runs it in order."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        for child in self.children():
            x = child([x]) if not isinstance(child, nn.Conv2d) else child(x)
        return x


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
    x = images(size)
    with torch.no_grad():
        plain = backbone(x)
        stn, _ = put(backbone, instead[1], size)
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


@pytest.mark.parametrize('stage', ['layer2', 'act1'])
def test_a_second_transformer_is_refused(stage):
    backbone = timm.create_model('test_resnet').eval()
    stn, where = put(backbone, stage)
    with pytest.raises(ValueError, match=f'stn_stages: {stage} of test_resnet has a transformer already'):
        put(backbone, stage)
    assert backbone.get_submodule(where) is stn


def test_a_failed_attempt_leaves_the_backbone_as_it_was():
    backbone = nn.ModuleDict({'stage': Children()})
    backbone.forward = lambda x: backbone['stage'](x)
    (name, layout), = stage_layouts(backbone, ['stage'], (3, 8, 8)).values()
    modules = list(backbone.named_modules())
    with pytest.raises(ValueError, match="stn_stages: a transformer cannot follow stage of ModuleDict; use 'input'"):
        attach(backbone, {name: StageTransformer(layout)}, (3, 8, 8))
    assert list(backbone.named_modules()) == modules and not any(m._forward_hooks for m in backbone.modules())


def test_a_transformer_cannot_follow_where_the_holder_is_bypassed():
    """The Sequential that holds the stage is not run as one: what is put after the stage never runs."""
    holder = nn.Sequential(Children())
    backbone = nn.ModuleDict({'holder': holder})
    backbone.forward = lambda x: holder[0](x)
    (name, layout), = stage_layouts(backbone, ['holder.0'], (3, 8, 8)).values()
    with pytest.raises(ValueError, match=r'stn_stages: a transformer cannot follow holder\.0'):
        attach(backbone, {name: StageTransformer(layout)}, (3, 8, 8))
    assert [n for n, _ in holder.named_children()] == ['0']


def test_stage_transformer_restores_layouts():
    backbone = timm.create_model('test_mambaout')
    (_, layout), = stage_layouts(backbone, [1], SMALL).values()
    stn = StageTransformer(layout, localization='fc')
    x = torch.randn(2, *layout.size, layout.channels, generator=torch.Generator().manual_seed(0))
    assert isinstance(stn, SpatialTransformer) and layout.fmt == 'NHWC'
    torch.testing.assert_close(stn(x), x, rtol=0, atol=1e-5)
    assert stn(x[:, :5, :3]).shape == (2, 5, 3, layout.channels)
