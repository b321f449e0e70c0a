"""What is known while a program is made."""
import warnings

import pytest
import torch
from torch import nn

from timm_stn.geometry.programs import is_always, is_exporting, of_one_size

AGREES = 24


class Asks(nn.Module):
    """Adds what it has found out: 1 that a program is exported, 2 that the side is always 24."""

    def forward(self, x):
        return x + (1 if is_exporting() else 0) + (2 if is_always(x.shape[2], AGREES) else 0)


def asked(program):
    return program(torch.zeros(2, 3, AGREES, 5)).unique().item()


def example():
    return torch.zeros(2, 3, AGREES, 5)


HEIGHT = {2: torch.export.Dim('height', min=2, max=99)}


def test_in_eager_mode_nothing_is_exported():
    assert asked(Asks()) == 2


@pytest.mark.parametrize('shapes, found', [(None, 3), (HEIGHT, 1)])
def test_export_knows_which_sides_vary(shapes, found):
    assert asked(torch.export.export(Asks(), (example(),), dynamic_shapes=(shapes,), strict=False).module()) == found


@pytest.mark.parametrize('shapes', [None, HEIGHT])
def test_strict_export_takes_every_side_for_one_that_varies(shapes):
    program = torch.export.export(Asks(), (example(),), dynamic_shapes=(shapes,), strict=True).module()
    assert asked(program) == 1
    if shapes:
        assert program(torch.zeros(2, 3, 7, 5)).shape[2] == 7


def test_a_trace_takes_every_side_for_one_that_varies():
    assert asked(torch.jit.trace(Asks(), example(), check_trace=False)) == 1


def test_compiled_is_not_exported():
    torch.compiler.reset()
    compiled = torch.compile(Asks(), backend='eager', fullgraph=True)
    assert asked(compiled) == (0 if hasattr(torch.compiler, 'is_exporting') else 1)


class OfOneSize(nn.Module):
    def forward(self, x):
        return 2 * of_one_size(x, 'this')


def test_programs_of_one_size():
    x = torch.rand(2, 3, 6, 8)
    batch = {0: torch.export.Dim('batch', max=99)}
    program = torch.export.export(OfOneSize(), (x,), dynamic_shapes=(batch,), strict=False).module()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        trace = torch.jit.trace(OfOneSize(), x)
    for run in (program, trace):
        torch.testing.assert_close(run(x[:1]), 2 * x[:1])
        with pytest.raises((RuntimeError, AssertionError)):
            run(x.transpose(2, 3).contiguous())
    for shapes, sides in ((HEIGHT, r'\[2\]'), ({**batch, 3: torch.export.Dim('width', max=99)}, r'\[3\]')):
        with pytest.raises(ValueError, match=f'^this: .* dimensions {sides} may vary'):
            torch.export.export(OfOneSize(), (x,), dynamic_shapes=(shapes,), strict=False)


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='this torch cannot tell it from compilation')
def test_strict_export_of_one_size_is_refused():
    with pytest.raises(Exception, match='strict=False'):
        torch.export.export(OfOneSize(), (torch.rand(2, 3, 6, 8),), strict=True)
