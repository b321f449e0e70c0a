"""The fused kernels against float64 on the CPU: on a GPU, else in Triton's interpreter, in a process of its own."""
import copy
import inspect
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_stn.geometry import reading
from timm_stn.geometry.functional import unwarp, warp
from timm_stn.geometry.kernels.fused import INTERPRETED, why_not
from timm_stn.geometry.operator import warp_operator
from timm_stn.geometry.transforms import invert_matrix
from timm_stn.modules.spatial_transformer import SpatialTransformer

CUDA = torch.cuda.is_available()
DEVICE = 'cuda' if CUDA else 'cpu'
PADDINGS = {'zeros': 0, 'border': 1, 'reflection': 2, 'fill': 0}
PAD = {'zeros': 'constant', 'border': 'edge', 'reflection': 'symmetric', 'fill': 'constant'}  # as numpy names them

runs = pytest.mark.skipif(not (CUDA or INTERPRETED), reason='needs a GPU, or TRITON_INTERPRET=1')
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def used():
    """Nothing here would fail if the kernels were not used."""
    if CUDA or INTERPRETED:
        assert why_not(torch.device(DEVICE, 0) if CUDA else torch.device('cpu')) == ''


@pytest.mark.skipif(CUDA or INTERPRETED, reason='the tests run as they are')
def test_all_in_the_interpreter():
    triton = pytest.importorskip('triton')
    env = dict(os.environ, TRITON_INTERPRET='1', OMP_NUM_THREADS='1')
    code = '''import torch, triton, triton.language as tl
@triton.jit
def kernel(out, n):
    for i in range(0, tl.minimum(n, 3)):
        tl.store(out + i, 1.0)
kernel[(1,)](torch.zeros(4), 3)'''
    with tempfile.NamedTemporaryFile('w', suffix='.py') as file:  # triton reads the source
        file.write(code)
        file.flush()
        probe = subprocess.run([sys.executable, file.name], env=env, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f'the interpreter of triton {triton.__version__} does not run here: {probe.stderr[-200:]}')
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r'(\d+) passed', done.stdout)
    assert passed and int(passed[1]) > 40, done.stdout[-2000:]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_of(kind, count, size, seed=1, spread=0.2):
    """Generic matrices or grids, float32, beyond the image here and there."""
    if kind == 'grid':
        return 1.3 * randn(count, *size, 2, seed=seed)
    rows = {'affine': 2, 'projective': 3}[kind]
    at = torch.eye(rows, 3) + spread * randn(count, rows, 3, seed=seed)
    if rows == 3:
        at[:, 2] = torch.tensor([0.15, -0.1, 1.0]) + 0.05 * randn(count, 3, seed=seed + 1)
    return at


