"""Transforms and settings x exporters: what leaves Python computes what eager mode does, for any number of images.

Every case is a module that looks somewhere else than at the identity. `docs/export.md` has the matrix; this writes it:

    TIMM_STN_EXPORT_TABLE=docs/export.md python -m pytest tests/test_export.py
"""
import importlib.util
import os
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import timm_stn
from timm_stn.modules.regression import ThetaRegression

DOCS = Path(__file__).parents[1] / 'docs' / 'export.md'
TABLE = os.environ.get('TIMM_STN_EXPORT_TABLE')
BATCHES = (2, 5, 1)  # the first is the one that programs are made with

# Of the largest output. Pixels are noise of unit variance, so that a coordinate that is off by e pixels shows as a
# difference of about e. Compilers and ONNX Runtime sum in another order than eager mode: coordinates differ by some
# 1e-6 of the image's extent, 1e-5 pixels here, a few times that over iterations; 1e-3 leaves room for other processors.
# The identity in place of theta is off by 20 times as much or more, which `test_cases_look_elsewhere` holds.
TOLERANCE = 1e-3
# The nearest pixel is a step function: where a coordinate lies within rounding of a step, one pixel in 500 may differ.
STEPS = 0.002


class Look(nn.Module):
    """One transformer, seen from outside: what it sees, and where."""

    def __init__(self, stn):
        super().__init__()
        self.stn = stn

    def forward(self, x):
        return self.stn.look(x)


def one(input_size=(20, 24), chans=3, **settings):
    return lambda: (Look(timm_stn.SpatialTransformer(chans, input_size, **settings)), (chans, *input_size))


def net(name='stn_test_resnet', size=48, **settings):
    return lambda: (timm.create_model(name, num_classes=5, **settings), (3, size, size))


