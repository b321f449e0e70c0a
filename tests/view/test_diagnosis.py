"""Each fault is planted in a network that was really trained, and found; healthy networks have none."""
import copy
import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from makers import ROOT, create, generator, images, move_theta, needs_weights, rand, randn, transformer
from torch import nn
from torch.nn import functional as F

import timm_stn
from timm_stn import diagnose
from timm_stn.data.tasks import TASKS
from timm_stn.data.tasks import batches_of as batches_of_task
from timm_stn.view.diagnosis.examine import batches_of, examine
from timm_stn.view.diagnosis.figures import Range, Share
from timm_stn.view.diagnosis.verdict import RULES, faults_of, healthy
from timm_stn.view.diagnosis.watch import watched

SIDE, GLYPH, CLASSES = 32, 12, 6


def glyphs():
    """Black and white shapes (CLASSES, 1, GLYPH, GLYPH)."""
    shapes = F.interpolate(randn(CLASSES, 1, 4, 4, seed=0), size=(GLYPH, GLYPH), mode='bicubic')
    return (shapes > 0).float()


def batch(numbers, n=64):
    """One shape somewhere in each image, with noise; and which."""
    x = 0.1 * torch.randn(n, 1, SIDE, SIDE, generator=numbers)
    y = torch.randint(CLASSES, (n,), generator=numbers)
    for image, (row, column), shape in zip(x, torch.randint(SIDE - GLYPH + 1, (n, 2), generator=numbers), glyphs()[y]):
        image[:, row:row + GLYPH, column:column + GLYPH] += shape
    return x, y


def train(model, seed=0, steps=300, batch=batch):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    numbers = generator(100 + seed)
    model.train()
    for _ in range(steps):
        x, y = batch(numbers)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model('stn_mnist_fcn', img_size=SIDE, stn_size=16, num_classes=CLASSES,
                             **{'stn_transform': 'attention', **kwargs})


def loader(batch=batch, seed=7):
    numbers = generator(seed)
    return [batch(numbers) for _ in range(4)]


@pytest.fixture(scope='module')
def trained():
    return train(make())


@pytest.fixture(scope='module')
def trained_twice():
    """With two glimpses."""
    return train(make(stn_transform='translation', stn_scale=0.6, stn_glimpses=2, stn_localization='conv'))


def kinds(model, data=None):
    finding, = diagnose(model, data or loader()).findings
    return [fault.kind for fault in finding.faults]


def planted(model, weight=1.0, bias=None):
    """A copy whose regression is changed, and whose backbone was trained with it as it is then."""
    model = copy.deepcopy(model)
    regression = model.stn.localization.regression
    with torch.no_grad():
        regression.weight *= weight
        if bias is not None:
            regression.bias.copy_(torch.tensor(bias) / regression.lr_scale)
    model.stn.requires_grad_(False)
    train(model, steps=60)
    model.stn.requires_grad_(True)
    return model


@pytest.mark.parametrize('seed', range(1, 5))
def test_no_false_alarm(seed):
    assert kinds(train(make(seed), seed)) == []


def test_the_healthy_one_tells_what_looking_gives(trained, trained_twice):
    assert kinds(trained_twice) == []
    found = diagnose(trained, loader())
    line, = found.lines
    assert found.is_healthy and line.startswith('stn: healthy: ') and 'of 100.0 % accuracy' in line
    figures = found.findings[0].figures
    assert figures.accuracy.value > 0.97 and figures.gain_from_looking.value > 0.15 and figures.gain.value > 0.1
    assert figures.between > 10 * figures.within and figures.scale.middle < 0.95 and figures.images == 256


def test_collapsed(trained):
    model = planted(trained, weight=0.02, bias=[-0.96, 0.0, 0.0])
    assert kinds(model)[0] == 'collapsed'
    assert 'shrunk to 0.04' in diagnose(model, loader()).lines[0]


def test_constant(trained):
    model = planted(trained, weight=0.0, bias=[-0.3, 0.1, 0.1])
    assert kinds(model) == ['constant']


def test_outside(trained):
    model = planted(trained, bias=[0.0, 1.6, 1.2])
    assert kinds(model)[0] == 'outside'
    assert 'it looks away' in diagnose(model, loader()).lines[0]
    zoomed_out = planted(trained, bias=[1.5, 0.0, 0.0])
    assert 'it zooms out, to 2.' in diagnose(zoomed_out, loader()).lines[0]


