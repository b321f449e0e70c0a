"""What is known while a program is made: whether one is, and which sides stay as they are."""
import pytest
import torch
from torch import nn
from torch.export import Dim, export

from timm_stn.geometry.programs import is_always, is_exporting, of_one_size

CAN_TELL = hasattr(torch.compiler, 'is_exporting')  # not torch 2.6


class Told(nn.Module):
    """Adds 1 where a program is being made, 2 where the height is 8 in every run of it."""

    def forward(self, x):
        return x + int(is_exporting()) + 2 * int(is_always(x.shape[2], 8))


def test_outside_of_a_program():
    assert Told()(torch.zeros(1, 1, 8, 8)).unique().tolist() == [2]
    image = torch.zeros(1, 1, 8, 4)
    assert of_one_size(image, 'why').shape == image.shape


@pytest.mark.filterwarnings('ignore')
def test_a_trace():
    assert torch.jit.trace(Told(), torch.zeros(1, 1, 8, 8))(torch.zeros(2, 1, 5, 8)).min() >= 1
    fixed = torch.jit.trace(lambda x: of_one_size(x, 'why') + 0, torch.zeros(1, 1, 8, 8))
    assert fixed(torch.zeros(3, 1, 8, 8)).shape == (3, 1, 8, 8)
    with pytest.raises(RuntimeError):
        fixed(torch.zeros(1, 1, 9, 8))


def test_an_export_knows_which_sides_may_vary():
    x = torch.zeros(2, 1, 8, 8)
    fixed = export(Told(), (x,), strict=False).module()
    assert fixed(x).unique().tolist() == [3]
    free = export(Told(), (x,), dynamic_shapes=({2: Dim('height', min=2, max=64)},), strict=False).module()
    assert free(x).unique().tolist() == [1] and free(torch.zeros(2, 1, 9, 8)).unique().tolist() == [1]


class One(nn.Module):
    def forward(self, x):
        return of_one_size(x, 'antialias=True') + 1


def test_a_side_that_must_not_vary_is_told():
    x = torch.zeros(2, 1, 8, 8)
    assert export(One(), (x,), strict=False).module()(x).min() == 1
    with pytest.raises(ValueError, match=r'^antialias=True: .* dimensions \[2\] may vary'):
        export(One(), (x,), dynamic_shapes=({2: Dim('height', min=2, max=64)},), strict=False)


@pytest.mark.skipif(not CAN_TELL, reason='torch 2.6 cannot tell export from compilation')
def test_compiling_is_not_exporting():
    assert torch.compile(Told(), backend='eager')(torch.zeros(1, 1, 9, 8)).unique().tolist() == [0]
