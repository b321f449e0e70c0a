"""The distillation script: what teacher and student see, what is compared, and that an interrupted run goes on."""
import csv
import importlib
import json
from types import SimpleNamespace

import distil_lessons as lessons
import numpy as np
import pytest
import timm
import torch
from gpu_tiny import images
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from torch.nn import functional as F

from timm_stn.data.birds import crops

SMALL = ['--epochs', '1', '1', '1', '2', '--sides', '32', '64', '96', '--photos', '12', '--batch-size', '6']


@pytest.fixture(scope='module')
def script():
    return importlib.import_module('distil')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sources')
    for split in ('train', 'test'):
        images(folder / f'{split}.tar', classes=200, count=1, side=64, kind='jpeg')
    torch.manual_seed(0)
    for name in ('tf_efficientnet_lite0', 'test_resnet'):
        save_file(timm.create_model(name).state_dict(), folder / f'{name}.safetensors')
    return folder


@pytest.fixture
def sources(script, data, monkeypatch):
    """Of small networks in place of the real ones."""
    small = dict(TEACHER='test_resnet', STUDENT='test_efficientnet', LOOKING='stn_test_efficientnet')
    for name, model in small.items():
        monkeypatch.setattr(script, name, model)
    return ['--data', str(data), '--weights', str(data / 'test_resnet.safetensors')]


@pytest.fixture
def whole(script, sources, tmp_path):
    """A run that nothing interrupts."""
    script.main([*sources, *SMALL, '--output', str(tmp_path / 'whole')])
    return tmp_path / 'whole'


def photographs(count=4):
    """Smooth, so that interpolation and filters matter little."""
    noise = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, size=(224, 224), mode='bicubic').clamp(0, 1) * 255).byte()


# lessons

@pytest.mark.parametrize('side', [64, 128, 224, 448])
def test_student_and_teacher_see_the_same_crop(side):
    u = torch.rand(4, lessons.DRAWS, generator=torch.Generator().manual_seed(1))
    student, teacher = lessons.views(photographs(), u, lessons.Lesson(side, 4))
    grid = F.affine_grid(crops(u[:, :5]), [4, 3, 224, 224], align_corners=False)
    expected = F.grid_sample(photographs() / 255, grid, padding_mode='border', align_corners=False)
    assert student.shape == (4, 3, side, side) and torch.allclose(teacher, expected, atol=1e-5)
    assert (F.interpolate(student, size=(224, 224), mode='bilinear', antialias=True) - teacher).abs().mean() < 0.01
    assert (student.flip(3) - F.interpolate(teacher, size=(side, side))).abs().mean() > 0.05, 'a mirrored one is told'


def test_a_mixture_is_the_same_for_both():
    u = torch.rand(4, lessons.DRAWS, generator=torch.Generator().manual_seed(1))
    alone = lessons.views(photographs(), u, lessons.Lesson(128, 4))
    mixed = lessons.views(photographs(), u, lessons.Lesson(128, 4, mixed=True))
    for single, both in zip(alone, mixed, strict=True):
        for i in range(4):
            assert torch.allclose(both[i], (1 - u[i, 5]) * single[i] + u[i, 5] * single[i - 1], atol=1e-5)


def test_the_least_area_is_that_of_the_lesson():
    u = torch.zeros(2, lessons.DRAWS)
    u[:, 1:4] = 0.5
    for least in (0.08, 0.35):
        theta = crops(u[:, :5], least)
        assert theta[0, 0, 0].abs().item() * theta[0, 1, 1].item() == pytest.approx(least)


def test_what_is_compared():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(5, 7, generator=generator) for _ in range(2))
    expected = np.mean([entropy(t, s) for t, s in zip(teacher.softmax(1).numpy(), student.softmax(1).numpy())])
    assert lessons.divergence(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert lessons.divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    cosines = [np.dot(s, t) / np.linalg.norm(s) / np.linalg.norm(t)
               for s, t in zip(student[:, :4].numpy(), teacher[:, :4].numpy())]
    assert lessons.apart(student, teacher[:, :4]).item() == pytest.approx(1 - np.mean(cosines), rel=1e-5)


def test_a_temperature_keeps_the_size_of_gradients():
    """Where it is high, by that of half the squared distance of centred logits (Hinton et al. 2015, section 2.1)."""
    student, teacher = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0)).double()
    expected = np.mean([4 * entropy(t, s) for t, s in zip(
        (teacher / 2).softmax(1).numpy(), (student / 2).softmax(1).numpy())])
    assert lessons.divergence(student, teacher, 2.0).item() == pytest.approx(expected)
    apart = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert lessons.divergence(student, teacher, 1e3).item() == pytest.approx(
        (apart ** 2).sum(1).mean().item() / 2 / 9, rel=0.01)


