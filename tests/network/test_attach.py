"""One transformer at a stage: where it sits, that it runs once, in every way of running, and what refuses it."""
import copy

import pytest
import timm
import torch
from makers import put_transformer, rand, randn
from torch import nn

from timm_stn.modules.spatial_transformer import SpatialTransformer
from timm_stn.network.attach import StageTransformer, attach
from timm_stn.network.stages import resolve_stage, stage_layouts

SMALL = (3, 64, 64)
VIT = (3, 160, 160)


def batch(input_size):
    return rand(2, *input_size)


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
        x, keys = batch(input_size), set(backbone.state_dict())
        with torch.no_grad():
            plain = backbone(x)
            stn, where = put_transformer(backbone, stage, input_size)
            out, calls = count(backbone, stn, x)
        module = backbone.get_submodule(resolve_stage(backbone, stage)[0])
        assert where == name and backbone.get_submodule(where) is stn and calls == 1
        assert len(module._forward_hooks) == hooks
        assert {k for k in set(backbone.state_dict()) - keys if 'stn.' not in k} == set()
        torch.testing.assert_close(out, plain, rtol=0, atol=1e-4 * float(plain.max() - plain.min()))

    def test_is_used_and_copied_with_the_backbone(self, arch, stage):
        input_size, name, _ = CASES[arch, stage]
        backbone = timm.create_model(arch).eval()
        x = batch(input_size)
        put_transformer(backbone, stage, input_size, shift=0.6)
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
        stn, _ = put_transformer(backbone, 1, (3, 224, 224), shift=0.5)
        pairs = []
        stn.register_forward_hook(lambda m, args, out, pairs=pairs: pairs.append((args[0], out)))
        with torch.no_grad():
            backbone(batch((3, 224, 224)))
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
        backbone(batch(SMALL))
        put_transformer(backbone, 'layer2', shift=0.5)
        seen.clear()
        before, stn = [], backbone.layer2.stn
        stn.register_forward_pre_hook(lambda m, args: before.append(args[0]))
        backbone(batch(SMALL))
    torch.testing.assert_close(seen[0][..., :6], before[0][..., 2:], rtol=0, atol=1e-4)  # a quarter of 8 pixels


def test_class_token_passes_by():
    backbone = timm.create_model('test_vit').eval()
    stn, _ = put_transformer(backbone, 1, VIT, shift=0.4)
    pairs = []
    stn.register_forward_hook(lambda m, args, out: pairs.append((args[0], out)))
    with torch.no_grad():
        backbone(batch(VIT))
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
    backbone, x = timm.create_model(arch).eval(), batch(input_size)
    stns = [put_transformer(backbone, stage, input_size, shift=0.3)[0] for stage in stages]

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


class Children(nn.Module):
    """Runs its own children, each with all that came before, as DenseNet's blocks do; and nobody runs it in order."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        for child in self.children():
            x = child([x]) if not isinstance(child, nn.Conv2d) else child(x)
        return x


@pytest.mark.parametrize('stage', ['layer2', 'act1'])
def test_a_second_transformer_is_refused(stage):
    backbone = timm.create_model('test_resnet').eval()
    stn, where = put_transformer(backbone, stage)
    with pytest.raises(ValueError, match=f'stn_stages: {stage} of test_resnet has a transformer already'):
        put_transformer(backbone, stage)
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
    x = randn(2, *layout.size, layout.channels)
    assert isinstance(stn, SpatialTransformer) and layout.fmt == 'NHWC'
    torch.testing.assert_close(stn(x), x, rtol=0, atol=1e-5)
    assert stn(x[:, :5, :3]).shape == (2, 5, 3, layout.channels)