def test_black():
    model = make(stn_padding_mode='zeros')
    train(model, steps=60)
    assert kinds(planted(model, bias=[-0.5, 3.0, 0.0])) == ['black']


def test_exploding(trained):
    assert kinds(planted(trained, weight=300.0)) == ['exploding']
    model = planted(trained, weight=math.nan)
    assert kinds(model) == ['exploding']
    assert 'not finite for 100 % of the images' in diagnose(model, loader()).lines[0]


def test_frozen():
    waiting = make(stn_freeze_steps=1000)
    assert kinds(train(waiting, steps=60)) == ['frozen']
    assert 'stn_freeze_steps=1000 and there were 60 backward passes' in diagnose(waiting, loader()).lines[0]
    without = make()
    without.stn.requires_grad_(False)
    assert 'do not require gradients' in diagnose(train(without, steps=60), loader()).lines[0]
    without.stn.requires_grad_(True)
    assert 'in the optimizer' in diagnose(without, loader()).lines[0]


def test_all_alike(trained_twice):
    model = copy.deepcopy(trained_twice)
    centers = model.stn.tiles.flatten().tolist()
    model.stn.bound = False
    with torch.no_grad():
        weight = model.stn.localization.regression.weight
        weight[2:] = weight[:2]
    assert kinds(planted(model, bias=[-c / 0.6 for c in centers])) == ['alike']


def test_not_used_by_the_classifier(trained):
    """Which class it is, the brightness of the whole image tells."""
    def bright(numbers):
        x, _ = batch(numbers)
        y = torch.randint(2, (len(x),), generator=numbers)
        return x + y[:, None, None, None], y

    model = copy.deepcopy(trained)
    model.stn.requires_grad_(False)
    train(model, steps=300, batch=bright)
    finding, = diagnose(model, loader(bright)).findings
    assert finding.figures.accuracy.value > 0.9 and finding.figures.between > 0.02
    assert [fault.kind for fault in finding.faults] == ['unused']


def test_at_chance(trained):
    """The answers are as good as none; what of the transformer is wrong is not asked."""
    model = copy.deepcopy(trained)
    nn.init.zeros_(model.get_classifier().weight)
    assert kinds(model) == ['chance']
    assert 'that is not for its transformer' in diagnose(model, loader()).lines[0]


def test_harmful(trained):
    """The classifier was trained without what the transformer learnt afterwards."""
    model = make()
    model.stn.requires_grad_(False)
    train(model)
    model.stn.load_state_dict(trained.stn.state_dict())
    model.stn.requires_grad_(True)
    assert 'harmful' in kinds(model)


@pytest.mark.parametrize('what', ['targets', 'one class'])
def test_where_targets_are_not_known_answers_tell(trained, what):
    data = [(x, torch.full_like(y, -1)) for x, y in loader()] if what == 'one class' else [x for x, _ in loader()]
    finding, = diagnose(trained, data).findings
    assert not finding.faults and finding.figures.accuracy is None and finding.figures.changed > 0.1
    assert 'of the answers change with thetas of other images' in str(finding)


# figures, compared with what they should be

def looking(theta, size=(20, 20), **kwargs):
    """A network of one transformer that sees the same everywhere."""
    torch.manual_seed(0)
    stn = transformer('affine', size, 1, **kwargs)
    (a, b, c), (d, e, f) = theta
    with torch.no_grad():
        stn.localization.regression.bias.copy_(torch.tensor([a - 1, b, c, d, e - 1, f]) / 10)
    return nn.Sequential(stn, nn.Flatten(), nn.Linear(math.prod(size), 3)).eval()


def figures_of(model, data, **kwargs):
    finding, = diagnose(model, data, **kwargs).findings
    return finding.figures


