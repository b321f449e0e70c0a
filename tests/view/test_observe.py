"""What is told of looks and of the installation."""
import pytest
import timm
import torch

import timm_stn
from timm_stn.cli import doctor
from timm_stn.cli.digits import wrong_answers
from timm_stn.cli.doctor import report, self_check
from timm_stn.names.zoo import weights_of, zoo_names
from timm_stn.view.draw import outline
from timm_stn.view.observe import observe

SIZE = 64


def network(**kwargs):
    """A small network whose transformers look elsewhere than at everything."""
    model = timm.create_model('stn_test_resnet', num_classes=4, **kwargs).eval()
    for stn in model.spatial_transformers().values():
        stn.localization.regression.bias.data.uniform_(-0.2, 0.2)
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('glimpses', [1, 2])
def test_look_at_the_input(images, glimpses):
    model = network(stn_glimpses=glimpses, stn_size=32)
    look = observe(model, images)
    assert look.stage == 'input' and look.before is None
    assert look.seen.shape == (2, glimpses, 3, 32, 32) and look.theta.shape == (2, glimpses, 2, 3)
    assert look.outlines.shape[:2] == (2, glimpses) and look.logits.shape == (2, 4)
    torch.testing.assert_close(look.outlines[:, -1:], outline(model.stn, look.theta[:, -1]))


def test_look_at_stages_goes_back_through_what_ran_before(images):
    """Moves by translations add up: of the input, of stage 1, of stage 3 (which is listed first)."""
    model = network(stn_stages=(3, 'input', 1), stn_transform='translation')
    look = observe(model, images, 3)
    assert look.stage == 3 and look.seen.shape == look.before.shape and look.seen.shape[:2] == (2, 1)
    thetas = [stn.last_theta for stn in model.spatial_transformers().values()]
    border = outline(model.stn, torch.eye(2, 3).repeat(2, 1, 1))
    expected = border + sum(theta[:, :, 2] for theta in thetas)[:, None, None]
    torch.testing.assert_close(look.outlines, expected)
    assert observe(model, images).stage == 'input' or next(iter(model.spatial_transformers())) == 3


@pytest.mark.parametrize('more', [{}, {'stn_localization': 'conv'}, {'stn_size': 64, 'stn_whole': True}])
def test_look_at_a_stage_through_glimpses(images, more):
    model = network(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_transform='translation', **more)
    look = observe(model, images, 2)
    assert look.outlines.shape[:2] == look.theta.shape[:2] == look.seen.shape[:2] == (2, 2)
    width = look.outlines.amax(2) - look.outlines.amin(2)
    torch.testing.assert_close(width, torch.ones_like(width))  # all of a glimpse of half the image's width


@pytest.mark.parametrize('arch', ['stn_test_vit', 'stn_test_mambaout'])
def test_look_at_tokens_and_channels_last(arch):
    model = timm.create_model(arch, stn_stages=(1,)).eval()
    look = observe(model, torch.rand(1, 3, 160, 160))
    assert look.seen.ndim == 5 and look.before.shape == look.seen.shape
    assert not model.spatial_transformers()[1]._forward_hooks


def test_look_refuses_other_stages(images):
    with pytest.raises(ValueError, match="one of 'input', got 7"):
        observe(network(), images, 7)


def test_wrong_answers():
    model = torch.nn.Flatten()
    images = torch.eye(4).repeat(300, 1)
    labels = torch.arange(4).repeat(300)
    labels[::100] += 1
    assert wrong_answers(model, images, labels) == 12


def test_weights_of():
    assert weights_of('stn_resnet18.a1_in1k') == 'Hugging Face Hub, timm/resnet18.a1_in1k'
    assert weights_of('stn_test_resnet') and weights_of('mnist_cnn') is None
    assert weights_of(torch.nn.Identity()) is None


def test_report():
    facts = report()
    assert list(facts) == ['versions', 'devices', 'timm', 'kernels', 'weights']
    assert facts['versions']['timm'] == timm.__version__ and timm_stn.__version__ in facts['versions']['timm_stn']
    assert {'torch', 'torchvision', 'huggingface_hub', 'safetensors', 'python'} <= set(facts['versions'])
    assert facts['timm']['register_model'] == facts['timm']['FeatureGetterNet'] == 'yes'
    plain, twins = (int(text.split()[i]) for text, i in
                    zip([facts['timm']['architectures'].replace(',', '')] * 2, (0, 3)))
    assert plain == twins > 1000
    assert set(facts['weights']) == set(zoo_names())


def test_self_check(monkeypatch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert all(passed for passed, _ in self_check().values())
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(doctor, 'warp', lambda image, theta: image + 1e-3)
    passed, found = self_check()['identity warp on cpu']
    assert not passed and '1.0e-03' in found
