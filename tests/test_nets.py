"""The paper's own networks, and one for signs, as timm models: what timm's tests ask of a model, and the shapes."""
import copy

import pytest
import timm
import torch
from makers import rand
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import timm_stn.nets

MNIST = ['mnist_cnn', 'mnist_fcn']
FIXED = [*MNIST, 'svhn_cnn']  # of one size of images
NAMES = [*FIXED, 'signs_cnn']
INPUTS = {'mnist_cnn': (1, 28, 28), 'mnist_fcn': (1, 28, 28), 'svhn_cnn': (3, 64, 64), 'signs_cnn': (3, 32, 32)}
CLASSES = {'mnist_cnn': 10, 'mnist_fcn': 10, 'svhn_cnn': 55, 'signs_cnn': 43}
WIDTHS = {'mnist_cnn': 32, 'mnist_fcn': 256, 'svhn_cnn': 5, 'signs_cnn': 8}  # of the first layer
POOL = {'mnist_cnn': 2, 'mnist_fcn': 1, 'svhn_cnn': 4, 'signs_cnn': 4}
DEPTH = {'mnist_cnn': 2, 'mnist_fcn': 2, 'svhn_cnn': 8, 'signs_cnn': 7}
NARROW = {'svhn_cnn': dict(width=0.1), 'signs_cnn': dict(width=0.25)}

every = pytest.mark.parametrize('name', NAMES)
mnist = pytest.mark.parametrize('name', MNIST)


@pytest.fixture
def images(name):
    return rand(2, *INPUTS[name])


def make(name, **kwargs):
    return timm.create_model(name, **{**NARROW.get(name, {}), **kwargs})


@every
def test_registered(name):
    assert timm.is_model(name)
    assert name in timm.list_models(module=name.partition('_')[0])
    cfg = make(name).default_cfg
    state = make(name).state_dict()
    assert cfg['input_size'] == INPUTS[name] and cfg['num_classes'] == CLASSES[name]
    assert cfg['fixed_input_size'] == (name in FIXED)
    assert f'{cfg["classifier"]}.weight' in state and f'{cfg["first_conv"]}.weight' in state


@every
def test_forward_and_backward(name, images):
    model = make(name, num_classes=42).train()
    out = model(images)
    out.mean().backward()
    assert out.shape == (2, 42)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every
def test_heads(name, images):
    model = make(name).eval()
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, POOL[name], POOL[name])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.get_classifier() is model.fc

    model.reset_classifier(5)
    assert model.num_classes == 5 and model(images).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, '')
    assert torch.equal(model(images), features)
    model.reset_classifier(3, 'flatten')
    assert model(images).shape == (2, 3)
    unpooled = make(name, num_classes=0, global_pool='')
    assert unpooled(images).shape == features.shape


@every
def test_wrong_arguments(name, images):
    for pool in ('avg', ''):
        with pytest.raises(ValueError, match=f'global_pool .* got {pool!r}'):
            make(name, global_pool=pool)
    if name in FIXED:
        with pytest.raises(AssertionError, match='img_size'):
            make(name)(torch.rand(1, INPUTS[name][0], 42, 42))
        too_small = dict(img_size=20, pool_input=21) if name in MNIST else dict(img_size=(64, 15))
        with pytest.raises(ValueError, match='img_size must be at least'):
            make(name, **too_small)
    with pytest.raises(ValueError, match='drop_rate must be a number from 0 to 1, got 2'):
        make(name, drop_rate=2)
    with pytest.raises(TypeError, match='channel'):
        make(name, channel=3)


