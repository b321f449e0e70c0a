"""Layouts: every one of them there and back, tokens of any number, and what is read off a stage's output."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import randn

from timm_stn.geometry.layout import Layout, empty_like, infer_layout, like

SIDE = st.integers(1, 6)


def tokens_of(maps, prefix):
    """(N, C, H, W) to (N, prefix + H W, C), by hand."""
    n, c, h, w = maps.shape
    out = torch.full((n, prefix + h * w, c), -1.0)
    for y in range(h):
        for x in range(w):
            out[:, prefix + y * w + x] = maps[:, :, y, x]
    return out


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 2), c=SIDE, h=SIDE, w=SIDE, prefix=st.integers(0, 3))
def test_there_and_back(n, c, h, w, prefix):
    maps = torch.arange(float(n * c * h * w)).reshape(n, c, h, w)
    laid = {'NCHW': maps, 'NHWC': maps.permute(0, 2, 3, 1).contiguous(), 'NLC': tokens_of(maps, prefix)}
    for fmt, x in laid.items():
        layout = Layout(fmt, c, (h, w), prefix if fmt == 'NLC' else 0)
        assert torch.equal(layout.maps(x), maps)
        assert torch.equal(layout.restore(layout.maps(x), x), x)
        assert layout.restore(layout.maps(x), x).shape == x.shape


def test_prefix_tokens_pass_by():
    layout, x = Layout('NLC', 5, (3, 4), prefix=2), randn(2, 14, 5)
    changed = layout.restore(layout.maps(x) * 2 + 1, x)
    assert torch.equal(changed[:, :2], x[:, :2])
    torch.testing.assert_close(changed[:, 2:], x[:, 2:] * 2 + 1)


@pytest.mark.parametrize(('usual', 'tokens', 'expected'), [
    ((14, 14), 196, (14, 14)),
    ((14, 14), 100, (10, 10)),
    ((14, 14), 1, (1, 1)),
    ((10, 20), 200, (10, 20)),
    ((10, 20), 800, (20, 40)),
    ((20, 10), 50, (10, 5)),
    ((14, 14), 14 * 21, (14, 21)),
    ((3, 3), 6, (2, 3)),
])
def test_token_size(usual, tokens, expected):
    size = Layout('NLC', 1, usual).token_size(tokens)
    assert size == expected or (usual[0] == usual[1] and size == expected[::-1])


@pytest.mark.parametrize('tokens', [0, 13, 197])
def test_tokens_that_are_no_map(tokens):
    with pytest.raises(ValueError, match=f'{tokens} tokens do not form a map with an aspect ratio near 14:14'):
        Layout('NLC', 1, (14, 14)).token_size(tokens)


@pytest.mark.parametrize(('shape', 'channels', 'fmt', 'size', 'prefix', 'expected'), [
    ((1, 64, 7, 9), 64, None, (7, 9), 0, Layout('NCHW', 64, (7, 9))),
    ((1, 7, 9, 64), 64, None, (7, 9), 0, Layout('NHWC', 64, (7, 9))),
    ((1, 7, 9, 64), 64, 'NCHW', (7, 9), 0, Layout('NHWC', 64, (7, 9))),  # the number of channels is the better witness
    ((1, 8, 8, 8), 8, 'NHWC', (8, 8), 0, Layout('NHWC', 8, (8, 8))),
    ((1, 8, 8, 8), 8, 'None', (8, 8), 0, Layout('NCHW', 8, (8, 8))),
    ((1, 64, 7, 9), None, None, (7, 9), 0, Layout('NCHW', 64, (7, 9))),
    ((1, 7, 9, 64), None, 'NHWC', (7, 9), 0, Layout('NHWC', 64, (7, 9))),
    ((1, 197, 32), 32, None, (14, 14), 1, Layout('NLC', 32, (14, 14), 1)),
    ((1, 196, 32), 32, None, (14, 14), 1, Layout('NLC', 32, (14, 14), 0)),  # before the class token joins
    ((1, 205, 32), 32, None, (10, 20), 5, Layout('NLC', 32, (10, 20), 5)),
    ((1, 50, 32), 32, None, (224, 224), 1, Layout('NLC', 32, (7, 7), 1)),  # a reduction that is not known
    ((1, 50, 32), None, None, (20, 10), 0, Layout('NLC', 32, (10, 5))),
    ((1, 197, 32), 64, None, (14, 14), 1, None),
    ((1, 13, 32), 32, None, (14, 14), 0, None),
    ((1, 0, 32), 32, None, (14, 14), 0, None),
    ((1, 1000), 1000, None, (1, 1), 0, None),
    ((1, 2, 3, 4, 5), 2, None, (3, 4), 0, None),
    ((), None, None, (1, 1), 0, None),
])
def test_infer(shape, channels, fmt, size, prefix, expected):
    assert infer_layout(shape, channels, fmt, size, prefix) == expected


@pytest.mark.parametrize('kind', [tuple, list])
def test_features_among_other_things(kind):
    layout, x = Layout('NCHW', 2, (3, 3), item=1), kind([torch.ones(1, 5), torch.randn(1, 2, 3, 3), None])
    changed = layout.put(layout.pick(x) * 2, x)
    assert type(changed) is kind and changed[0] is x[0] and changed[2] is None
    assert torch.equal(changed[1], x[1] * 2)
    assert layout.fits(x) and not layout.fits(x[1]) and not layout.fits(kind(x[:1])) and not layout.fits(kind(x[::2]))
    assert Layout('NCHW', 2, (3, 3)).fits(x[1]) and not Layout('NCHW', 2, (3, 3)).fits(x)


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last], ids=str)
def test_like_keeps_dtype_and_memory_format(form):
    image = torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16).contiguous(memory_format=form)
    values = torch.arange(2 * 3 * 6.0).view(2, 3, 2, 3)
    found, empty = like(image, values), empty_like(image, (2, 3, 2, 3))
    for x in (found, empty):
        assert x.shape == values.shape and x.dtype == image.dtype and x.is_contiguous(memory_format=form)
    assert torch.equal(found.float(), values) and found.stride() == empty.stride()
