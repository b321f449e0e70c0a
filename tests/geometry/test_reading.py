"""By what way an image is read, and that glimpses are what they are alone."""
import pytest
import torch
from makers import randn
from test_fused import at_of

from timm_stn.geometry import reading
from timm_stn.geometry.functional import warp
from timm_stn.geometry.reading import is_fused, read_at
from timm_stn.geometry.sampler import Sampling


@pytest.fixture
def anywhere(monkeypatch):
    """The operator for images on the CPU, too, by torch's kernel there."""
    monkeypatch.setattr(reading, 'INTERPRETED', True)


@pytest.mark.parametrize('kind', ['affine', 'projective', 'grid'])
@pytest.mark.parametrize('sampling', [
    Sampling(), Sampling(padding_mode='zeros'), Sampling(padding_mode='reflection'),
    Sampling(padding_mode='fill', fill=0.5), Sampling(padding_mode='fill', fill=(1.0, -2.0)),
], ids=lambda s: f'{s.padding_mode} {s.fill}')
def test_the_operator_gives_what_the_sampler_gives(monkeypatch, kind, sampling):
    image, at = randn(3, 2, 8, 7), at_of(kind, 6, (5, 4))
    plain = read_at(image, at, (5, 4), sampling, glimpses=2)
    monkeypatch.setattr(reading, 'INTERPRETED', True)
    assert is_fused(image, sampling)
    torch.testing.assert_close(read_at(image, at, (5, 4), sampling, glimpses=2), plain, rtol=1e-4, atol=1e-5)
    assert plain.shape == (3, 2, 2, 5, 4)
    alone = torch.stack([read_at(image, at[g::2], (5, 4), sampling) for g in range(2)], 1)
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-5)


def test_images_of_the_cpu_are_not_read_by_it():
    assert not is_fused(randn(1, 1, 4, 4), Sampling())


def test_what_it_does_not_know_goes_the_other_way(anywhere):
    image = randn(1, 1, 4, 4)
    assert is_fused(image, Sampling()) and is_fused(image.bfloat16(), Sampling())
    for other in (image.double(), image.long(), randn(1, 1, 4, 4, 4)):
        assert not is_fused(other, Sampling())
    for sampling in (Sampling('bicubic'), Sampling('nearest'), Sampling(antialias=True),
                     Sampling('bilinear', 'fill', torch.tensor(0.5))):
        assert not is_fused(image, sampling)


def test_forward_mode_and_programs_go_the_other_way(anywhere):
    image, theta = randn(1, 1, 6, 6), at_of('affine', 1, None)
    _, slope = torch.func.jvp(lambda t: warp(image, t), (theta,), (torch.ones_like(theta),))
    near = (warp(image.double(), theta.double() + 1e-6) - warp(image.double(), theta.double() - 1e-6)) / 2e-6
    torch.testing.assert_close(slope.double(), near, rtol=1e-3, atol=1e-3)
    traced = torch.jit.trace(lambda x, t: warp(x, t), (image, theta))
    assert 'timm_stn::' not in str(traced.graph)


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'), reason='compiling is taken for exporting without is_exporting')
def test_compiled_it_is_one_operator(anywhere):
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    image, theta = randn(2, 1, 6, 6), at_of('affine', 2, None)
    found = torch.compile(lambda x, t: warp(x, t), backend=backend, fullgraph=True)(image, theta)
    assert len(graphs) == 1 and 'timm_stn.warp' in graphs[0] and 'grid_sampler' not in graphs[0]
    torch.testing.assert_close(found, warp(image, theta))


def test_fill_of_no_channels(anywhere):
    seen = read_at(randn(2, 0, 4, 4), at_of('affine', 2, None), (3, 3), Sampling(padding_mode='fill', fill=0.5))
    assert seen.shape == (2, 0, 3, 3)