@every
@pytest.mark.parametrize('kwargs', [
    {'img_size': 42},
    {'img_size': (60, 42), 'in_chans': 3},
    {'img_size': 60, 'pool_input': 2},
    {},
])
def test_sizes(name, kwargs):
    if name not in MNIST:
        kwargs = {key: value for key, value in kwargs.items() if key != 'pool_input'}
    model = make(name, **{key: value for key, value in kwargs.items() if name in FIXED or key != 'img_size'})
    size = kwargs.get('img_size', INPUTS[name][1:])
    x = torch.rand(2, kwargs.get('in_chans', INPUTS[name][0]), *((size, size) if isinstance(size, int) else size))
    assert model(x).shape == (2, CLASSES[name])
    features = model.forward_intermediates(x, intermediates_only=True)
    for info, feature in zip(model.feature_info, features, strict=True):
        assert feature.shape[1] == info['num_chs']
        assert name == 'mnist_fcn' or abs(x.shape[2] / info['reduction'] - feature.shape[2]) < 6  # less what is cut off
    assert model.in_chans == x.shape[1]


@every
@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 1), None])
@pytest.mark.parametrize('feature_cls', ['list', 'hook', 'getter', 'fx', None])
def test_features_only(name, feature_cls, out_indices, images):
    kwargs = {k: v for k, v in [('out_indices', out_indices), ('feature_cls', feature_cls)] if v is not None}
    model = make(name, features_only=True, **kwargs)
    outputs = model(images)
    assert [o.shape[1] for o in outputs] == model.feature_info.channels()
    assert len(outputs) == (len(out_indices) if out_indices else DEPTH[name])


@every
def test_forward_intermediates(name, images):
    model = make(name).eval()
    final, each = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images)) and torch.equal(final, each[-1])
    assert len(each) == DEPTH[name] == len(model.feature_info)
    first, = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(first, each[0])
    last, = model.forward_intermediates(images, indices=1, intermediates_only=True)
    assert torch.equal(last, each[-1])
    negative, = model.forward_intermediates(images, indices=[-2], intermediates_only=True)
    assert torch.equal(negative, each[-2])
    with pytest.raises(ValueError, match=rf'indices .* {DEPTH[name]} layers'):
        model.forward_intermediates(images, indices=[DEPTH[name]])
    with pytest.raises(ValueError, match='output_fmt'):
        model.forward_intermediates(images, output_fmt='NLC')

    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([0]) == [0]
    assert torch.equal(pruned(images), each[0])
    assert pruned.num_features == pruned.head_hidden_size == WIDTHS[name]
    assert len(list(pruned.parameters())) == len(list(model.layers_in_order()[0].parameters()))


@every
def test_gradient_checkpointing(name, images):
    model = make(name, drop_rate=0.5).train()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model(images).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@every
def test_groups_and_optimizer(name):
    model = make(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    order = [groups[p] for p in model.state_dict() if p.endswith('weight') and '.bn.' not in p]  # as they are called
    assert order == sorted(set(order)) and len(order) > 2
    optimizer = create_optimizer_v2(model, 'adamw', lr=1., weight_decay=0.1, layer_decay=0.5)
    assert sum(len(g['params']) for g in optimizer.param_groups) == len(list(model.parameters()))


@every
def test_round_trip(name, images, tmp_path):
    model = make(name, num_classes=7, drop_rate=0.5).eval()
    timm.models.save_for_hf(model, tmp_path)
    kwargs = {} if hasattr(timm.models, 'get_model_args') else NARROW.get(name, {})  # which timm 1.0.29 does not save
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **kwargs).eval()
    assert torch.equal(again(images), model(images))


@every
def test_device_and_dtype(name):
    model = make(name, dtype=torch.float64, device='meta')
    model.reset_classifier(3)
    assert all(p.is_meta and p.dtype == torch.float64 for p in model.parameters())


@every
def test_dropout_before_the_classifier(name, images):
    model = make(name, drop_rate=0.9)
    features = model.eval().forward_features(images)
    kept = model.forward_head(features, pre_logits=True)
    dropped = model.train().forward_head(features, pre_logits=True)
    assert (dropped == 0).sum() > 0.5 * kept.numel()
    if name in MNIST:
        assert torch.equal(kept, features.flatten(1))


@every
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_script_and_export(name, images):
    model = make(name).eval()
    expected = model(images)
    for exported in (torch.jit.script(model), torch.export.export(model, (images,)).module()):
        torch.testing.assert_close(exported(images), expected)