def test_scale_angle_and_place():
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    height, width = 20, 40
    theta = [[0.5 * cos, -0.5 * sin * height / width, 0.2], [0.5 * sin * width / height, 0.5 * cos, -0.1]]
    figures = figures_of(looking(theta, (height, width)), [rand(9, 1, height, width)])
    assert figures.scale.middle == pytest.approx(0.5, abs=1e-5) and figures.start_scale == pytest.approx(1)
    assert figures.angle.middle == pytest.approx(30, abs=1e-3) and figures.shear.middle == pytest.approx(0, abs=1e-3)
    assert figures.center_x == pytest.approx((0.2,) * 3, abs=1e-5) and figures.center_y.middle == pytest.approx(-0.1)
    assert figures.between == pytest.approx(0, abs=1e-6) and figures.infinite == 0


def test_how_much_lies_outside():
    figures = figures_of(looking([[1, 0, 1.0], [0, 1, 0]]), [rand(4, 1, 20, 20)])
    assert figures.outside == pytest.approx(0.5, abs=0.01) and figures.far == 0
    assert figures.moved == pytest.approx(math.sqrt(0.5), abs=1e-5), 'by one half-width, along one of two axes'
    assert figures_of(looking([[1, 0, 9.0], [0, 1, 0]]), [rand(4, 1, 20, 20)]).far == 1


def test_spread_is_that_of_the_lattice():
    """By numpy, from thetas alone."""
    torch.manual_seed(0)
    stn = transformer('translation', (12, 10), 2, std=0.3)
    model, x = nn.Sequential(stn, nn.Flatten(), nn.Linear(240, 3)).eval(), rand(30, 2, 12, 10)
    figures = figures_of(model, [x[:13], x[13:]])
    shifts = stn.regress(x).detach().double().numpy()[:, :, 2]
    assert figures.between == pytest.approx(np.sqrt(shifts.var(0).mean()), rel=1e-4)
    assert figures.center_x == pytest.approx(np.percentile(shifts[:, 0], [5, 50, 95]), rel=1e-4)
    assert 0 < figures.within < figures.between


def test_angles_about_the_half_turn_are_near_each_other():
    from timm_stn.view.diagnosis.figures import _turns
    found = _turns(torch.tensor([[179.0], [-179.0], [178.0], [-178.0], [180.0]]))
    assert found.middle == pytest.approx(180) and found.high - found.low < 5


def test_boxes_agree_with_views():
    box = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [torch.nan] * 4], [[-1.0, -1.0, 0.0, 0.0], [-0.1, -0.1, 0.3, 0.3]]])
    figures = figures_of(looking([[0.5, 0, 0.0], [0, 0.5, 0]]), [(rand(2, 1, 20, 20), torch.zeros(2).long(), box)])
    quarter = 0.25 / 1.75  # of a square of area 1 with the view's
    assert figures.box_overlap == pytest.approx((2 * quarter + 0.16) / 3, abs=1e-4)
    assert figures.box_found == 1, 'centres at 0.5 and -0.5 are on the edge, 0.1 is within'


def test_the_gradient_is_that_of_the_mean_loss(trained):
    x, y = loader()[0]
    figures = figures_of(trained, [(x, y)])
    with trained.record_thetas() as thetas:
        loss = F.cross_entropy(trained(x), y)
    weights = [p for name, p in trained.named_parameters() if not name.startswith('stn.')]
    of_theta, *of_weights = torch.autograd.grad(loss, [thetas['stn'], *weights])
    expected = float(of_theta.norm()) / math.sqrt(sum(float(g.square().sum()) for g in of_weights))
    assert figures.gradient == pytest.approx(expected, rel=1e-3)


def test_shuffled_thetas_are_those_of_other_images():
    """A network that answers with theta: after shuffling, no image has its own, and all are there."""
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.stn = transformer('translation', (12, 10), 2, std=0.5)
            self.scale = nn.Parameter(torch.ones(()))
            self.told = []

        def forward(self, x):
            _, theta = self.stn.look(x)
            self.stn.remember(theta)
            self.told.append(theta.detach()[:, 0, 2])
            return torch.cat([theta[:, :, 2], theta[:, :1, 2]], 1) * self.scale

    model, x = Told().eval(), rand(20, 2, 12, 10)
    examine(model, batches_of([x[:8], x[8:16], x[16:]], 20))
    own, shuffled = (torch.cat(model.told[start:start + 3]) for start in (0, 9))
    assert not (own == shuffled).any() and torch.equal(own.sort().values, shuffled.sort().values)


# verdicts, of figures that are changed