def reference(image, at, size, padding_mode, fill=None):
    """By torch's kernel, in the precision of what is given: no code of ours but how images belong to outputs."""
    if at.ndim == 4:
        grid = at
    elif at.shape[1] == 2:
        grid = F.affine_grid(at, [len(at), 1, *size], align_corners=False)
    else:
        y, x = ((torch.arange(n, dtype=at.dtype) * 2 + 1) / n - 1 for n in size)
        points = torch.stack([*torch.meshgrid(x, y, indexing='xy'), torch.ones(len(y), len(x)).to(at)], 2)
        mapped = torch.einsum('mij,yxj->myxi', at, points)
        grid = mapped[..., :2] / mapped[..., 2:]
    image = image.repeat_interleave(len(at) // len(image), 0)
    if padding_mode != 'fill':
        return F.grid_sample(image, grid, 'bilinear', padding_mode, align_corners=False)
    color = fill.to(image).reshape(-1, 1, 1)
    return F.grid_sample(image - color, grid, 'bilinear', 'zeros', align_corners=False) + color


def evaluate(function, image, at, device=DEVICE):
    """Values, gradient to the image and to the matrices."""
    image, at = (x.detach().to(device).requires_grad_() for x in (image, at))
    values = function(image, at)
    upstream = randn(*values.shape, seed=9).bfloat16().to(values)
    return values.detach(), *torch.autograd.grad(values, (image, at), upstream)


def check(image, at, size, padding_mode='border', tolerance=2e-5):
    fill = randn(image.shape[1], seed=4) if padding_mode == 'fill' else None
    fills = fill if fill is None else fill.to(DEVICE)
    found = evaluate(lambda x, a: warp_operator(x, a, size, PADDINGS[padding_mode], fills), image, at)
    expected = evaluate(lambda x, a: reference(x, a, size, padding_mode, fill), image.double(), at.double(), 'cpu')
    assert found[0].dtype == found[1].dtype == image.dtype and found[2].dtype == torch.float32
    share = 1.01 if INTERPRETED and image.dtype == torch.bfloat16 else 0.51  # the interpreter cuts bits off
    rounding = share * torch.finfo(image.dtype).eps if image.dtype != torch.float32 else 0
    for name, a, b, more in zip(('values', 'image', 'theta'), found, expected, (rounding, rounding, 0)):
        assert a.shape == b.shape
        error = float((a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1e-30))
        assert error <= tolerance + more, f'{name}: {error:.1e} of the largest'
    return found


KINDS = ['affine', 'projective', 'grid']


@runs
@pytest.mark.parametrize('padding_mode', PADDINGS)
@pytest.mark.parametrize('kind', KINDS)
def test_values_and_gradients(kind, padding_mode):
    check(randn(2, 3, 7, 9), at_of(kind, 2, (5, 11)), (5, 11), padding_mode)


@runs
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_read_as_it_is(dtype, kind):
    """One rounding, of the result, is all the error; 300 columns are more than bfloat16 can tell apart."""
    image = randn(1, 2, 3, 300).cumsum(3).to(dtype)
    check(image, at_of(kind, 1, (2, 40), spread=0.05), (2, 40), 'border')


@runs
@pytest.mark.parametrize('channels, padding_mode', [(3, 'fill'), (5, 'border'), (20, 'reflection'), (37, 'zeros')])
def test_channels_last(channels, padding_mode):
    image = randn(2, channels, 5, 6).contiguous(memory_format=torch.channels_last)
    values, gradient, _ = check(image, at_of('affine', 2, (4, 7)), (4, 7), padding_mode)
    for x in (values, gradient):
        assert x.is_contiguous(memory_format=torch.channels_last)


@runs
@pytest.mark.parametrize('layout', [
    lambda x: x.transpose(2, 3), lambda x: x[:, :, ::2, 1::2], lambda x: x[:, :1].expand(-1, 3, -1, -1),
], ids=['transposed', 'strided', 'expanded'])
def test_not_contiguous(layout):
    image, at = randn(2, 3, 8, 7), at_of('affine', 2, (4, 5))
    found = evaluate(lambda x, a: warp_operator(layout(x), a, (4, 5), 1), image, at)
    expected = evaluate(lambda x, a: reference(layout(x), a, (4, 5), 'border'), image.double(), at.double(), 'cpu')
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=2e-5)


@runs
@pytest.mark.parametrize('kind', KINDS)
def test_several_maps_of_one_image(kind):
    check(randn(3, 2, 6, 5), at_of(kind, 6, (4, 4)), (4, 4), 'zeros')


@runs
@pytest.mark.parametrize('size, out', [((1, 1), (4, 3)), ((5, 1), (1, 1)), ((6, 70), (3, 67)), ((40, 3), (35, 2))])
@pytest.mark.parametrize('padding_mode', ['border', 'reflection'])
def test_sizes_that_fit_no_tile(size, out, padding_mode):
    check(randn(1, 1, *size), at_of('affine', 1, out), out, padding_mode, 5e-5)


@runs
@pytest.mark.parametrize('kind', ['affine', 'grid'])
def test_channels_are_shared_by_programs(kind):
    check(randn(1, 150, 4, 4), at_of(kind, 1, (3, 3)), (3, 3), 'zeros')


@runs
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('channels, last', [(5, False), (16, True), (6, True)])
def test_programs_that_go_on(monkeypatch, kind, channels, last):
    """As on large images: one program for several tiles, and for several channels after one another."""
    from timm_stn.geometry.kernels.fused import launch
    monkeypatch.setattr(launch, 'PROGRAMS', 1)
    form = torch.channels_last if last else torch.contiguous_format
    image = randn(1, 2 * channels, 12, 9).contiguous(memory_format=form)
    check(image, at_of(kind, 1, (18, 35)), (18, 35), 'border', 5e-5)