@mnist
def test_layers_of_the_paper(name, images):
    """The layers, written out with torch's functions."""
    model = make(name).eval()
    weights = dict(model.named_parameters())
    if name == 'mnist_cnn':
        assert weights['layer1.conv.weight'].shape == (32, 1, 9, 9)
        assert weights['layer2.conv.weight'].shape == (32, 32, 7, 7)
        x = images
        for i in (1, 2):
            x = torch.conv2d(x, weights[f'layer{i}.conv.weight'], weights[f'layer{i}.conv.bias'])
            x = torch.max_pool2d(x.relu(), 2)
    else:
        x = images.flatten(1)
        for i in (1, 2):
            x = torch.addmm(weights[f'layer{i}.conv.bias'], x, weights[f'layer{i}.conv.weight'].flatten(1).T).relu()
    expected = torch.addmm(model.fc.bias, x.flatten(1), model.fc.weight.T)
    torch.testing.assert_close(model(images), expected)
    grads = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (model(images), expected)]
    torch.testing.assert_close(*grads)
    assert isinstance(model, timm_stn.nets.MnistNet)


def test_layers_of_the_paper_for_sequences():
    """Of 32.8 million parameters, and of 61.1 million for 128 x 128 pixels; written out with torch's functions."""
    counts = [sum(p.numel() for p in timm.create_model('svhn_cnn', img_size=size, device='meta').parameters())
              for size in (64, 128)]
    assert counts == [32_820_951, 61_132_503]
    model = timm.create_model('svhn_cnn', width=0.25).eval()
    x, images = [rand(2, 3, 64, 64)] * 2
    weights, channels, after_pool = dict(model.named_parameters()), [], []
    for i in range(8):
        weight, bias = weights[f'layers.{i}.conv.weight'], weights[f'layers.{i}.conv.bias']
        channels.append(4 * len(weight))
        assert weight.shape[2:] == (5, 5)
        x = torch.conv2d(x, weight, bias, padding=2).relu()
        if i in (0, 2, 4, 6):
            x = torch.max_pool2d(x, 2)
            after_pool.append(x.shape[-1])
    assert channels == [48, 64, 128, 160, 192, 192, 192, 192] and after_pool == [32, 16, 8, 4]
    x = x.flatten(1)
    for i in (1, 2, 3):
        assert len(weights[f'hidden.fc{i}.bias']) == 3072 / 4
        x = torch.addmm(weights[f'hidden.fc{i}.bias'], x, weights[f'hidden.fc{i}.weight'].T).relu()
    each = [torch.addmm(bias, x, weight.T)
            for bias, weight in zip(model.fc.bias.split(11), model.fc.weight.split(11), strict=True)]
    torch.testing.assert_close(model(images).unflatten(1, (5, 11)), torch.stack(each, dim=1))


def test_dropout_of_each_layer_but_the_first_two():
    """As the paper says of what the layers give: of all but the first convolution."""
    model = timm.create_model('svhn_cnn', width=0.1)
    rates = [[m.p for m in layer.modules() if isinstance(m, torch.nn.Dropout)] for layer in model.layers_in_order()]
    assert rates == [[], []] + 6 * [[0.5]]
    assert [m.p for m in model.hidden if isinstance(m, torch.nn.Dropout)] == [0.5] * 3 and model.drop_rate == 0.5
    plain = timm.create_model('svhn_cnn', width=0.1, drop_rate=0)
    assert plain.state_dict().keys() == model.state_dict().keys()
    images = rand(2, 3, 64, 64)
    assert torch.equal(plain.train()(images), plain.eval()(images))


def test_it_starts_with_a_signal():
    """Of eleven layers, which PyTorch's default weights would lose: 2e-6."""
    torch.manual_seed(0)
    model = timm.create_model('svhn_cnn', width=0.25).eval()
    logits = model(rand(8, 3, 64, 64) * torch.linspace(0, 1, 8)[:, None, None, None])
    assert 0.01 < logits.std(dim=0).mean() < 10
    logits.square().mean().backward()
    norms = [layer.conv.weight.grad.norm() for layer in model.layers]
    assert min(norms) > 0.01 * max(norms)


