"""`torch.ops.timm_stn.warp` where there are no kernels for it: what the operator promises, by torch's own."""
import pytest
import torch
from makers import randn
from test_fused import PADDINGS, at_of, reference

from timm_stn.geometry import operator
from timm_stn.geometry.operator import warp_operator

KINDS = ['affine', 'projective', 'grid']


def case(kind='affine', padding_mode='border', n=2, maps=4, size=(5, 6)):
    """Images, matrices or a grid, and the other arguments."""
    fill = torch.tensor([0.5, -2.0, 3.0]) if padding_mode == 'fill' else None
    return randn(n, 3, 7, 8), at_of(kind, maps, size), size, PADDINGS[padding_mode], fill


@pytest.mark.parametrize('padding_mode', PADDINGS)
@pytest.mark.parametrize('kind', KINDS)
def test_values_and_gradients_are_those_of_float64(kind, padding_mode):
    image, at, size, padding, fill = case(kind, padding_mode)
    found, expected = [], []
    for results, (x, a), function in (
            (found, (image, at), lambda x, a: warp_operator(x, a, size, padding, fill)),
            (expected, (image.double(), at.double()), lambda x, a: reference(x, a, size, padding_mode, fill))):
        x, a = x.requires_grad_(), a.requires_grad_()
        values = function(x, a)
        results += [values, *torch.autograd.grad(values, (x, a), randn(*values.shape, seed=5).to(values))]
    for a, b in zip(found, expected):
        assert float((a - b).abs().max() / b.abs().max()) < 2e-5


@pytest.mark.parametrize('kind', KINDS)
def test_it_keeps_its_contract(kind):
    image, at, *where = case(kind, 'fill')
    for x, a in ((image, at), (image.clone().requires_grad_(), at), (image, at.clone().requires_grad_())):
        torch.library.opcheck(torch.ops.timm_stn.warp.default, (x, a, *where))
    last = image.contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.timm_stn.warp.default, (last, at, *where))
    grad = randn(4, 3, 5, 6)
    torch.library.opcheck(torch.ops.timm_stn.warp_theta_gradient.default, (grad, last, at, *where))
    torch.library.opcheck(torch.ops.timm_stn.warp_image_gradient.default, (grad, last, at, *where[:2]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_memory_format_are_the_image_s(form, dtype):
    image, at, *where = case()
    image = image.to(dtype).contiguous(memory_format=form).requires_grad_()
    at.requires_grad_()
    values = warp_operator(image, at, *where)
    to_image, to_theta = torch.autograd.grad(values.sum(), (image, at))
    for x in (values, to_image):
        assert x.dtype == dtype and x.is_contiguous(memory_format=form)
    assert to_theta.dtype == torch.float32


@pytest.mark.parametrize('kind', KINDS)
def test_func_and_vmap(kind):
    image, at, size, padding, fill = case(kind, 'fill', n=2, maps=2)
    images, ats = torch.stack([image, 2 * image, image + 1]), torch.stack([at, 0.9 * at, 0.8 * at], 1)

    def loss(image, at):
        return warp_operator(image, at, size, padding, fill).square().sum()

    values = torch.vmap(lambda x, a: warp_operator(x, a, size, padding, fill), (0, 1))(images, ats)
    found = torch.vmap(torch.func.grad(loss, (0, 1)), (None, 1))(image, ats)
    for i in range(3):
        torch.testing.assert_close(values[i], warp_operator(images[i], ats[:, i], size, padding, fill))
        x, a = image.clone().requires_grad_(), ats[:, i].clone().requires_grad_()
        for gradient, expected in zip(found, torch.autograd.grad(loss(x, a), (x, a))):
            torch.testing.assert_close(gradient[i], expected, rtol=1e-4, atol=1e-4)


def test_one_fill_for_all():
    image, at, size, padding, fill = case(padding_mode='fill')
    with pytest.raises(NotImplementedError, match='vmap over fill'):
        torch.vmap(lambda f: warp_operator(image, at, size, padding, f))(torch.stack([fill, fill]))


def test_no_second_derivatives():
    image, at, *where = case()
    at.requires_grad_()
    first, = torch.autograd.grad(warp_operator(image, at, *where).square().sum(), at, create_graph=True)
    with pytest.raises(NotImplementedError, match='a warp has no second derivatives'):
        first.sum().backward()


def test_a_broken_matrix_is_the_identity_with_a_gradient_of_zero():
    image, at = case('projective', maps=2)[:2]
    at[1, 0, 0] = float('nan')
    at.requires_grad_()
    values = warp_operator(image, at, (7, 8), 1)
    gradient, = torch.autograd.grad(values.sum(), at)
    torch.testing.assert_close(values[1], image[1], rtol=0, atol=1e-5)
    assert not gradient[1].any() and gradient[0].any()


@pytest.mark.parametrize('kind', KINDS)
def test_empty(kind):
    image, at, *where = case(kind, n=0, maps=0)
    image, at = image.requires_grad_(), at.requires_grad_()
    values = warp_operator(image, at, *where)
    gradients = torch.autograd.grad(values.sum(), (image, at))
    assert values.shape == (0, 3, 5, 6) and [g.shape for g in gradients] == [image.shape, at.shape]


def test_what_kernels_cannot_reach_is_left_to_torch(monkeypatch):
    """Offsets within an image are 32-bit integers there."""
    asked = []
    monkeypatch.setattr(operator.fused, 'why_not', lambda device: asked.append(device) or 'no such device')
    image, at, *where = case()
    expected = warp_operator(image, at, *where)
    assert len(asked) == 1
    monkeypatch.setattr(operator, 'REACH', 100)
    torch.testing.assert_close(warp_operator(image, at, *where), expected)
    assert len(asked) == 1


def test_a_fill_that_is_expanded():
    image, at, size, padding, fill = case(padding_mode='fill')
    expanded = fill[:1].expand(3)
    torch.testing.assert_close(
        warp_operator(image, at, size, padding, expanded), warp_operator(image, at, size, padding, expanded.clone()))