@runs
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_size_and_matrix(data):
    side = st.integers(1, 6)
    size, out = (data.draw(side), data.draw(side)), (data.draw(side), data.draw(side))
    number = st.floats(-2.5, 2.5, width=32)
    at = torch.tensor([[data.draw(number) for _ in range(3)] for _ in range(2)])[None]
    padding_mode = data.draw(st.sampled_from(list(PADDINGS)))
    image = randn(1, 2, *size)
    fill = torch.tensor([0.5, -2.0]) if padding_mode == 'fill' else None
    values = warp_operator(image.to(DEVICE), at.to(DEVICE), out, PADDINGS[padding_mode],
                           fill if fill is None else fill.to(DEVICE))
    expected = reference(image.double(), at.double(), out, padding_mode, fill)
    torch.testing.assert_close(values.cpu().double(), expected, rtol=0, atol=1e-4)


# the identity, and kinks


def bits(x):
    return x.cpu().view({2: torch.int16, 4: torch.int32}[x.element_size()])


@runs
@pytest.mark.parametrize('padding_mode', PADDINGS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_identity_is_bit_for_bit(dtype, padding_mode):
    image = randn(2, 2, 7, 13).to(dtype)
    image[0, 0, 2, 3:6] = torch.tensor([math.inf, -0.0, -math.inf])
    image[1, 1, 6, 12] = math.inf
    fill = torch.tensor([3.0, 4.0], device=DEVICE) if padding_mode == 'fill' else None
    for at in (torch.eye(2, 3), torch.eye(3)):
        values = warp_operator(
            image.to(DEVICE), at.expand(2, -1, -1).to(DEVICE), (7, 13), PADDINGS[padding_mode], fill)
        assert torch.equal(bits(values), bits(image))


@runs
@pytest.mark.parametrize('padding_mode', PADDINGS)
def test_the_slope_at_a_kink_is_the_mean_of_both_sides(padding_mode):
    """All samples of the identity are on kinks: the central difference of the padded image."""
    numpy = pytest.importorskip('numpy')
    image, upstream = randn(1, 2, 5, 6), randn(1, 2, 5, 6, seed=3)
    fill = torch.tensor([0.5, -1.0]) if padding_mode == 'fill' else None
    at = torch.eye(2, 3)[None].to(DEVICE).requires_grad_()
    fills = fill if fill is None else fill.to(DEVICE)
    values = warp_operator(image.to(DEVICE), at, (5, 6), PADDINGS[padding_mode], fills)
    found, = torch.autograd.grad(values, at, upstream.to(DEVICE))
    padded = [numpy.pad(channel, 1, PAD[padding_mode], **(
        {'constant_values': 0 if fill is None else float(fill[c])} if PAD[padding_mode] == 'constant' else {}))
        for c, channel in enumerate(image[0].double().numpy())]
    padded = torch.from_numpy(numpy.stack(padded))
    along_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2 * 3  # half a width in pixels
    along_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2 * 2.5
    y, x = (torch.arange(5).double() * 2 + 1) / 5 - 1, (torch.arange(6).double() * 2 + 1) / 6 - 1
    points = torch.stack([x.expand(5, -1), y[:, None].expand(-1, 6), torch.ones(5, 6).double()])
    expected = torch.stack([torch.einsum('cyx,cyx,jyx->j', upstream[0].double(), along, points)
                            for along in (along_x, along_y)])
    torch.testing.assert_close(found[0].cpu().double(), expected, rtol=1e-5, atol=1e-5)


# what is out of the ordinary


@runs
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1.1e6])
@pytest.mark.parametrize('kind', ['affine', 'projective'])
def test_a_broken_matrix_is_the_identity(kind, value):
    image, at = randn(3, 2, 5, 6).to(DEVICE), at_of(kind, 3, (5, 6)).to(DEVICE)
    at[1].view(-1)[-1] = value
    at.requires_grad_()
    values = warp_operator(image, at, (5, 6), 1)
    gradient, = torch.autograd.grad(values, at, torch.ones_like(values))
    assert torch.equal(bits(values[1]), bits(image[1]))
    assert not gradient[1].any() and gradient[[0, 2]].any() and gradient.isfinite().all()


@runs
@pytest.mark.parametrize('padding_mode', PADDINGS)
@pytest.mark.parametrize('far', [3.0, 1e6])
def test_a_glimpse_wholly_outside(far, padding_mode):
    image = randn(1, 2, 5, 6).to(DEVICE).requires_grad_()
    at = torch.tensor([[[1.0, 0.0, far], [0.0, 1.0, -far]]], device=DEVICE).requires_grad_()
    fill = torch.tensor([0.5, -2.0], device=DEVICE) if padding_mode == 'fill' else None
    values = warp_operator(image, at, (4, 4), PADDINGS[padding_mode], fill)
    to_image, to_theta = torch.autograd.grad(values, (image, at), torch.ones_like(values))
    assert values.isfinite().all() and to_image.isfinite().all() and to_theta.isfinite().all()
    if padding_mode == 'reflection':
        assert bool((values >= image.min()).all() and (values <= image.max()).all())
        return
    expected = {'zeros': torch.zeros(2), 'border': image.detach()[0, :, 0, -1].cpu(), 'fill': torch.tensor([0.5, -2.0])}
    assert torch.equal(values.detach()[0].cpu(), expected[padding_mode][:, None, None].expand(-1, 4, 4))
    assert not to_theta.any() and float(to_image.sum()) == (32 if padding_mode == 'border' else 0)