SWIN = dict(img_size=64, window_size=4, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
FAMILIES = (
    'translation', 'rotation', 'attention', 'scale_translation', 'similarity', 'affine', 'projective', 'tps',
    'diffeomorphic', 'zoom', 'affine+projective', 'similarity+tps', 'tps+affine', 'zoom+rotation')
SAMPLINGS = [(m, p) for m in ('bilinear', 'bicubic', 'nearest') for p in ('border', 'zeros', 'reflection', 'fill')]
CASES = {
    **{f'`{name}`': one(transform=name, size=(16, 12)) for name in FAMILIES},
    '`affine3d`, volumes': one((6, 10, 8), transform='affine3d'),
    '`affine3d`, volumes, shrunk for the localization': one((6, 18, 17), transform='affine3d', localization='linear'),
    **{
        f'{mode}, {padding}': one(mode=mode, padding_mode=padding, fill=[0.1, 0.2, 0.3] if padding == 'fill' else None)
        for mode, padding in SAMPLINGS
    },
    'volumes, nearest, zeros': one((6, 10, 8), transform='affine3d', mode='nearest', padding_mode='zeros'),
    'anti-aliased bilinear': one(antialias=True, size=(8, 9)),
    'anti-aliased bicubic': one(antialias=True, size=(8, 9), mode='bicubic'),
    'localization `fc`': one(localization='fc'),
    'localization `linear`': one(localization='linear'),
    'localization `moments`': one(localization='moments'),
    'localization `timm:test_vit`': one(localization='timm:test_vit'),
    '2 bounded glimpses': one(glimpses=2, scale=0.5, size=(12, 10)),
    '2 bounded `projective` glimpses': one(glimpses=2, scale=0.5, size=(12, 10), transform='projective'),
    '2 `tps` glimpses': one(glimpses=2, scale=0.5, size=(12, 10), transform='tps'),
    '3 iterations': one(iterations=3),
    '2 iterations of `tps`': one(iterations=2, transform='tps'),
    'network, input': net(),
    'network, input and stages (NCHW)': net(stn_stages=('input', 1, 'layer3')),
    'network, stage (NHWC)': net('stn_swin_tiny_patch4_window7_224', 64, stn_stages=(0, 1), **SWIN),
    'network, stage (tokens)': net('stn_test_vit', 64, img_size=64, stn_stages=(0,)),
    'network, `shared:1`': net(stn_localization='shared:1'),
    "network, `stn_target='input'`": net(stn_target='input', stn_stages=(1,)),
    "network, `stn_target='input'`, 2 iterations": net(stn_target='input', stn_stages=(1,), stn_iterations=2),
    'network, 2 glimpses, 2 towers': net(
        size=64, img_size=64, stn_size=32, stn_glimpses=2, stn_scale=0.5, stn_towers='separate',
        stn_localization='conv'),
    'network, 2 glimpses and the whole, `shared:1`': net(
        size=64, img_size=64, stn_size=32, stn_glimpses=2, stn_scale=0.5, stn_whole=True, stn_localization='shared:1'),
    'network, 2 glimpses of two scales, `saliency:1`': net(
        size=64, img_size=64, stn_size=32, stn_glimpses=2, stn_scale=[0.2, 0.5], stn_localization='saliency:1'),
    'network, `zoom`, `saliency:1`': net(size=64, img_size=64, stn_size=32, stn_transform='zoom',
                                         stn_localization='saliency:1'),
    'network, 2 looks at 2 places, `saliency:1`': net(
        size=64, img_size=64, stn_size=32, stn_glimpses=2, stn_scale=[0.2, 0.5], stn_localization='saliency:1',
        stn_iterations=2),
    'network, `orbit:4`': net(stn_localization='orbit:4'),
    'network, penalty': net(stn_penalty=1.0),
}
FAST_CASES = {
    *(f'`{name}`' for name in FAMILIES if name != 'diffeomorphic'), '`affine3d`, volumes', 'bicubic, fill',
    'nearest, zeros', 'anti-aliased bilinear', '2 bounded glimpses', '3 iterations', 'network, stage (tokens)',
    'network, `shared:1`', "network, `stn_target='input'`",
}


def compiled(backend):
    def export(model, x, path):
        torch.compiler.reset()
        return torch.compile(model, backend=backend, fullgraph=True)
    return export


def exported(model, x, path):
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch', max=1024)},)).module()


def traced(model, x, path):
    return torch.jit.trace(model, x, check_trace=False)


def onnx(opset, dynamo=True):
    def export(model, x, path):
        import onnx
        import onnxruntime
        batch = {0: torch.export.Dim('batch', max=1024)} if dynamo else {0: 'batch'}
        shapes = dict(dynamic_shapes=(batch,)) if dynamo else dict(dynamic_axes={'x': batch})
        file = str(path / 'model.onnx')
        torch.onnx.export(model, (x,), file, opset_version=opset, input_names=['x'], dynamo=dynamo, **shapes)
        onnx.checker.check_model(file, full_check=True)
        assert {o.domain: o.version for o in onnx.load(file).opset_import}[''] == opset
        session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {'x': x.numpy()})]
    return export


