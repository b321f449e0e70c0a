"""The training script: its files, that an interrupted run ends as an uninterrupted one, and its CUDA graph."""
import csv
import importlib
import json
import re
from contextlib import suppress
from copy import deepcopy

import pytest
import timm
import torch
from cells import cells
from makers import write_mnist
from pays_cells import pays
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_stn.data import DISTORTIONS, TASKS, distort, load_mnist
from timm_stn.data.birds import load_birds
from timm_stn.data.signs import load_signs

TRAIN = 'train/train_task.py'


@pytest.fixture(scope='module')
def script():
    return importlib.import_module('train_task')


@pytest.fixture
def arguments(tmp_path):
    write_mnist(tmp_path / 'data', train=70, test=20)
    return ['--data', str(tmp_path / 'data'), '--batch-size', '32', '--epochs', '3', '--set', 'R', '--clip-grad', '1',
            '--ema-decay', '0.9', '--model-kwargs', 'channels=(4, 4)', 'drop_rate=0.5']


def test_files_and_resume(script, arguments, tmp_path, monkeypatch):
    script.main([*arguments, '--output', str(tmp_path / 'whole')])
    result = json.loads((tmp_path / 'whole' / 'result.json').read_text())
    lines = list(csv.DictReader((tmp_path / 'whole' / 'summary.csv').open()))
    assert [line['epoch'] for line in lines] == ['1', '2', '3']
    assert float(lines[-1]['test_error']) == result['test_error'] and len(result['seconds']) == 3
    assert result['args']['model_kwargs'] == {'channels': [4, 4], 'drop_rate': 0.5}

    train_epoch = script.train_epoch

    def interrupted(run, digits, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(run, digits, epoch)

    halves = [*arguments, '--output', str(tmp_path / 'halves')]
    monkeypatch.setattr(script, 'train_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(halves)
    assert not (tmp_path / 'halves' / 'result.json').exists()
    monkeypatch.setattr(script, 'train_epoch', train_epoch)
    script.main(halves)
    whole, resumed = (load_file(tmp_path / name / 'model.safetensors') for name in ('whole', 'halves'))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert not list(tmp_path.glob('*/.*.tmp'))

    with pytest.raises(ValueError, match='other arguments'):
        script.main([*halves, '--lr', '1'])


def test_digits_that_are_held_back_are_those_that_are_tested_on(script, arguments, tmp_path):
    args = script.parse_args([*arguments, '--output', 'none', '--held-back', '15'])
    all_images, all_labels = load_mnist(tmp_path / 'data')
    images, labels, *back = script.digits_of(args)
    batches = list(script.TestSet(args, *back))
    canvases, classes = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(canvases, distort(back[0], 'R', torch.Generator().manual_seed(0)))
    assert torch.equal(images, all_images[:55]) and torch.equal(labels, all_labels[:55])
    assert canvases.shape == (60, 1, 28, 28) and torch.equal(classes, all_labels[55:].repeat(4))
    assert len(canvases.unique(dim=0)) == 60
    with pytest.raises(SystemExit, match='--held-back 70: there are 70 training digits'):
        script.digits_of(script.parse_args([*arguments, '--output', 'none', '--held-back', '70']))


def test_learning_rate(script):
    factor = script.warmup_cosine(warmup=4, total=20)
    rates = [factor(step) for step in range(21)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[4] and rates[20] == 0
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_tenth_of_the_rate_after_each_third(script, arguments, tmp_path):
    factor = script.warmup_step(warmup=0, total=9)
    assert [factor(step) for step in range(10)] == pytest.approx(3 * [1] + 3 * [0.1] + 4 * [0.01])
    slow = script.warmup_step(warmup=2, total=9)
    assert [slow(step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 0.1])
    script.main([*arguments, '--schedule', 'step', '--warmup-epochs', '0', '--lr', '0.01', '--opt', 'sgd', '--output',
                 str(tmp_path / 'run')])
    lines = csv.DictReader((tmp_path / 'run' / 'summary.csv').open())
    assert [float(line['lr']) for line in lines] == pytest.approx([0.01, 0.001, 0.0001])


def run_of(script, tmp_path, name, *more):
    script.main([*more, '--output', str(tmp_path / name)])
    return json.loads((tmp_path / name / 'result.json').read_text())


def test_bfloat16_on_a_cpu(script, arguments, tmp_path):
    exact, rounded = (run_of(script, tmp_path, str(more), *arguments, *more) for more in ([], ['--amp']))
    assert rounded['train_loss'] != exact['train_loss']
    assert rounded['train_loss'] == pytest.approx(exact['train_loss'], rel=0.05)
    weights = load_file(tmp_path / "['--amp']" / 'model.safetensors').values()
    assert all(weight.dtype in (torch.float32, torch.int64) for weight in weights)


@pytest.mark.parametrize(('kind', 'model', 'kwargs', 'outputs'), [
    ('ADD', 'stn_mnist_fcn', ['hidden=4', 'stn_size=24', 'stn_glimpses=2', 'stn_join=channels'], 19),
    ('SEQ64', 'svhn_cnn', ['width=0.05'], 55),
    ('VOLUME', 'stn_volume_cnn', ['channels=(2, 3)', 'localization=fc:hidden=4'], 10),
    ('VOLUME', 'volume_cnn', ['channels=(2, 3)'], 10),
])
def test_other_tasks(script, tmp_path, kind, model, kwargs, outputs):
    write_mnist(tmp_path / 'data', train=9, test=4)
    result = run_of(script, tmp_path, 'run', '--data', str(tmp_path / 'data'), '--set', kind, '--model', model,
                    '--batch-size', '4', '--epochs', '1', '--model-kwargs', *kwargs)
    assert 0 <= result['test_error'] <= 100 and len(result['test_errors']) == 1
    weights = load_file(tmp_path / 'run' / 'model.safetensors')
    assert weights['backbone.fc.weight' if 'backbone.fc.weight' in weights else 'fc.weight'].shape[0] == outputs


def test_what_is_not_kept_is_made_again(script, arguments, tmp_path, monkeypatch):
    kept = run_of(script, tmp_path, 'kept', *arguments)
    monkeypatch.setattr(script, 'KEPT', 28 * 28 * 20 - 1)
    monkeypatch.setattr(script, 'AT_ONCE', 28 * 28 * 3)
    args = script.parse_args([*arguments, '--output', 'none'])
    held_out = script.TestSet(args, *load_mnist(tmp_path / 'data', 'test'))
    assert held_out.kept is None and [len(x) for x, _ in held_out] == 6 * [3] + [2]
    again = run_of(script, tmp_path, 'again', *arguments)
    assert again['test_errors'] == kept['test_errors'] and again['train_loss'] == kept['train_loss']


def test_every_answer_must_be_right(script):
    logits = torch.eye(3)[torch.tensor([[0, 1], [0, 2], [2, 1]])].flatten(1)  # two answers of three classes
    classes = torch.tensor([[0, 1], [0, 1], [1, 2]])
    assert script.are_wrong(logits, classes).tolist() == [False, True, True]
    assert script.are_wrong(torch.eye(3), torch.tensor([0, 2, 2])).tolist() == [False, True, False]


def test_volumes_are_for_networks_of_volumes(script, arguments):
    from volume_net import VolumeNet
    for kind, model in (('VOLUME', 'mnist_cnn'), ('R', 'volume_cnn')):
        args = script.parse_args([*arguments, '--output', 'none', '--set', kind, '--model', model])
        with pytest.raises(SystemExit, match=f'--model {model} --set {kind}: the set VOLUME is for volume_cnn'):
            script.create_model(args)
    with pytest.raises(ValueError, match='volume_cnn has no transformer, which takes localization'):
        VolumeNet(False, 60, localization='fc')


@pytest.mark.parametrize('name', ['volume_cnn', 'stn_volume_cnn'])
def test_networks_of_volumes(name):
    from volume_net import SIDE, VOLUME_NETS, VolumeNet
    model = VolumeNet(VOLUME_NETS[name], 60, 10, channels=(2, 3)).eval()
    x = torch.rand(2, 1, 60, 60, 60)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert model(x).shape == (2, 10)
    if name == 'volume_cnn':
        torch.testing.assert_close(seen[0], x.mean(2))
    else:
        assert seen[0].shape == (2, 1, SIDE, SIDE) and model.stn.last_theta.shape == (2, 3, 4)
        torch.testing.assert_close(seen[0], model.stn(x).mean(2))


def test_a_diverged_run_stops(script, arguments, tmp_path):
    with pytest.raises(RuntimeError, match='The loss of epoch 1 is'):
        script.main([*arguments, '--output', str(tmp_path / 'run'), '--opt', 'sgd', '--lr', '1e30'])
    assert not (tmp_path / 'run' / 'summary.csv').exists()


# --- the step, and a CUDA graph of it ---

def digits(count=70, device='cpu'):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    images[:, :, :4] = 0
    return images.to(device), torch.randint(10, (count,), generator=generator).to(device)


def make_run(script, *more, device='cpu', kind='RTS', model='stn_mnist_cnn'):
    args = script.parse_args([
        '--model', model, '--set', kind, '--batch-size', '16', '--epochs', '2', '--clip-grad', '1', '--output', 'none',
        '--device', device, *more])
    return script.Run(args, steps_per_epoch=5)


@pytest.mark.parametrize('kind', list(DISTORTIONS))
def test_draws_of_an_epoch_are_those_of_its_batches(script, kind):
    images, labels = digits()
    order, u = script.draw(len(images), kind, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    index = torch.randperm(len(images), generator=generator)
    assert torch.equal(order, index)
    for batch, numbers in zip(index.split(16), u.split(16), strict=True):
        expected = distort(images[batch], kind, generator, clutter=images)
        made, classes = TASKS[kind].make(images, labels, batch, numbers)
        assert torch.equal(made, expected) and torch.equal(classes, labels[batch])


def test_average_is_that_of_timm(script):
    from cuda_step import average
    run = make_run(script, '--model-kwargs', 'channels=(4, 4)')
    ours, timms = (ModelEmaV3(run.model, decay=0.9, use_warmup=True) for _ in range(2))
    for step in range(1, 5):
        script.train_step(run, digits(16), torch.arange(16), torch.rand(16, TASKS['RTS'].draws))
        average(ours, run.model, torch.tensor(1 - ours.get_decay(step)))
        timms.update(run.model, step=step)
        for key, value in timms.module.state_dict().items():
            torch.testing.assert_close(ours.module.state_dict()[key], value, msg=key)


class Waits(TorchDispatchMode):
    """Notes operations that need the values of tensors of a device, or copy between it and the host."""

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        on_device = [t for t in tensors if t.is_meta]
        masks = any(t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2]) if isinstance(t, torch.Tensor))
        name = func._schema.name.removeprefix('aten::')
        if on_device and (
                name in ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', '_linalg_check_errors', '_unique2')
                or (name.startswith('index') and masks)
                or any(t.device.type == 'cpu' and t.ndim for t in tensors)):
            self.noted.append(name)
        return result


class Constants(TorchFunctionMode):
    """Notes tensors that are made on a device of numbers in Python, which are copied there."""

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, '__name__', str(func))
        if name in ('__getitem__', '__setitem__') and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | range) for part in index):
                self.noted.append(name)
        if name in ('tensor', 'as_tensor', 'new_tensor', 'asarray') and result.is_meta:
            self.noted.append(name)
        return result