@runs
@pytest.mark.parametrize('at', [
    [[1e6, 1e6, 1e6]] * 2, [[0, 0, 0]] * 2, [[1, 0, 0], [0, 1, 0], [1, 0, 0]],
    [[1e6, 1e6, 1e6], [-1e6, 0, 1e6], [0, 0, 0]],
])
@pytest.mark.parametrize('padding_mode', ['zeros', 'border', 'reflection'])
def test_extreme_matrices(at, padding_mode):
    at = torch.tensor([at], dtype=torch.float32)
    found = evaluate(lambda x, a: warp_operator(x, a, (3, 4), PADDINGS[padding_mode]), randn(1, 2, 5, 4), at)
    assert found[0].isfinite().all() and found[1].isfinite().all()


@runs
@pytest.mark.parametrize('n, channels', [(0, 3), (2, 0)])
@pytest.mark.parametrize('kind', KINDS)
def test_empty(kind, n, channels):
    at = at_of(kind, n, (4, 5))
    found = evaluate(lambda x, a: warp_operator(x, a, (4, 5), 1), torch.zeros(n, channels, 6, 7), at)
    assert found[0].shape == (n, channels, 4, 5) and found[1].shape == (n, channels, 6, 7)
    assert found[2].shape == at.shape and not found[2].any()


@runs
@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_repeatable_and_legal(kind):
    image, at = randn(2, 5, 9, 8), at_of(kind, 2, (9, 8)) * 0.5
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (evaluate(lambda x, a: warp_operator(x, a, (9, 8), 1), image, at) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second))


# behind the functions and the module


@runs
@pytest.mark.parametrize('transform', ['similarity', 'projective', 'tps'])
def test_the_module_uses_it(monkeypatch, transform):
    torch.manual_seed(0)
    stn = SpatialTransformer(2, (12, 10), transform, size=(6, 5), glimpses=2, scale=0.5, iterations=2).to(DEVICE)
    torch.nn.init.normal_(stn.localization.regression.weight, std=0.05)
    x = randn(2, 2, 12, 10).to(DEVICE)
    calls, found = [], {}

    def count(*args):
        calls.append(args)
        return warp_operator(*args)

    monkeypatch.setattr(reading, 'warp_operator', count)
    for way in ('fused', 'plain'):
        if way == 'plain':
            monkeypatch.setattr(reading, 'is_fused', lambda image, sampling: False)
        twin = copy.deepcopy(stn)  # which counts what it sees
        seen, theta = twin.look(x)
        seen.backward(randn(*seen.shape, seed=2).to(seen))
        found[way] = seen.detach(), theta.detach(), twin.localization.regression.weight.grad
    assert len(calls) == 2 and seen.shape == (2, 2, 2, 6, 5)
    for a, b in zip(*found.values()):  # a sample may be on the other side of a kink
        assert float((a - b).norm() / b.norm()) < 1e-3


@runs
def test_functions_use_it(monkeypatch):
    calls = []
    monkeypatch.setattr(reading, 'warp_operator', lambda *args: calls.append(args) or warp_operator(*args))
    image, theta = randn(3, 2, 6, 7), at_of('affine', 1, None)
    values = warp(image.to(DEVICE), theta.to(DEVICE), size=(5, 4), padding_mode='fill', fill=0.5)
    expected = reference(image.double(), theta.double().expand(3, -1, -1), (5, 4), 'fill', torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(values.cpu().double(), expected, rtol=0, atol=1e-5)
    back = unwarp(values, theta.to(DEVICE), (6, 7))
    expected = reference(expected, invert_matrix(theta.double()).expand(3, -1, -1), (6, 7), 'zeros')
    torch.testing.assert_close(back.cpu().double(), expected, rtol=0, atol=1e-4)
    assert len(calls) == 2
    for other in (dict(mode='bicubic'), dict(mode='nearest'), dict(antialias=True)):
        warp(image.to(DEVICE), theta.to(DEVICE), **other)
    warp(image.double().to(DEVICE), theta.to(DEVICE))
    assert len(calls) == 2


@runs
def test_compiled():
    def function(image, at):
        return warp(image, at, size=(5, 4)).square()

    image, at = randn(2, 2, 6, 7), at_of('affine', 2, None)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend='inductor' if CUDA else 'aot_eager')
    for a, b in zip(evaluate(compiled, image, at), evaluate(function, image, at)):
        torch.testing.assert_close(a, b)