def faults(model, **changed):
    finding, = diagnose(model, loader()).findings
    figures = replace(finding.figures, **changed)
    return faults_of(figures, watched(model)[0]), healthy(figures)


def test_a_small_view_is_no_fault_where_it_pays(trained):
    """A small thing that is found is seen in a small view."""
    assert faults(trained, scale=Range(0.1, 0.12, 0.14))[0] == []
    nothing = dict(gain_from_looking=Share(0.0, 0.01), loss_from_looking=Share(0.0, 0.1))
    fault, *_ = faults(trained, scale=Range(0.1, 0.12, 0.14), **nothing)[0]
    assert fault.kind == 'collapsed'


def test_what_looks_outside_and_pays_is_told_so(trained):
    fault, = faults(trained, outside=0.6)[0]
    assert fault.kind == 'outside' and 'as it is, looking gives' in fault.text


def test_some_views_far_away_are_enough(trained):
    fault, = faults(trained, far=0.1)[0]
    assert fault.kind == 'exploding' and '10 % of the views lie mostly farther than 4 half-widths' in fault.text


def test_no_use_is_not_shown_by_few_images(trained):
    fault, = faults(trained, images=40, gain_from_looking=Share(0.01, 0.02), loss_from_looking=Share(-0.1, 0.2))[0]
    assert fault.kind == 'unused' and 'these 40 images do not show' in fault.text and '± 2.0 points' in fault.text
    few, text = faults(trained, gain_from_looking=Share(0.01, 0.02), loss_from_looking=Share(-0.1, 0.02))
    assert not few and 'of the loss, 0.1' in text


def test_what_does_the_same_for_all_is_not_said_to_look(trained):
    assert faults(trained, between=0.0)[1] == 'no harm found, and no use: it does the same for every image'


def test_advice_for_volumes_can_be_followed():
    stn = transformer('affine3d', (6, 6, 6), 1, std=0.2)
    model = nn.Sequential(stn, nn.Flatten(), nn.Linear(216, 3)).eval()
    figures = figures_of(model, [(rand(5, 1, 6, 6, 6), torch.zeros(5).long())])
    for changed in (dict(scale=Range(0.0, 0.0, 0.0)), dict(outside=0.9), dict(far=1.0)):
        texts = [fault.text for fault in faults_of(replace(figures, **changed), watched(model)[0])]
        assert texts and not any(word in text for text in texts for word in ('translation', 'zoom', 'attention'))


# what is measured where there is more than one view, batch, or kind of target

def glimpses_at(shifts, **kwargs):
    model = create('stn_mnist_fcn', img_size=32, stn_size=16, num_classes=3, stn_transform='translation',
                   stn_scale=0.5, stn_glimpses=len(shifts), stn_localization='conv', stn_bound=False,
                   stn_padding_mode='zeros', **kwargs)
    with torch.no_grad():
        parameters = (torch.tensor([[x, 0.0] for x in shifts]) - model.stn.tiles) / 0.5
        model.stn.localization.regression.bias.copy_(parameters.flatten() / model.stn.localization.regression.lr_scale)
    return model


def test_one_glimpse_that_sees_something_is_not_black():
    assert figures_of(glimpses_at([0.0, 5.0]), [rand(4, 1, 32, 32)]).blank == 0
    assert figures_of(glimpses_at([5.0, 5.0]), [rand(4, 1, 32, 32)]).blank == 1


def test_two_of_three_glimpses_that_are_alike_are_found():
    assert figures_of(glimpses_at([-0.4, 0.4, 0.4]), [rand(4, 1, 32, 32)]).overlap == pytest.approx(1, abs=1e-5)
    apart = figures_of(glimpses_at([-0.5, 0.0, 0.5]), [rand(4, 1, 32, 32)]).overlap
    assert apart == pytest.approx(1 / 3, abs=1e-4), 'half of each is shared, of one and a half'


def test_a_stage_of_several_streams_is_compared_with_its_own_input():
    """A stage's transformer that is the identity shows all that there is, whatever the other streams have."""
    model = create(num_classes=3, img_size=64, stn_size=32, stn_glimpses=2, stn_scale=0.5, stn_stages=('input', 1))
    x = rand(4, 3, 64, 64)
    x[:, :, :, 32:] *= 1e-3
    each = next(each for each in examine(model, batches_of([x], 4)) if each.watch.stn.stage == 1)
    torch.testing.assert_close(each.all('contrast'), torch.ones(4, 2), rtol=0.01, atol=0.01)