@pytest.mark.parametrize(('kind', 'model', 'kwargs'), [
    *[(kind, 'mnist_cnn', []) for kind in DISTORTIONS],
    ('RTS', 'mnist_fcn', ['hidden=8']),
    *[('RTS', 'stn_mnist_cnn', [f'stn_transform={name}']) for name in (
        'translation', 'attention', 'similarity', 'affine', 'projective', 'tps', 'diffeomorphic', 'affine+tps')],
    ('RTS', 'stn_mnist_cnn', ['stn_iterations=2', 'stn_size=28']),
    ('RTS', 'stn_mnist_cnn', ['stn_localization=fc', 'drop_rate=0.5']),
    ('TC', 'stn_mnist_cnn_tc', []),
    ('TURNED', 'stn_mnist_cnn', ['stn_localization=orbit:8']),
    ('SIGNS', 'stn_signs_cnn', ["stn_stages=['input',0,2]", 'stn_iterations=2']),
    ('SCENES', 'stn_signs_cnn', ['img_size=256', 'stn_size=32', 'stn_scale=0.22', 'stn_localization=saliency:4']),
    ('MEGAPIXEL', 'stn_test_byobnet', [
        'img_size=1500', 'stn_size=32', 'stn_glimpses=2', 'stn_scale=0.024', 'stn_localization=saliency:0',
        'stn_localization_size=64', 'stn_bound=False']),
])
def test_a_step_waits_for_no_device(script, kind, model, kwargs):
    """On meta tensors, which are not on the CPU, and have no values to wait for."""
    assert not waits_of_a_step(script, make_run(
        script, '--model-kwargs', *kwargs, device='meta', kind=kind, model=model))


