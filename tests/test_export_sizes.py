"""Exported programs at other sizes than the one that they were made with: nothing that was equal then is taken for
equal later. They are made where most is: at the size that the localization network sees.
"""
import pytest
import torch
from test_export import BATCHES, CASES, STEPS, build, images, share_off, skip_what_is_missing

from timm_stn.modules.localization import Localization

SMALL = ['`affine`', '`projective`', '`tps`', 'nearest, zeros', 'localization `linear`', 'localization `moments`',
         '2 bounded glimpses', '3 iterations', '`affine3d`, volumes, shrunk for the localization']
NETWORKS = ['network, input', 'network, input and stages (NCHW)', 'network, `shared:1`',
            "network, `stn_target='input'`", 'network, 2 glimpses and the whole, `shared:1`',
            'network, 2 glimpses of two scales, `saliency:1`']
ANTIALIASED = ['anti-aliased bilinear', 'anti-aliased bicubic']


def own_size(model, case, shape):
    """That of the localization network, of the input if there are several; images of it must be large enough."""
    size = next((m.size for m in model.modules() if isinstance(m, Localization) and m.size), shape[1:])
    return size if case in SMALL + ANTIALIASED or (min(size) >= 32 and all(n % 16 == 0 for n in size)) else shape[1:]


def others(case, size):
    if case in NETWORKS:
        return [(64, 64), (48, 80), (96, 64)]
    return [tuple(2 * n + 3 for n in size), tuple(n + 1 for n in size), tuple(n + 9 for n in reversed(size))]


def free(case, size):
    """All but the channels; timm's backbone wants multiples."""
    names = ['side0', 'side1', 'side2'][:len(size)]
    multiple = 16 if case in NETWORKS else 1
    dims = [torch.export.Dim(name, min=3, max=64) for name in names]
    return {0: torch.export.Dim('batch', max=1024), **{i: multiple * dim for i, dim in enumerate(dims, 2)}}


def exported(model, x, shapes, path, strict=False):
    return torch.export.export(model, (x,), dynamic_shapes=(shapes,), strict=strict).module()


def strictly_exported(model, x, shapes, path):
    return exported(model, x, shapes, path, strict=True)


def traced(model, x, shapes, path):
    return torch.jit.trace(model, x, check_trace=False)


def onnx(opset, dynamo):
    def export(model, x, shapes, path):
        import onnxruntime
        names = {axis: f'n{axis}' for axis in shapes}
        free = dict(dynamic_shapes=(shapes,)) if dynamo else dict(dynamic_axes={'x': names})
        file = str(path / 'model.onnx')
        torch.onnx.export(model, (x,), file, opset_version=opset, input_names=['x'], dynamo=dynamo, **free)
        session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {'x': x.numpy()})]
    return export


EXPORTERS = {
    'torch.export': exported, 'torch.export, strict': strictly_exported, 'jit.trace': traced,
    'ONNX 18': onnx(18, True), 'ONNX 16, TorchScript': onnx(16, False),
}
FAST = [(case, exporter) for case in ('`affine`', '3 iterations', '2 bounded glimpses', 'network, `shared:1`')
        for exporter in ('torch.export', 'jit.trace')]
LACKING = [('torch.export, strict', "network, `stn_target='input'`"), ('ONNX 16, TorchScript', SMALL[-1])]


def params():
    pairs = [(case, exporter) for exporter in EXPORTERS for case in SMALL + NETWORKS if (exporter, case) not in LACKING]
    return [pytest.param(*pair, marks=[] if pair in FAST else [pytest.mark.slow]) for pair in pairs]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case, exporter', params())
def test_made_at_the_localizations_own_size(case, exporter, tmp_path):
    skip_what_is_missing(exporter)
    model, (chans, *usual) = build(case)
    size = own_size(model, case, (chans, *usual))
    program = EXPORTERS[exporter](model, images(BATCHES[0], (chans, *size)), free(case, size), tmp_path)
    for other in [size, *others(case, size), tuple(usual)]:
        x = images(3, (chans, *other))
        assert share_off(program(x), model(x)) <= (STEPS if 'nearest' in case else 0), other


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('exporter', [
    'torch.export', *[pytest.param(name, marks=pytest.mark.slow) for name in ('torch.export, strict', 'ONNX 18')]])
@pytest.mark.parametrize('case', ANTIALIASED)
def test_pyramids_are_of_one_size(case, exporter, tmp_path):
    skip_what_is_missing(exporter)
    if 'strict' in exporter and not hasattr(torch.compiler, 'is_exporting'):
        pytest.skip('this torch cannot tell export from compilation')
    model, shape = build(case)
    with pytest.raises(Exception, match='antialias=True|strict=False'):
        EXPORTERS[exporter](model, images(2, shape), free(case, shape[1:]), tmp_path)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', ANTIALIASED)
def test_traced_pyramids_refuse_other_sizes(case):
    model, shape = build(case)
    program = torch.jit.trace(model, images(2, shape), check_trace=False)
    assert share_off(program(images(5, shape)), model(images(5, shape))) == 0
    for other in others(case, shape[1:]):
        with pytest.raises(RuntimeError, match='must match the existing size'):
            program(images(2, (shape[0], *other)))


def test_cases_are_there():
    assert set(SMALL + NETWORKS + ANTIALIASED) <= set(CASES)