def test_boxes_are_of_images_not_of_features():
    model = create(num_classes=3, img_size=64, stn_stages=('input', 1))
    boxes = [torch.zeros(4, 2, 4), torch.full((4, 3, 4), torch.nan)]
    first, second = diagnose(model, [(images(4, 64), torch.zeros(4).long(), each) for each in boxes]).findings
    assert first.figures.box_found is not None and second.figures.box_found is None
    unknown = diagnose(model, [(images(4, 64), torch.zeros(4).long(), boxes[1])]).findings[0]
    assert unknown.figures.box_found is None and 'boxes' not in str(unknown)


def test_targets_of_a_column_are_classes(trained):
    x, _ = loader()[0]
    answers = trained(x).argmax(1)
    for targets in (answers, answers[:, None], answers.int()):
        assert figures_of(trained, [(x, targets)]).accuracy.value == 1
    one_hot = [(x, F.one_hot(answers, CLASSES).float())]
    assert figures_of(trained, one_hot, is_right=lambda y, t: y.argmax(1) == t.argmax(1)).accuracy.value == 1


@pytest.mark.parametrize('classes', [0, 1])
def test_what_does_not_classify_is_not_asked_for_answers(classes):
    model = move_theta(create(num_classes=classes, img_size=64), 0.05)
    finding, = diagnose(model, [(images(6, 64), torch.zeros(6).long())]).findings
    assert finding.figures.accuracy is None and 'unused' not in [fault.kind for fault in finding.faults]


def test_figures_do_not_depend_on_batches(trained):
    x, y = (torch.cat(parts) for parts in zip(*loader()[:2]))
    whole = figures_of(trained, [(x, y)]).json
    for size in (5, 64):
        batches = [(x[:0], y[:0]), *zip(torch.split(x, size), torch.split(y, size))]
        found = figures_of(trained, batches).json
        for name in ('scale', 'center_x', 'outside', 'moved', 'between', 'accuracy', 'gain', 'gradient'):
            assert found[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-4), name


def test_half_precision_and_inference_mode(trained):
    expected = figures_of(trained, loader()).accuracy.value
    assert figures_of(copy.deepcopy(trained).bfloat16(), loader()).accuracy.value == pytest.approx(expected, abs=0.05)
    with torch.inference_mode():
        found = figures_of(trained, [(x.clone(), y) for x, y in loader()])
    assert found.accuracy.value == expected and found.gradient > 0


# networks of all kinds

@pytest.mark.parametrize('kwargs', [
    dict(stn_stages=('input', 1)),
    dict(stn_glimpses=2, stn_scale=0.5, stn_transform='translation', stn_size=32),
    dict(stn_glimpses=2, stn_scale=0.5, stn_whole=True, stn_size=32, stn_stages=('input', 2)),
    dict(stn_stages=(1,), stn_target='input'),
    dict(stn_localization='orbit:4'),
    dict(stn_localization='orbit:4', stn_stages=['input', [2, dict(localization='conv')]]),
    dict(stn_transform='tps', stn_iterations=2),
    dict(stn_transform='zoom', stn_localization='saliency:1'),
    dict(stn_glimpses=2, stn_scale=0.5, stn_towers='separate', stn_stages=('input', 1)),
], ids=str)
def test_networks_of_all_kinds(kwargs):
    model = move_theta(create(num_classes=5, img_size=64, **kwargs), 0.05)
    data = [(images(3, 64, seed=s), torch.tensor([0, 1, 2])) for s in range(3)]
    found = diagnose(model, data)
    names = [n for n, m in model.named_modules() if isinstance(m, timm_stn.SpatialTransformer)]
    assert [f.figures.name for f in found.findings] == names and found.lines and str(found)
    for finding in found.findings:
        figures = json.loads(json.dumps(finding.json))
        assert figures['images'] == 9 and figures['scale'][1] > 0 and figures['accuracy'][1] >= 0
    assert found.picture('mine').width > 500


def test_an_orbit_is_not_called_frozen():
    model = create(num_classes=5, img_size=64, stn_localization='orbit:4')
    finding, = diagnose(model, [images(8, 64)]).findings
    assert not finding.faults and 'healthy' not in finding.lines[0]