def waits_of_a_step(script, run):
    run.model.train()
    index, u = torch.arange(16, device='meta'), torch.rand(16, TASKS[run.args.set].draws, device='meta')
    task = TASKS[run.args.set]
    data, noted = digits(device='meta'), []
    of_photos = {load_birds: (224, 1), load_signs: (32, 5)}  # their side, and what is known of each
    if task.load in of_photos or run.args.set.startswith('SVHN'):
        side, known = of_photos.get(task.load, (task.size, task.answers))
        labels = torch.zeros(70, known, dtype=torch.int64, device='meta')
        data = torch.zeros(70, 3, side, side, dtype=torch.uint8, device='meta'), labels[:, 0] if known == 1 else labels
    for _ in range(2):  # before the first there is much to be made
        noted.clear()
        with Constants(noted), Waits(noted):
            script.train_step(run, data, index, u)
    return noted


EVERY = {cell.name: cell for cell in [*cells(), *pays()]}  # a run may fill several cells


@pytest.mark.parametrize('cell', [
    cell for cell in EVERY.values()
    if TRAIN in cell.command and cell.recipe == 'modern' and cell.name[:8] != 'svhn-128'], ids=lambda cell: cell.name)
def test_a_step_of_every_cell_waits_for_no_device(script, cell):
    args = script.parse_args([*cell.command[1:], '--device', 'meta'])
    args.amp, args.ema_decay, args.weights = False, 0., None  # which meta tensors do not know
    assert not waits_of_a_step(script, script.Run(args, steps_per_epoch=5))