def test_a_width_that_is_none():
    for width in (0, -1, float('nan'), float('inf'), '2'):
        with pytest.raises(ValueError, match=f'width must be a number above 0, got {width!r}'):
            timm.create_model('svhn_cnn', width=width)


def test_a_pruned_network_takes_a_new_classifier():
    model = timm.create_model('svhn_cnn', width=0.1)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    model.reset_classifier(7, 'flatten')
    assert model(rand(2, 3, 64, 64)).shape == (2, 7) and model.head_hidden_size == 13 * 16 * 16


PAPER = {
    'single': dict(stn_stages='input', stn_localization='conv:channels=32,hidden=32,depth=2'),
    'multi': dict(stn_stages=('input', 0, 1, 2), stn_localization='fc:hidden=32,depth=2'),
}


@pytest.mark.parametrize('kind', PAPER)
@pytest.mark.parametrize('size', [64, 128])
def test_transformers_of_the_paper(kind, size):
    """Before each of the first four convolutions; with them the network starts as it is without."""
    kwargs = dict(width=0.1, img_size=size)
    torch.manual_seed(0)
    model = timm.create_model('stn_svhn_cnn', **kwargs, **PAPER[kind])
    plain = timm.create_model('svhn_cnn', **kwargs)
    plain.load_state_dict(model.backbone.state_dict(), strict=False)
    seen = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ('SpatialTransformer', 'StageTransformer'):
            module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args[0].shape[1:]}))
    images = rand(2, 3, size, size)
    torch.testing.assert_close(model.eval()(images), plain.eval()(images), rtol=0, atol=1e-4)
    half = size // 2
    shapes = [(3, size, size), (5, half, half), (6, half, half), (13, half // 2, half // 2)]
    assert list(seen.values()) == (shapes if kind == 'multi' else shapes[:1])
    out = model.train()(images)
    out.square().mean().backward()
    assert out.shape == (2, 55)
    thetas = [p for n, p in model.named_parameters() if 'regression' in n]
    assert len(thetas) >= len(seen) and all(p.grad is not None for p in thetas)


def test_layers_of_the_network_for_signs():
    """1.34 million parameters; written out with torch's functions, in training and in evaluation."""
    assert sum(p.numel() for p in timm.create_model('signs_cnn', device='meta').parameters()) == 1_341_643
    model, images = make('signs_cnn', drop_rate=0.), rand(4, 3, 32, 32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False):
        x = images - images.mean((1, 2, 3), keepdim=True)
        x = x / (x.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        for i in range(7):
            weight = state[f'layers.{i}.conv.weight']
            x = torch.conv2d(x, weight, padding=weight.shape[-1] // 2)
            x = torch.max_pool2d(x, 2) if i in (0, 2, 4) else x
            bn = [state[f'layers.{i}.bn.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias')]
            x = torch.nn.functional.batch_norm(x, *bn, training=training).relu()
        expected = torch.addmm(state['fc.bias'], x.flatten(1), state['fc.weight'].T)
        torch.testing.assert_close(model.train(training)(images), expected, rtol=1e-4, atol=1e-5)
    for argument, what in (('width', 'a number'), ('grid', 'an integer')):
        with pytest.raises(ValueError, match=f'{argument} must be {what} above 0, got 0'):
            make('signs_cnn', **{argument: 0})


def test_the_network_for_signs_takes_the_largest_of_a_larger_map():
    model, images = make('signs_cnn', grid=2).eval(), rand(2, 3, 64, 96)
    features = model.forward_features(images)
    largest = features.unflatten(2, (2, 4)).unflatten(4, (2, 6)).amax((3, 5))
    torch.testing.assert_close(model(images), model.fc(largest.flatten(1)))


def test_brightness_and_contrast_do_not_matter_to_the_network_for_signs():
    model, images = make('signs_cnn').eval(), rand(2, 3, 32, 32)
    torch.testing.assert_close(model(0.3 * images + 0.5), model(images), rtol=0, atol=2e-3)
