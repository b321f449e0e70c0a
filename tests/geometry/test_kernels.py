"""The code that reads pixels: which operator it is where, and that the one of its own keeps its contract."""
import pytest
import torch
from makers import PADDING_MODES, random_grid
from torch.autograd import gradcheck

from timm_stn.geometry.kernels import composed
from timm_stn.geometry.sampler import sample

pytestmark = pytest.mark.usefixtures('seeded')


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'), reason='without torch.compiler.is_exporting aten is used throughout')
def test_compiled_keeps_the_operator_whole():
    """In pieces, torch's grid sampler is 3 to 4 times slower on a CPU."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    torch.compile(sample, backend=backend, fullgraph=True)(torch.randn(1, 2, 5, 6), random_grid(1, (3, 3)))
    assert 'timm_stn.grid_sampler' in graphs[0] and len(graphs) == 1


def test_opaque_operator_keeps_its_contract():
    image, grid = torch.randn(2, 3, 6, 5, requires_grad=True), random_grid(2, (4, 4)).requires_grad_()
    for args in ((image, grid), (image.detach(), grid), (image, grid.detach())):
        torch.library.opcheck(torch.ops.timm_stn.grid_sampler.default, (*args, 0, 1))


def test_export_is_torchs_own_operator():
    class Sample(torch.nn.Module):
        def forward(self, image, grid):
            return sample(image, grid) + sample(image, grid, antialias=True)

    args = torch.randn(2, 3, 12, 10), random_grid(2, (5, 6))
    program = torch.export.export(Sample(), args)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any('timm_stn' in target for target in targets)
    torch.testing.assert_close(program.module()(*args), Sample()(*args))


# forward mode: the sum over pixels


def sizes(ndim):
    return [(7, 5, 6)[:ndim], (1, 4, 1)[:ndim]]


@pytest.mark.parametrize('padding', range(3))
@pytest.mark.parametrize('ndim, kernel', [(2, 0), (3, 0), (2, 2)])
def test_sum_over_pixels_is_torchs_kernel(ndim, kernel, padding):
    for size in sizes(ndim):
        image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        grid = (8 * torch.rand(2, *(4, 5, 3)[:ndim], ndim, dtype=torch.float64) - 4).requires_grad_()
        ours = composed.grid_sampler(image, grid, kernel, padding)
        theirs = torch.grid_sampler(image, grid, kernel, padding, False)
        torch.testing.assert_close(ours, theirs)
        weights = torch.randn_like(ours)
        found, expected = [torch.autograd.grad(out, (image, grid), weights) for out in (ours, theirs)]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('padding_mode', PADDING_MODES)
@pytest.mark.parametrize('size, options', [
    ((6, 5), dict()), ((6, 5), dict(mode='bicubic')), ((4, 5, 3), dict()), ((6, 5), dict(mode='nearest'))])
def test_derivatives_in_forward_mode(size, options, padding_mode):
    image = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    grid = random_grid(1, (3, 2, 2)[:len(size)], len(size), torch.float64).requires_grad_()
    fill = 0.5 if padding_mode == 'fill' else None

    def read(image, grid):
        return sample(image, grid, padding_mode=padding_mode, fill=fill, **options)

    assert gradcheck(read, (image, grid), check_forward_ad=True)


def test_hessian():
    """Forward over reverse, which torch's own kernel has in no version."""
    image, grid = torch.randn(1, 1, 4, 5, dtype=torch.float64), random_grid(1, (2, 2), dtype=torch.float64)

    def loss(grid):
        return sample(image, grid, 'bicubic').pow(3).sum()

    tangent, step = torch.randn_like(grid), 1e-6
    slope = torch.func.grad(loss)
    expected = (slope(grid + step * tangent) - slope(grid - step * tangent)) / (2 * step)
    hessian = torch.func.hessian(loss)(grid).flatten(4).flatten(0, 3)
    torch.testing.assert_close((hessian @ tangent.flatten()).view_as(grid), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.func.jvp(slope, (grid,), (tangent,))[1], expected, rtol=1e-5, atol=1e-5)