def openvino(model, x, path):
    import openvino
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch', max=1024)},))
    run = openvino.compile_model(openvino.convert_model(program), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda x: [torch.from_numpy(y.copy()) for y in run(x.numpy()).values()]


def core_ml(model, x, path):
    """Converted only: it runs on a Mac."""
    import coremltools
    coremltools.convert(
        traced(model, x, path), inputs=[coremltools.TensorType(name='x', shape=tuple(x.shape))], skip_model_load=True,
        convert_to='mlprogram', minimum_deployment_target=coremltools.target.iOS17)


EXPORTERS = {
    'compile, eager': compiled('eager'),
    'compile, aot_eager': compiled('aot_eager'),
    'compile, inductor': compiled('inductor'),
    'torch.export': exported,
    'jit.trace': traced,
    'ONNX 18': onnx(18),
    'ONNX 20': onnx(20),
    'ONNX 16, TorchScript': onnx(16, dynamo=False),
    'OpenVINO': openvino,
    'Core ML': core_ml,
}
FAST_EXPORTERS = {'compile, aot_eager', 'torch.export', 'jit.trace'}
VOLUMES = [case for case in CASES if 'volumes' in case]
# (case, exporter) -> what the error says
GAPS = {
    **{(case, 'ONNX 16, TorchScript'): 'GridSample with 5D' for case in VOLUMES if 'nearest' not in case},
    **{(case, 'OpenVINO'): 'grid_sampler_3d' for case in VOLUMES if 'nearest' not in case},
    **{(case, 'OpenVINO'): '_upsample_bicubic2d_aa' for case in CASES if 'timm:test_vit' in case or 'tokens' in case},
    **{(case, 'Core ML'): 'rank' for case in VOLUMES},
    **{(case, 'Core ML'): r'np.int32\(2\)' for case in CASES if 'bicubic' in case},
}
RESULTS = {}


def build(case, move=True):
    """A case's module in eval mode; its transformers' thetas spread by about 0.1, around another 0.1, over images."""
    torch.manual_seed(0)
    model, shape = CASES[case]()
    model.eval().requires_grad_(False)
    layers = [m for m in model.modules() if isinstance(m, ThetaRegression)] if move else []
    handles = {layer: layer.register_forward_pre_hook(spread) for layer in layers}
    if move:
        model(images(8, shape))
    for handle in handles.values():
        handle.remove()
    return model, shape


def spread(layer, args):
    """Weights by which the parameters that are about to be regressed differ from image to image."""
    if layer.weight.any():
        return  # in an earlier iteration
    h, = args
    generator = torch.Generator().manual_seed(layer.in_features)
    weight = torch.randn(layer.weight.shape, generator=generator)
    weight = weight * 0.1 / (h @ weight.T).std(0).unsqueeze(1)
    bias = 0.1 * torch.randn(layer.bias.shape, generator=generator) - weight @ h.mean(0)
    layer.weight.copy_(weight * layer.in_features / layer.lr_scale)
    layer.bias.copy_(bias / layer.lr_scale)


def images(n, shape):
    """Noise, in a colour of its own for each image."""
    generator = torch.Generator().manual_seed(n)
    colors = torch.randn(n, shape[0], *[1] * len(shape[1:]), generator=generator)
    return torch.randn(n, *shape, generator=generator) + colors


def outputs(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def share_off(found, expected):
    """The largest share of values, over the outputs, that are not as expected."""
    found, expected = outputs(found), outputs(expected)
    assert [f.shape for f in found] == [e.shape for e in expected]
    return max(
        ((f - e).abs() > TOLERANCE * e.abs().max()).float().mean().item()
        for f, e in zip(found, expected))


def check(program, case, batches):
    model, shape = build(case)
    for n in batches:
        x = images(n, shape)
        assert share_off(program(x), model(x)) <= (STEPS if 'nearest' in case else 0), f'{n} images'


def params():
    found = []
    for exporter in EXPORTERS:
        for case in CASES:
            fast = exporter in FAST_EXPORTERS and case in FAST_CASES
            found.append(pytest.param(case, exporter, marks=[] if fast else [pytest.mark.slow]))
    return found


def skip_what_is_missing(exporter):
    onnx = dict.fromkeys(('onnx', 'onnxscript', 'onnxruntime'), '"timm-stn[export]"')
    needed = {'OpenVINO': {'openvino': 'openvino'}, 'Core ML': {'coremltools': 'coremltools "numpy<2.4"'}}
    for name, package in needed.get(exporter, onnx if exporter.startswith('ONNX') else {}).items():
        if not importlib.util.find_spec(name):
            pytest.skip(f'{name} is not installed: pip install {package}')
    if 'inductor' in exporter and not shutil.which('c++') and not shutil.which('g++'):
        pytest.skip('inductor needs a C++ compiler')


@pytest.mark.filterwarnings('ignore')  # the exporters' own deprecations, and the tracer's notes on shapes
@pytest.mark.parametrize('case, exporter', params())
def test_exported_is_eager(case, exporter, tmp_path):
    skip_what_is_missing(exporter)
    model, shape = build(case)
    x = images(BATCHES[0], shape)
    words = GAPS.get((case, exporter))
    if words:
        with pytest.raises(Exception, match=words):
            EXPORTERS[exporter](model, x, tmp_path)
    else:
        program = EXPORTERS[exporter](model, x, tmp_path)
        if program is not None:
            check(program, case, BATCHES[:1] if 'compile' in exporter else BATCHES)
    RESULTS[case, exporter] = 'no' if words else 'yes'


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('dynamo', [False, True])
def test_timms_own_onnx_export(dynamo, tmp_path):
    """What timm's onnx_export.py calls; it compares outputs itself, for the images that the program is made with."""
    skip_what_is_missing('ONNX')
    import onnxruntime
    from timm.utils.onnx import onnx_export
    case = 'network, input and stages (NCHW)'
    model, shape = build(case)
    file = str(tmp_path / 'model.onnx')
    onnx_export(model, file, input_size=shape, batch_size=2, opset=18, use_dynamo=dynamo, check_forward=True)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    check(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), case, BATCHES)


@pytest.mark.parametrize('case', [c for c in CASES if 'orbit' not in c])  # which regresses nothing
def test_cases_look_elsewhere(case):
    """A program that forgot theta, or took that of another image, would not pass."""
    model, shape = build(case)
    still, _ = build(case, move=False)
    x = images(8, shape)
    seen, unmoved = outputs(model(x))[0], outputs(still(x))[0]
    moved = (seen - unmoved).abs().flatten(1).amax(1).median()
    assert moved > 20 * TOLERANCE * seen.abs().max()
    thetas = [m.last_theta for m in model.modules() if getattr(m, 'last_theta', None) is not None]
    thetas = thetas or [outputs(model(x))[1]]
    assert all(theta.flatten(1).std(0).max() > 20 * TOLERANCE for theta in thetas)


@pytest.mark.parametrize('case', CASES)
def test_safetensors(case, tmp_path):
    model, shape = build(case)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    other, _ = build(case, move=False)
    other.load_state_dict(load_file(tmp_path / 'model.safetensors'))
    x = images(2, shape)
    assert all(torch.equal(a, b) for a, b in zip(outputs(other(x)), outputs(model(x))))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_docs_example_runs(tmp_path, monkeypatch):
    skip_what_is_missing('ONNX')
    monkeypatch.chdir(tmp_path)
    code, = re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)
    scope = {}
    exec(compile(code, DOCS.name, 'exec'), scope)
    expected = scope['model'](scope['images'])
    for program in (scope['program'].module(), scope['traced']):
        torch.testing.assert_close(program(scope['images']), expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / 'model.onnx').stat().st_size > 0


# the table


def cell(case, exporter):
    return 'no' if (case, exporter) in GAPS else 'yes'


def table(cell):
    lines = ['| | ' + ' | '.join(EXPORTERS) + ' |', '| --- |' + ' :-: |' * len(EXPORTERS)]
    lines += [f'| {case} | ' + ' | '.join(cell(case, exporter) for exporter in EXPORTERS) + ' |' for case in CASES]
    return '\n'.join(lines)


def test_docs_have_the_table():
    """Or, with `TIMM_STN_EXPORT_TABLE` set, write into that file what this run has found."""
    if TABLE:
        missing = [f'{c} x {e}' for c in CASES for e in EXPORTERS if (c, e) not in RESULTS]
        assert not missing, f'the table needs all of this file in one process; not run or failed: {missing}'
        text = Path(TABLE).read_text()
        start, end = '<!-- table -->\n', '<!-- end of table -->'
        before, after = text[:text.index(start) + len(start)], text[text.index(end):]
        beside = Path(TABLE + '.part')
        beside.write_text(before + table(lambda *key: RESULTS[key]) + '\n' + after)
        beside.replace(TABLE)
    assert table(cell) in DOCS.read_text(), f'the table of {DOCS.name} is not that of the cases'