@pytest.mark.parametrize('features', [False, True])
def test_only_the_student_learns(features):
    networks = [timm.create_model('test_resnet', num_classes=3).eval() for _ in range(2)]
    seen = torch.rand(2, 2, 3, 32, 32)
    loss, divergence = lessons.compared(*networks, tuple(seen), lessons.Lesson(32, 2, features=features))
    loss.backward()
    assert all(p.grad is not None for p in networks[0].parameters())
    assert all(p.grad is None for p in networks[1].parameters())
    assert loss.requires_grad and not divergence.requires_grad
    with torch.no_grad():
        mean, std = (torch.tensor(networks[0].pretrained_cfg[k])[:, None, None] for k in ('mean', 'std'))
        logits = [network((x - mean) / std) for network, x in zip(networks, seen, strict=True)]
    assert divergence.item() == pytest.approx(lessons.divergence(*logits).item(), rel=1e-4)
    assert (loss > divergence) if features else (loss == divergence)


def test_an_epoch_shows_no_photograph_twice_and_what_is_left_over_changes():
    epochs = [[index for index, u in lessons.batches(9, 4, seed, 'cpu')] for seed in range(20)]
    assert all([len(index) for index in epoch] == [4, 4] for epoch in epochs)
    seen = [{*torch.cat(epoch).tolist()} for epoch in epochs]
    assert {len(each) for each in seen} == {8} and set.union(*seen) == {*range(9)} and len({*map(frozenset, seen)}) > 3
    assert [len(index) for index, _ in lessons.batches(3, 4, 3, 'cpu')] == [3] and lessons.steps_of(3, 4) == 1


def test_rates_rise_then_fall_and_rise_again_with_a_new_optimizer():
    groups = [dict(lr=0.0), dict(lr=0.0, lr_scale=0.5)]
    pace = lessons.Pace(SimpleNamespace(param_groups=groups), 1.0, warmup=4, total=100)
    rates = [pace.set(step) for step in range(101)]
    assert rates.index(max(rates)) == 4 and rates[0] == pytest.approx(0.2) and rates[100] == pytest.approx(0)
    assert rates[50] == pytest.approx(0.5) and groups[1]['lr'] == groups[0]['lr'] / 2
    again = lessons.Pace(SimpleNamespace(param_groups=groups), 1.0, warmup=4, total=100, begun=50)
    assert again.rate(50) == pytest.approx(0.1) and again.rate(60) == rates[60]


# runs

def test_files_of_a_run(script, data, tmp_path):
    """The real networks."""
    whole = tmp_path / 'run'
    script.main(['--data', str(data), '--weights', str(data / 'tf_efficientnet_lite0.safetensors'), *SMALL,
                 '--output', str(whole)])
    result = json.loads((whole / 'result.json').read_text())
    lines = list(csv.DictReader((whole / 'summary.csv').open()))
    assert [line['stage'] for line in lines] == [
        'teacher', 'small', 'large', 'plain', 'plain', 'plain_448', 'plain_448', 'looking', 'looking']
    assert result['epochs'] == {'teacher': 1, 'small': 1, 'large': 1, 'looking': 2} and result['test_images'] == 12
    assert {f'{name}top{k}' for name in ('', 'plain_', 'plain_448_', 'teacher_') for k in (1, 5)} <= result.keys()
    assert result['seconds'].keys() == {'teacher', 'small', 'large', 'plain', 'plain_448', 'looking'}
    weights = load_file(whole / 'model.safetensors')
    model = timm.create_model('stn_resnet50_cub')
    model.load_state_dict(weights)
    assert result['parameters'] == sum(p.numel() for p in model.parameters())
    assert weights['backbone.conv1.weight'].dtype == torch.float16
    assert (whole / 'model.safetensors').stat().st_size < 5e7
    assert weights['backbone.bn1.running_var'].dtype == torch.float32
    assert (whole / 'checkpoint.pt').stat().st_size < 57 * 2 ** 20, 'else it does not come back'