# for other devices


SINGLES = ('channels', 'height', 'width', 'out_h', 'out_w', 'glimpses', 'tiles', 'groups', 'share', 'count', 'outputs',
           't0', 't1')
KERNELS = [(rows, padding, fill, tile) for rows, padding, fill in ((2, 1, False), (3, 0, True), (0, 2, False))
           for tile in ((4, 32, 1), (8, 16, 1), (2, 16, 4), (2, 16, 16))]


def compiled_for(capability, kernel, constants, ones, pixels):
    """The registers that a kernel takes, and the bytes that it spills, on a device that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    pointers = dict(image=pixels, grad=pixels, out=pixels, theta='fp32', fill='fp32', order='i64', starts='i64')
    constants = constants | dict.fromkeys([name for name in kernel.arg_names if name in ones], 1)
    kinds = {name: f'*{pointers[name]}' if name in pointers else 'fp32' if name[:3] in ('to_', 'sca') else 'i32'
             for name in kernel.arg_names}
    signature = {name: 'constexpr' if name in constants else kind for name, kind in kinds.items()}
    even = [name for name, kind in signature.items() if kind[0] == '*' or (kind == 'i32' and constants.get('C') == 16)]
    place = {name: (kernel.arg_names.index(name),) for name in kernel.arg_names}
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [['tt.divisibility', 16]] for name in even})
    built = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=dict(num_warps=4))
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'ptxas'
    arch = f'sm_{capability}' + 'a' * (capability >= 90)
    with tempfile.NamedTemporaryFile('w', suffix='.ptx') as file:
        file.write(built.asm['ptx'])
        file.flush()
        said = subprocess.run(
            [tool, '-v', f'-arch={arch}', '-o', os.devnull, file.name], capture_output=True, text=True, check=True)
    registers, = re.findall(r'Used (\d+) registers', said.stderr)
    spilled = re.findall(r'(\d+) bytes spill (?:stores|loads)', said.stderr)
    assert len(spilled) == 2, said.stderr
    return int(registers), sum(map(int, spilled))


@pytest.mark.skipif(INTERPRETED, reason='nothing is compiled in the interpreter')
@pytest.mark.parametrize('pixels', ['fp32', pytest.param('bf16', marks=pytest.mark.slow)])
@pytest.mark.parametrize('capability', [80, 90])
def test_compiles_without_spills(capability, pixels):
    triton = pytest.importorskip('triton')
    if 'constexprs' not in inspect.signature(triton.compiler.ASTSource.__init__).parameters:
        pytest.skip(f'triton {triton.__version__} compiles ahead of time by another interface')
    from timm_stn.geometry.kernels.fused.forward import warp_forward
    from timm_stn.geometry.kernels.fused.image import cells, gather
    from timm_stn.geometry.kernels.fused.theta import warp_theta
    usage = {}
    for rows, padding, fill, tile in KERNELS:
        places = dict(ROWS=rows, PADDING=padding)
        constants = places | dict(FILL=fill) | dict(zip(('T_H', 'T_W', 'C'), tile))
        ones = ('i_c', 'o_c', 'g_c') if tile[2] > 1 else ('i_x', 'o_x', 'g_x')  # Triton makes constants of ones
        if fill:
            ones = (*ones, *SINGLES)
        usage[('forward', *constants.values())] = compiled_for(capability, warp_forward, constants, ones, pixels)
        usage[('theta', *constants.values())] = compiled_for(
            capability, warp_theta, constants | dict(STEPS=4), ones, pixels)
        if tile == (4, 32, 1):
            usage['cells', rows] = compiled_for(capability, cells, places | dict(P=128), ones, 'i32')
            usage['gather', rows] = compiled_for(capability, gather, places | dict(P=16, K=8, C=4), ones, pixels)
    assert not {kernel: found for kernel, found in usage.items() if found[1]}
    assert max(registers for registers, _ in usage.values()) <= 128