def test_volumes():
    torch.manual_seed(0)
    stn = transformer('affine3d', (6, 6, 6), 1, std=0.2)
    model = nn.Sequential(stn, nn.Flatten(), nn.Linear(216, 3)).eval()
    figures = figures_of(model, [(rand(5, 1, 6, 6, 6), torch.zeros(5).long())])
    assert figures.angle is None and figures.scale.middle > 0
    assert diagnose(model, [rand(5, 1, 6, 6, 6)]).picture().width > 300


def test_it_leaves_no_trace():
    model = move_theta(create(num_classes=5, img_size=64, stn_stages=('input', 1), stn_freeze_steps=5)).train()
    model.backbone.conv1.eval()
    modes = [m.training for m in model.modules()]
    model.stn(images(3, 64))
    theta = model.stn.last_theta
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    diagnose(model, [(images(6, 64), torch.zeros(6).long())])
    assert torch.equal(torch.rand(3), expected)
    assert [m.training for m in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.stn._forward_hooks and not model.stn.localization._forward_hooks
    assert not {'editor', 'recorder'} & set(vars(model.stn)) and model.stn.last_theta is theta


def test_it_looks_at_no_more_than_it_is_told():
    def endless():
        while True:
            yield images(8, 64), torch.zeros(8).long()

    model = create(num_classes=5, img_size=64)
    assert diagnose(model, endless(), most=21).findings[0].figures.images == 21


@pytest.mark.parametrize('given,error,message', [
    ([], ValueError, 'loader must give at least 2 images, got 0'),
    ([(torch.rand(1, 3, 64, 64), torch.zeros(1).int())], ValueError, 'at least 2 images, got 1'),
    ([torch.zeros(2, 3, 64, 64).byte()], TypeError, 'images must be normalised .* in floating point, got torch.uint8'),
    ([dict(image=1)], TypeError, 'got a dict'),
    ([(torch.rand(3, 64), torch.zeros(3))], TypeError, r'got \(3, 64\), \(3,\)'),
    ([(torch.rand(2, 3, 64, 64), torch.zeros(2, 5))], TypeError, r'2 integers for as many images, .* shape \(2, 5\)'),
    ([(torch.rand(2, 3, 64, 64), torch.zeros(3).long())], TypeError, r'shape \(3,\); for others, give is_right'),
    ([(torch.rand(2, 3, 64, 64), ['a', 'b'])], TypeError, r'got \(2, 3, 64, 64\), a list'),
])
def test_what_loaders_must_give(given, error, message):
    with pytest.raises(error, match=message):
        diagnose(create(num_classes=5, img_size=64), given)


def test_classes_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match='targets must be classes of the network, which has 5, got 99'):
        diagnose(create(num_classes=5, img_size=64), [(images(4, 64), torch.tensor([0, 1, 2, 99]))])


def test_networks_without_transformers_are_refused():
    with pytest.raises(ValueError, match='model must have a spatial transformer; there is none in this ResNet'):
        diagnose(timm.create_model('test_resnet'), [images(4, 64)])
    with pytest.raises(ValueError, match='no forward pass of model ran a spatial transformer'):
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        model[0].aside = transformer()
        diagnose(model, [rand(4, 3, 4, 4)])


def test_every_fault_is_in_the_docs():
    text = (ROOT / 'docs' / 'diagnosis.md').read_text()
    assert re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE) == list(RULES)


@pytest.mark.parametrize('name,kind', [
    ('stn_mnist_cnn_rts', 'RTS'), ('stn_mnist_cnn_tc', 'TC'), ('stn_mnist_add', 'ADD'),
    pytest.param('stn_gtsrb', 'SIGNS', marks=needs_weights('stn_gtsrb'))])
@pytest.mark.skipif(not os.environ.get('TIMM_STN_DATA'), reason='needs TIMM_STN_DATA')
def test_no_false_alarm_for_published_networks(name, kind):
    try:
        made_of, labels = (part[-300:] for part in TASKS[kind].load(None, 'test'))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    data = list(batches_of_task(kind, made_of, labels, batch_size=100))
    finding, = diagnose(timm.create_model(name, pretrained=True), data).findings
    assert not finding.faults, finding.lines
