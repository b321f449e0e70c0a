"""The code that reads pixels: which operator it is where, and that the one of its own keeps its contract."""
import pytest
import torch
from makers import random_grid

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
