"""Programs hold common operators only: those that the converters of OpenVINO and Core ML know (`test_export.py` runs
them where they are installed).
"""
import pytest
import torch
from test_export import CASES, build, images

NAMES = '''
    _assert_tensor_metadata _convolution _to_copy _unsafe_view abs add alias all amax arange cat clamp clamp_min clone
    conv2d conv3d cos detach div expand eye flatten floor gather ge grid_sampler gt index le lift_fresh_copy linear log
    log1p log2 logical_and lt matmul max_pool2d max_pool3d maximum mean meshgrid minimum mul neg new_full new_zeros
    numpy_T ones_like permute pow relu remainder repeat reshape rsqrt rsub select sin slice split_with_sizes sqrt square
    squeeze stack sub sum tanh to transpose type_as unbind unsqueeze view where zeros_like
    '''
COMMON = set(NAMES.split())
NUMBERS = {'Int', 'ScalarImplicit', 'getitem', 'mul', 'size', 'sym_size'}  # of shapes, not of tensors
ALL = [case for case in CASES if 'timm:' not in case and not case.startswith('network')]  # the rest has timm's own
FAST = ['`diffeomorphic`', '`affine3d`, volumes, shrunk for the localization', 'nearest, zeros',
        'anti-aliased bilinear', '2 bounded `projective` glimpses', '3 iterations']


def traced(model, x):
    graph = torch.jit.trace(model, x, check_trace=False).inlined_graph
    return {node.kind().removeprefix('aten::') for node in graph.nodes() if node.kind().startswith('aten::')}


def exported(model, x):
    batch = {0: torch.export.Dim('batch', max=1024)}
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=False).run_decompositions({})
    targets = [node.target for node in program.graph.nodes if node.op == 'call_function']
    return {target.__name__.split('.')[0] for target in targets}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('operators', [traced, exported])
@pytest.mark.parametrize('case', [pytest.param(c, marks=[] if c in FAST else [pytest.mark.slow]) for c in ALL])
def test_operators_are_common(case, operators):
    model, shape = build(case)
    found = operators(model, images(2, shape)) - NUMBERS
    assert 'grid_sampler' in found or 'nearest' in case
    assert not found - COMMON


LAST = [((2, 3, 20, 24), torch.channels_last), ((2, 3, 4, 6, 5), torch.channels_last_3d)]


@pytest.mark.parametrize('shape, last', LAST)
@pytest.mark.filterwarnings('ignore')
def test_operators_are_common_for_channels_last(shape, last):
    case = '`affine`' if len(shape) == 4 else '`affine3d`, volumes'
    model, _ = build(case)
    for operators in (traced, exported):
        assert not operators(model, images(2, shape[1:]).to(memory_format=last)) - NUMBERS - COMMON - {'contiguous'}