def test_what_waits_is_noted():
    noted: list[str] = []
    x = torch.rand(3, 3, device='meta')
    with Constants(noted), Waits(noted):
        x.new_tensor([1.0])
        x[:, [0, 1]]
        torch.ones(3).to(x.device)
        torch.linalg.inv(x)
        with pytest.raises(RuntimeError):
            x[0, 0].item()
    assert noted == ['new_tensor', '__getitem__', '_to_copy', '_linalg_check_errors']


class InsteadOfGraph:
    """Its replays are the operations that a graph would hold."""

    def __init__(self, step, run, data):
        self.step, self.run, self.data = step, run, data

    def replay(self):
        from cuda_step import average
        self.step.step(self.run, self.data, self.step.index, self.step.u)
        average(self.run.ema, self.run.model, self.step.weight)


def test_what_a_graph_reads_is_what_eager_steps_take(script, arguments, tmp_path, monkeypatch):
    """Digits, numbers, rates and weights are in place before each replay, also in a run that a CPU began."""
    arguments = [*arguments, '--batch-size', '8']
    script.main([*arguments, '--output', str(tmp_path / 'eager')])
    train_epoch, replays = script.train_epoch, []

    def until_second(run, data, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(run, data, epoch)

    monkeypatch.setattr(script, 'train_epoch', until_second)
    with suppress(KeyboardInterrupt):
        script.main([*arguments, '--output', str(tmp_path / 'graph')])
    monkeypatch.setattr(script, 'train_epoch', train_epoch)

    def instead(step, run, data):
        replays.append(run)
        return InsteadOfGraph(step, run, data)

    monkeypatch.setattr(script, 'capture_arguments', lambda opt, device: {'foreach': False})  # for rates in tensors
    monkeypatch.setattr(script.CapturedStep, 'capture', instead)
    script.main([*arguments, '--output', str(tmp_path / 'graph')])
    assert len(replays) == 1 and torch.is_tensor(replays[0].optimizer.param_groups[0]['lr'])
    eager, graph = (load_file(tmp_path / name / 'model.safetensors') for name in ('eager', 'graph'))
    for key, value in eager.items():
        torch.testing.assert_close(graph[key], value, rtol=1e-4, atol=1e-6)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')


def trained(script, run, steps=10):
    from cuda_step import EAGER
    data = digits(device='cuda')
    order, u = script.draw(len(data[0]), run.args.set, torch.Generator().manual_seed(1))
    run.model.train()
    step = run.captured or script.eager_step
    for start in range(steps + EAGER):
        batch = torch.arange(start, start + 16) % len(order)
        step(run, data, order[batch].cuda(), u[batch].cuda())
        if start == EAGER + 1:
            step(run, data, order[:6].cuda(), u[:6].cuda())  # smaller, not in the graph
    return {f'{part}.{key}': value for part in ('model', 'ema') for key, value in run.state()[part].items()}


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize('kind', ['RTS', 'TC', 'P', 'E', 'ADD', 'SEQ64'])
def test_captured_steps_are_eager_steps(script, kind, monkeypatch):
    from cuda_step import work_on
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    common = ['--ema-decay', '0.9', '--lr', '1e-3', '--model-kwargs', 'channels=(4, 4)']
    with work_on('cuda'):
        monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
        captured = make_run(script, *common, device='cuda', kind=kind)
        eager = make_run(script, *common, '--no-cuda-graph', device='cuda', kind=kind)
        for group in captured.optimizer.param_groups + eager.optimizer.param_groups:
            group['eps'] = 1e-4  # else AdamW makes whole steps of rounding errors
        start = deepcopy({f'{part}.{key}': v for part in ('model', 'ema') for key, v in eager.state()[part].items()})
        one, other = trained(script, captured), trained(script, eager)
        assert captured.captured.graph is not None and eager.captured is None
        torch.testing.assert_close(captured.total, eager.total, rtol=1e-4, atol=0)
        rates = [float(run.optimizer.param_groups[0]['lr']) for run in (captured, eager)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    moved = {key: (other[key].double() - start[key]).norm() for key in start}
    assert sum(length > 1e-4 for length in moved.values()) > len(moved) / 2
    for key, length in moved.items():
        assert (one[key].double() - other[key]).norm() <= 0.05 * length + 1e-6, key


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize('kind', list(DISTORTIONS))
def test_digits_on_cuda_are_those_on_the_cpu(kind):
    images, _ = digits(1000)
    here, there = (distort(x, kind, torch.Generator().manual_seed(2)).cpu() for x in (images, images.cuda()))
    assert (here - there).abs().max() < 2e-3


@pytest.mark.gpu
@needs_cuda
def test_a_run_on_cuda_goes_on(script, arguments, tmp_path, monkeypatch):
    """From its own checkpoint, and from one of a CPU; `--no-cuda-graph` or not."""
    arguments = [*arguments, '--batch-size', '8', '--epochs', '4']
    script.main([*arguments, '--device', 'cuda', '--output', str(tmp_path / 'whole')])
    result = json.loads((tmp_path / 'whole' / 'result.json').read_text())
    assert result['cuda_graph'] and result['device'] == torch.cuda.get_device_name()
    train_epoch = script.train_epoch
    for last, more in enumerate((['cpu'], ['cuda'], ['cuda', '--no-cuda-graph'], ['cpu']), start=1):
        def until(run, data, epoch, last=last):
            if epoch > last:
                raise KeyboardInterrupt
            return train_epoch(run, data, epoch)

        monkeypatch.setattr(script, 'train_epoch', until)
        with suppress(KeyboardInterrupt):
            script.main([*arguments, '--device', *more, '--output', str(tmp_path / 'parts')])
    whole, parts = (
        [float(line['train_loss']) for line in csv.DictReader((tmp_path / name / 'summary.csv').open())]
        for name in ('whole', 'parts'))
    assert len(parts) == 4 and parts == pytest.approx(whole, rel=0.1)  # dropout differs between devices


# --- what it refuses ---

@pytest.mark.parametrize(('args', 'said'), [
    (['--img-size', '0'], "argument --img-size: takes a positive integer, got '0'"),
    (['--val-interval', '0'], "argument --val-interval: takes a positive integer, got '0'"),
    (['--epochs', '0'], "argument --epochs: takes a positive integer, got '0'"),
    (['--model', 'nothing'], "argument --model: takes a registered timm model, or one of volume_cnn, .* got 'nothing'"),
    (['--set', 'R', '--also', 'SIGNS'], 'argument --also: SIGNS has other data, channels or answers than --set R; like '
                                        'it are: RTS, P, E, T, TC, UPRIGHT, TURNED'),
])
def test_wrong_arguments(script, capsys, args, said):
    with pytest.raises(SystemExit):
        script.parse_args(['--output', 'none', *args])
    assert re.search(said, capsys.readouterr().err)


def test_weights_of_another_network_are_refused(script, arguments, tmp_path):
    other, junk = tmp_path / 'other.safetensors', tmp_path / 'junk.safetensors'
    save_file({'head.weight': torch.zeros(1)}, other)
    junk.write_bytes(b'junk')
    for path, said in ((other, 'has no weight of the network'), (junk, 'is no checkpoint that can be read'),
                       (tmp_path / 'none.pth', 'is no checkpoint that can be read')):
        with pytest.raises(SystemExit, match=f'argument --weights: .*{path.name} {said}'):
            script.main([*arguments, '--output', str(tmp_path / 'run'), '--weights', str(path)])


def test_it_begins_with_weights_tests_on_other_sets_and_tells_what_it_is(script, arguments, tmp_path):
    """Without a step that counts, the network is what it began with."""
    begun = timm.create_model('stn_mnist_cnn', channels=(4, 4), in_chans=1, num_classes=10)
    weights = {k.removeprefix('backbone.'): v for k, v in begun.backbone.state_dict().items()}
    save_file(weights, tmp_path / 'weights.safetensors')
    script.main([*arguments[:-1], '--model', 'stn_mnist_cnn', '--lr', '0', '--ema-decay', '0', '--epochs', '3',
                 '--val-interval', '2', '--also', 'UPRIGHT', 'TURNED', '--weights',
                 str(tmp_path / 'weights.safetensors'), '--output', str(tmp_path / 'run')])
    found = load_file(tmp_path / 'run' / 'model.safetensors')
    for name, value in weights.items():
        assert torch.equal(found[f'backbone.{name}'], value), name
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert {*result['errors_on']} == {'UPRIGHT', 'TURNED'} and len(result['test_errors']) == 2
    assert result['pretrained'] is True and result['multiply_adds'] > 0 and result['steps_per_epoch'] == 3
    with open(tmp_path / 'run' / 'summary.csv') as file:
        assert [bool(line['test_error']) for line in csv.DictReader(file)] == [False, True, True]


def test_images_are_shrunk_and_normalised_as_the_network_takes_them(script):
    args = script.parse_args(['--output', 'none', '--model', 'test_resnet', '--set', 'SEQ64', '--img-size', '32',
                              '--normalize'])
    run = script.Run(args, 1)
    x = torch.rand(2, 3, 64, 64)
    cfg = run.model.pretrained_cfg
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ('mean', 'std'))
    small = torch.nn.functional.interpolate(x, (32, 32), mode='bilinear', antialias=True, align_corners=False)
    torch.testing.assert_close(script.shown(run, x), (small - mean) / std)


def test_layers_learn_at_their_own_rates(script, arguments, tmp_path):
    """As by timm's own schedulers; those of torch know nothing of `lr_scale`."""
    args = script.parse_args([*arguments, '--layer-decay', '0.5', '--lr', '0.1', '--output', str(tmp_path / 'run')])
    run = script.Run(args, steps_per_epoch=2)
    before = {group['lr_scale']: group['lr'] for group in run.optimizer.param_groups}
    run.optimizer.step()
    run.scheduler.step()
    factor = script.warmup_cosine(args.warmup_epochs * 2, args.epochs * 2)
    assert len(before) > 2
    for group in run.optimizer.param_groups:
        assert before[group['lr_scale']] == pytest.approx(0.1 * factor(0) * group['lr_scale'])
        assert group['lr'] == pytest.approx(0.1 * factor(1) * group['lr_scale'])
