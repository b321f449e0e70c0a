"""A forward pass that only tells what a network gives: nothing of it stays."""
import copy

import timm
import torch
from makers import create, images

from timm_stn.modules.trial import trial_forward
from timm_stn.network.attach import StageTransformer, attach
from timm_stn.network.stages import stage_layouts
from timm_stn.view.dependence import witnessing

SMALL = (3, 64, 64)


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


def test_building_shows_no_image():
    with witnessing() as witness:
        model = create(in_chans=1, num_classes=2, stn_stages=('input', 1), stn_localization='timm:test_resnet')
    assert not witness.found()
    assert all(vars(m).get('last_theta') is None and 'witness' not in vars(m) for m in model.modules())
    assert model.stn.localization.last_features is None
    stage = model.spatial_transformers()[1]
    model(images(2, chans=1, seed=0))
    before = stage.last_theta, stage.localization.last_features
    trial_forward(model.backbone, (1, 64, 64))
    assert stage.last_theta is before[0] and stage.localization.last_features is before[1]