def test_the_student_comes_nearer_to_its_teacher(script, sources, tmp_path):
    """By what it says of photographs that it has learned from."""
    script.main([*sources, *SMALL, '--epochs', '1', '12', '1', '1', '--batch-size', '4', '--lr', '0.002', '--until',
                 'student', '--output', str(tmp_path)])
    assert not (tmp_path / 'result.json').exists()
    lines = [line for line in csv.DictReader((tmp_path / 'summary.csv').open()) if line['stage'] == 'small']
    losses, distances = ([float(line[key]) for line in lines] for key in ('loss', 'divergence'))
    assert len(losses) == 12 and sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert sum(distances[-3:]) < 0.7 * sum(distances[:3])


class Cut(Exception):
    pass


@pytest.fixture
def cut(script, monkeypatch):
    """Runs are cut off before an epoch of this number, and saved after each."""
    learn, done = script.epoch, []

    def limited(most):
        def epoch(*args):
            if len(done) == most:
                raise Cut
            done.append(None)
            return learn(*args)
        done.clear()
        monkeypatch.setattr(script, 'epoch', epoch)

    monkeypatch.setattr(script, 'SAVED', -1.0)
    return limited


@pytest.mark.parametrize('most', [2, 4, 8])  # within the student, a plain stage, the last stage
def test_an_interrupted_run_ends_as_the_whole_one(script, sources, whole, cut, tmp_path, most):
    command = [*sources, *SMALL, '--output', str(tmp_path / 'run')]
    cut(most)
    with pytest.raises(Cut):
        script.main(command)
    cut(99)
    script.main(command)
    expected, found = (load_file(folder / 'model.safetensors') for folder in (whole, tmp_path / 'run'))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    first, second = (json.loads((folder / 'result.json').read_text()) for folder in (whole, tmp_path / 'run'))
    assert first['stages'] == second['stages'] and first['seconds'].keys() == second['seconds'].keys()
    assert not list(tmp_path.rglob('.*.tmp'))


@pytest.mark.parametrize('stage', ['student', 'looking'])
def test_a_stage_that_is_cut_off_while_it_is_measured(script, sources, whole, cut, tmp_path, monkeypatch, stage):
    command, figures = [*sources, *SMALL, '--output', str(tmp_path / 'run')], script.Run.figures

    def stopped(run, network, side):
        if run.stage == stage and run.epoch:
            raise Cut
        return figures(run, network, side)

    cut(99)
    monkeypatch.setattr(script.Run, 'figures', stopped)
    with pytest.raises(Cut):
        script.main(command)
    monkeypatch.setattr(script.Run, 'figures', figures)
    script.main(command)
    first, second = (json.loads((folder / 'result.json').read_text()) for folder in (whole, tmp_path / 'run'))
    assert first['stages'] == second['stages'] and first['seconds'].keys() == second['seconds'].keys()


def test_a_checkpoint_of_before_an_option_is_of_its_default(script, sources, cut, tmp_path):
    command = [*sources, *SMALL, '--output', str(tmp_path / 'run')]
    cut(2)
    with pytest.raises(Cut):
        script.main(command)
    for name in ('state.pt', 'checkpoint.pt'):
        state = torch.load(tmp_path / 'run' / name, weights_only=True)
        del state['args']['temperature']
        torch.save(state, tmp_path / 'run' / name)
    with pytest.raises(SystemExit, match='other arguments'):
        script.main([*command, '--temperature', '2'])
    cut(99)
    script.main(command)


def test_all_are_tested_on_the_same_part_of_photographs(script, sources, tmp_path):
    run = script.Run(script.parse_args([*sources, '--photos', '2', '--output', str(tmp_path)]))
    made = [timm.create_model(name) for name in ('resnet50', 'tf_efficientnet_lite0', 'stn_resnet50_cub')]
    assert len({timm.data.resolve_model_data_config(model)['crop_pct'] for model in made}) > 1
    first, *others = (run.read(model, 64) for model in made)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(('most', 'stage'), [(2, 'student'), (8, 'looking')])
def test_what_travels_is_enough_to_go_on(script, sources, cut, tmp_path, most, stage):
    command = [*sources, *SMALL, '--output', str(tmp_path / 'run')]
    cut(most)
    with pytest.raises(Cut):
        script.main(command)
    exact = torch.load(tmp_path / 'run' / 'state.pt', weights_only=True)
    (tmp_path / 'run' / 'state.pt').unlink()
    run = script.Run(script.parse_args(command))
    run.resume()
    assert (run.stage, run.epoch, run.optimizer) == (stage, 1, None)
    for network, weights in ((run.teacher, exact['teacher']), (run.network, exact['network'])):
        found = network.state_dict()
        assert all(torch.allclose(found[key], value, rtol=1e-3, atol=1e-7) for key, value in weights.items())
    cut(99)
    script.main(command)
    stages = [line['stage'] for line in csv.DictReader((tmp_path / 'run' / 'summary.csv').open())]
    assert len(stages) == 9 and (tmp_path / 'run' / 'result.json').exists()


