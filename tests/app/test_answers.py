"""Pictures and answers of one look."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from makers import rand
from PIL import ImageColor
from torch import nn

from timm_stn.app.answers import answers, plain_logits
from timm_stn.app.inputs import example_digits
from timm_stn.app.shelf import Network, load_network
from timm_stn.network.keys import base_name
from timm_stn.view.draw import COLORS

SMALL = dict(img_size=64, num_classes=7)


def network(**arguments):
    """A small one with transformers that move what they see."""
    torch.manual_seed(0)
    model = timm.create_model('stn_test_vit', **{**SMALL, **arguments})
    for transformer in model.spatial_transformers().values():
        nn.init.normal_(transformer.localization.regression.bias, std=0.3)
    return Network(model, 'stn_test_vit')


def weights_of_backbone(model):
    plain = timm.create_model('test_vit', **SMALL)
    state = {base_name(key): value for key, value in model.state_dict().items()
             if key.startswith('backbone.') and '.stn.' not in key}
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    return plain.eval()


def test_the_best_five_are_those_of_softmax():
    digits = load_network('stn_mnist_cnn_rts')
    image = example_digits()[3]
    found = answers(digits, image)
    with torch.inference_mode():
        logits = digits.model(image[None])[0].double().numpy()
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-shares)[:5]
    assert [name for name, _ in found.ranking] == [str(c) for c in order]
    assert [share for _, share in found.ranking] == pytest.approx(shares[order].tolist(), abs=1e-6)
    assert len(found.plain) == 5 and found.reason == ''


def test_a_network_of_fewer_classes():
    assert len(answers(network(num_classes=3), rand(3, 64, 64)).ranking) == 3


@pytest.mark.parametrize('arguments', [
    dict(), dict(stn_stages=(0,)), dict(stn_stages=('input', 1)), dict(stn_stages=(0, 1)),
    dict(stn_glimpses=2, stn_scale=0.5),
], ids=str)
def test_the_backbone_alone_is_timms_plain_model(arguments):
    own = network(**arguments)
    images = rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = own.model(images)
        plain, reason = plain_logits(own.model, images)
        assert torch.allclose(plain, weights_of_backbone(own.model)(images), atol=1e-5) and not reason
        assert not torch.allclose(plain, before, atol=1e-3)
        assert torch.equal(own.model(images), before), 'its transformers work as before'


def test_the_whole_image_is_shrunk_to_what_the_backbone_sees():
    own = network(stn_size=32, img_size=64)
    images = torch.full((1, 3, 64, 64), 0.25)
    with torch.inference_mode():
        assert torch.allclose(plain_logits(own.model, images)[0], own.model.backbone(images[..., :32, :32]), atol=1e-6)


def test_it_says_where_there_is_no_backbone_of_one_image():
    joined = network(stn_glimpses=2, stn_scale=0.5, stn_join='concat')
    found = answers(joined, rand(3, 64, 64))
    assert found.plain is None and 'one classifier over several looks' in found.reason
    assert [title for title, _ in found.pictures] == ['Where it looked', 'What it saw (1)', 'What it saw (2)']


def test_pictures_of_a_stage_are_of_features():
    found = answers(network(stn_stages=(1,)), rand(3, 64, 64))
    assert [title for title, _ in found.pictures] == ['Where it looked', 'Features before', 'Features after']


def test_the_outline_is_drawn():
    found = answers(network(), torch.zeros(3, 64, 64))
    for _, picture in found.pictures:
        assert (np.asarray(picture) == ImageColor.getrgb(COLORS[0])).all(-1).sum() > 100


def test_requests_at_once_do_not_mix():
    """Of a network that keeps in itself where it looked last."""
    own = network(stn_stages=('input', 0, 1))
    images = [rand(3, 64, 64, seed=k) for k in range(12)]
    alone = [answers(own, image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda image: answers(own, image), images))
    for a, b in zip(alone, together):
        assert a.ranking == b.ranking and a.plain == b.plain
        assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(a.pictures, b.pictures))
    assert len({str(a.ranking) for a in alone}) == len(images)
