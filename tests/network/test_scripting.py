"""torch.fx and torch.jit.script: what they make of a network gives what the network gives, at any size."""
import copy
import io
import warnings
from pathlib import Path

import pytest
import timm
import torch
from makers import rand
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn

import timm_stn
from timm_stn._timm import FeatureGetterNet

pytestmark = pytest.mark.filterwarnings('ignore')  # torch.jit is deprecated, and its traces warn of what they fix


def moved(model):
    """Transformers that are not at the identity, in float64: torch's own resize is off by 4e-6 in float32."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, timm_stn.SpatialTransformer):
            nn.init.normal_(module.localization.regression.weight, std=0.3)
            nn.init.normal_(module.localization.regression.bias, std=0.1)
    return model.eval().double()


def create(name='stn_test_resnet', **kwargs):
    torch.manual_seed(0)
    return moved(timm.create_model(name, **kwargs))


def saved_and_loaded(script):
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def images(n=2, size=(96, 80)):
    return rand(n, 3, *size, seed=1).double()


@pytest.mark.parametrize('transform', ['affine', 'projective', 'tps', 'diffeomorphic', 'attention+tps'])
@pytest.mark.parametrize('settings', [dict(), dict(glimpses=2, scale=0.6), dict(iterations=2, size=(20, 30))])
def test_a_scripted_transformer_takes_batches_of_any_size(transform, settings):
    stn = moved(timm_stn.SpatialTransformer(3, (64, 64), transform, **settings))
    script = torch.jit.script(nn.Sequential(stn))
    for x in (images(1, (64, 64)), images(3, (65, 65)), images(2, (33, 50)), images(2, (32, 32))):
        torch.testing.assert_close(script(x), stn(x))


@pytest.mark.parametrize('name,stages', [
    ('stn_test_resnet', ('input',)), ('stn_test_resnet', ('input', 1, 'layer3')), ('stn_test_convnext', (0, 2))])
def test_scripted(name, stages):
    model = create(name, stn_stages=stages)
    before = [type(m) for m in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter('error', torch.jit.TracerWarning)
        script = saved_and_loaded(torch.jit.script(model))
    assert [type(m) for m in model.modules()] == before
    for x in (images(), images(1, (160, 160))):
        torch.testing.assert_close(script(x), model(x))
        assert (model(x) - model.backbone(x)).abs().max() > 1e-3 or 'input' not in stages


class Looks(nn.Module):
    def __init__(self, *stages):
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.stages(x))


MODULES = {
    'a transformer': lambda: timm_stn.SpatialTransformer(3, (64, 64), penalty=0.1, freeze_steps=2),
    'with batch norms': lambda: timm_stn.SpatialTransformer(3, (64, 64), localization='timm:test_resnet', glimpses=2),
    'with moments': lambda: timm_stn.SpatialTransformer(3, (64, 64), 'tps', localization='moments', antialias=True),
    'in a net': lambda: Looks(timm_stn.SpatialTransformer(3, (64, 64)), nn.Conv2d(3, 4, 3)),
    'a network in a net': lambda: Looks(
        timm_stn.SpatialTransformer(3, (64, 64)), timm.create_model('stn_test_resnet', drop_rate=0.2)),
    'at stages': lambda: timm.create_model('stn_test_resnet', stn_stages=(1,), drop_rate=0.2),
}


def drawn(model, x):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize('of', MODULES)
def test_a_script_has_the_mode_and_the_names_of_what_it_is_of(of):
    model, x = moved(MODULES[of]()), images(3, (64, 64))
    state = copy.deepcopy(model.state_dict())
    for training in (False, True):
        model.train(training).load_state_dict(state)
        script = torch.jit.script(copy.deepcopy(model))
        assert script.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in script.state_dict().items())
        for found in (script, saved_and_loaded(script)):
            assert all(module.training == training for module in found.modules())
            for mode in (training, not training):
                found.train(mode).load_state_dict(state)
                model.train(mode).load_state_dict(state)
                torch.testing.assert_close(drawn(found, x), drawn(model, x))
                torch.testing.assert_close(found.state_dict(), model.state_dict())


@pytest.mark.parametrize('of', MODULES)
def test_a_script_is_frozen_optimized_and_cast(of):
    model, x = moved(MODULES[of]()), images(3, (64, 64))
    script, expected = torch.jit.script(copy.deepcopy(model)), model(x)
    for found in (torch.jit.freeze(script), torch.jit.optimize_for_inference(script)):
        torch.testing.assert_close(found(x), expected)
    for dtype, share in ((torch.float32, 0.999), (torch.float16, 0.9), (torch.bfloat16, 0.5)):
        found = saved_and_loaded(script).to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        assert ((found - expected).abs() < 0.1 * expected.abs().max()).double().mean() > share


@pytest.mark.parametrize('stage', ['input', 1])
def test_a_script_learns(stage):
    model, x = create(stn_stages=(stage,)).train(), images(4)
    script = torch.jit.script(copy.deepcopy(model))
    for net in (model, script):
        net(x).square().sum().backward()
    found = dict(script.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


def test_a_script_with_antialias_names_the_size_that_it_takes():
    script = torch.jit.script(moved(timm_stn.SpatialTransformer(3, (64, 64), antialias=True)))
    with pytest.raises(torch.jit.Error, match=r'takes a batch of size \[3, 64, 64\], got \[3, 32, 64\]'):
        script(images(2, (32, 64)))


def test_scripted_tokens_at_the_input():
    model, x = create('stn_test_vit'), images(2, (160, 160))
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_a_script_shares_the_parameters():
    model, x = create(stn_stages=('input', 1)), images()
    script = torch.jit.script(model)
    with torch.no_grad():
        before = script(x)
        model.backbone.layer1.stn.localization.regression.bias.add_(0.2)
    torch.testing.assert_close(script(x), model(x))
    assert (script(x) - before).abs().max() > 1e-5


@pytest.mark.parametrize('make', [
    lambda: create(), lambda: create(stn_stages=('input', 1)), lambda: create('stn_test_convnext', stn_stages=(0,)),
    lambda: moved(timm_stn.SpatialTransformer(3, (64, 64), glimpses=2, scale=0.5)),
    lambda: nn.Sequential(moved(timm_stn.SpatialTransformer(3, (64, 64), 'tps')), nn.Conv2d(3, 4, 3), nn.Dropout(0.5))])
def test_a_script_is_in_the_mode_of_what_it_is_made_of_and_changes_it(make):
    for training in (True, False):
        model = make().double().train(training)
        script = saved_and_loaded(torch.jit.script(model))
        assert script.training is training and all(m.training is training for m in model.modules())
        modes = {name: m.training for name, m in script.train().named_modules()}
        assert all(modes.values()) and not any(m.training for m in script.eval().modules())
        torch.testing.assert_close(script(images()), model.eval()(images()))
        assert script.train().training


def test_a_script_freezes_and_halves():
    script, x = torch.jit.script(create().float()), images().float()
    torch.testing.assert_close(torch.jit.freeze(script)(x), script(x))
    assert script.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_scripted_feature_getter():
    model = create('stn_test_efficientnet')
    getter, x = FeatureGetterNet(model, out_indices=(0, 1, 2)).eval(), images()
    expected = getter(x)
    for ours, theirs in zip(torch.jit.script(getter)(x), expected):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('name,kwargs,what', [
    ('stn_test_resnet', dict(stn_glimpses=2, stn_scale=0.5), 'several streams'),
    ('stn_test_resnet', dict(stn_localization='shared:2'), "backbone's own features"),
    ('stn_test_vit', dict(stn_stages=(1,)), r'hooks \(at blocks.1\)'),
    ('stn_pit_ti_224', dict(stn_stages=(1,)), 'a stage that yields several things'),
])
def test_what_cannot_be_scripted_says_so(name, kwargs, what):
    with pytest.raises(ValueError, match=f'torch.jit.script cannot compile .*{what}.*use torch.jit.trace'):
        torch.jit.script(create(name, **kwargs))


@pytest.mark.parametrize('name,stages', [
    ('stn_test_resnet', ('input',)), ('stn_test_vit', ('input',)), ('stn_test_resnet', ('input', 1, 'layer3'))])
def test_fx(name, stages):
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model = create(name, stn_stages=stages)
    tracer = dict(
        leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions(), param_shapes_constant=True)
    nodes = extraction.get_graph_node_names(model, tracer_kwargs=tracer)[1]
    graph = extraction.create_feature_extractor(model, nodes[-1:], tracer_kwargs=tracer).eval()
    x = images(3, model.pretrained_cfg['input_size'][1:])
    torch.testing.assert_close(next(iter(graph(x).values())), model(x))
    torch.testing.assert_close(next(iter(torch.jit.script(graph)(x).values())), model(x))


def test_keyword_arguments_reach_the_backbone():
    model, x = create('stn_test_vit'), images(2, (160, 160))
    tokens = model.backbone.patch_embed.num_patches + model.backbone.num_prefix_tokens
    mask = torch.zeros(1, 1, tokens, tokens)
    mask[..., -100:] = float('-inf')
    assert (model(x, attn_mask=mask) - model(x)).abs().max() > 1e-4


def test_a_script_warns_of_control_flow_that_is_not_ours():
    class Own(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None].repeat(1, 6) * (10 if x.mean() > 0 else 0)

    with pytest.warns(torch.jit.TracerWarning, match='Python boolean') as told:
        torch.jit.script(nn.Sequential(timm_stn.SpatialTransformer(3, (8, 8), localization=Own())))
    assert {Path(w.filename).name for w in told if w.category is torch.jit.TracerWarning} == {'test_scripting.py'}