def test_a_run_in_bfloat16(script, sources, whole, tmp_path, monkeypatch):
    """As on a GPU."""
    for module in (script, lessons):
        monkeypatch.setattr(module, 'precision', lambda device: torch.autocast('cpu', torch.bfloat16))
    script.main([*sources, *SMALL, '--output', str(tmp_path / 'run')])
    lines, expected = ([*csv.DictReader((folder / 'summary.csv').open())] for folder in (tmp_path / 'run', whole))
    for line, other in zip(lines, expected, strict=True):
        assert float(line['loss']) == pytest.approx(float(other['loss']), rel=0.1) and line['loss'] != other['loss']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_run_on_a_gpu(script, sources, whole, cut, tmp_path):
    command = [*sources, *SMALL, '--output', str(tmp_path / 'run'), '--device', 'cuda']
    cut(4)
    with pytest.raises(Cut):
        script.main(command)
    cut(99)
    script.main(command)
    lines, expected = ([*csv.DictReader((folder / 'summary.csv').open())] for folder in (tmp_path / 'run', whole))
    for line, other in zip(lines, expected, strict=True):
        assert float(line['loss']) == pytest.approx(float(other['loss']), rel=0.1)
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert result['device'] == torch.cuda.get_device_name()


def test_test_photographs_influence_nothing(script, sources, whole, tmp_path):
    other = tmp_path / 'data'
    other.mkdir()
    (other / 'train.tar').symlink_to(f'{sources[1]}/train.tar')
    images(other / 'test.tar', classes=200, count=2, side=48, kind='jpeg')
    script.main(['--data', str(other), *sources[2:], *SMALL, '--output', str(tmp_path / 'run')])
    expected, found = (load_file(folder / 'model.safetensors') for folder in (whole, tmp_path / 'run'))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_photographs_that_are_held_back_are_those_that_are_tested_on(script, sources, tmp_path):
    (photos, classes), test = script.photos_of(script.parse_args([*sources, '--output', str(tmp_path)]))
    args = script.parse_args([*sources, '--held-back', '20', '--output', str(tmp_path)])
    (kept, kept_classes), (back, back_classes) = script.photos_of(args)
    assert torch.equal(kept, photos[:180]) and torch.equal(back, photos[180:]) and len(test[0]) == 200
    assert torch.equal(torch.cat((kept_classes, back_classes)), classes)
    args.held_back = 200
    with pytest.raises(SystemExit, match='--held-back: takes less than the 200 training photographs, got 200'):
        script.photos_of(args)


def test_a_folder_of_another_run_is_left_alone(script, sources, whole, capsys):
    script.main([*sources, *SMALL, '--output', str(whole)])
    assert 'is finished' in capsys.readouterr().out
    result, kept = whole / 'result.json', whole / 'kept.json'
    result.rename(kept)
    try:
        with pytest.raises(SystemExit, match='with other arguments'):
            script.main([*sources, *SMALL, '--lr', '0.1', '--output', str(whole)])
    finally:
        kept.rename(result)


def test_photographs_are_read_as_by_validate(script, sources, tmp_path):
    model = timm.create_model('resnet18')
    model.pretrained_cfg.update(crop_pct=0.875, interpolation='bicubic')
    run = script.Run(script.parse_args([*sources, '--photos', '2', '--output', str(tmp_path)]))
    run.test = photographs(3), torch.zeros(3)
    pixels = run.read(model, 112)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 3, 112, 112) and run.read(model, 112) is pixels
    found = lessons.normalized(model, pixels / 255)[0]
    assert script.CROP == timm.get_pretrained_cfg('stn_resnet50_cub').crop_pct == 0.95
    config = timm.data.resolve_model_data_config(model) | dict(input_size=(3, 112, 112))
    picture = script.Image.fromarray(photographs(3)[0].permute(1, 2, 0).numpy()).resize((117, 117), 3)
    expected = torch.from_numpy(np.array(picture.crop((2, 2, 114, 114)))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ('mean', 'std'))
    assert torch.allclose(found, (expected - mean) / std, atol=1e-5)
