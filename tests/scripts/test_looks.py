"""Where a network looks, beside boxes that were drawn by hand."""
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from makers import ROOT
from torch import nn

from timm_stn.geometry.pose import pose_of
from timm_stn.geometry.transforms import get_transform


@pytest.fixture
def where_it_looks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'scripts' / 'train'))
    sys.modules.pop('looks', None)
    return importlib.import_module('looks').where_it_looks


class Looks(nn.Module):
    """Two glimpses of half-width 0.5 of every image: about (-0.5, -0.5), and about (0.5, 0.25)."""

    stn = SimpleNamespace(pose_of=lambda theta: pose_of(theta.flatten(0, 1), get_transform('affine')))

    def look(self, images):
        theta = torch.tensor([[[0.5, 0, -0.5], [0, 0.5, -0.5]], [[0.5, 0, 0.5], [0, 0.5, 0.25]]])
        return images, theta.expand(len(images), -1, -1, -1)


def test_one_box_an_image(where_it_looks):
    boxes = torch.tensor([[-1., -1., 0., 0.],  # the first glimpse's own
                          [0., -0.25, 0.5, 0.75],  # half of the second's
                          [-0.9, 0.2, -0.8, 0.3]])  # outside of both
    found = where_it_looks(Looks(), [(torch.zeros(3, 1, 8, 8), boxes)])
    assert found == pytest.approx({'iou': 50, 'found': 100 / 3, 'inside': 200 / 3}, abs=1e-4)


def test_several_boxes_an_image_count_as_many(where_it_looks):
    boxes = torch.tensor([[[-1., -1., 0., 0.], [0., -0.25, 0.5, 0.75]],
                          [[-0.9, 0.2, -0.8, 0.3], [-0.5, -1., 0., 0.]]])
    batches = [(torch.zeros(1, 1, 8, 8), part) for part in boxes.split(1)]
    found = where_it_looks(Looks(), batches)
    assert found == pytest.approx({'iou': 50, 'found': 25, 'inside': 75}, abs=1e-4)
    alone = where_it_looks(Looks(), [(torch.zeros(4, 1, 8, 8), boxes.flatten(0, 1))])
    assert alone == pytest.approx(found)
