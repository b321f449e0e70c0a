"""Whose a parameter is, told by its name."""
import pytest
from makers import create
from timm.models import get_pretrained_cfg
from timm.optim import param_groups_layer_decay


def test_state_dict_holds_the_backbone_with_its_own_keys():
    keys = set(create(stn_stages=('input', 1)).state_dict())
    plain = set(create('test_resnet').state_dict())
    assert {'backbone.' + k for k in plain} == {k for k in keys if 'stn.' not in k}
    own = {k.removesuffix('.made_with').split('.localization')[0] for k in keys if 'stn.' in k}
    assert own == {'stn', 'backbone.layer1.stn'}


def test_parameter_names_have_their_prefix():
    model = create('stn_test_vit', stn_stages=('input', 0))
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {'backbone.' + n for n in model.backbone.no_weight_decay()}
    assert 'backbone.pos_embed' in model.no_weight_decay()
    cfg = model.pretrained_cfg
    assert cfg['architecture'] == 'stn_test_vit' and cfg['classifier'] + '.weight' in names
    assert cfg['first_conv'] == ('backbone.patch_embed.proj', 'stn.localization.body.0')
    assert all(f'{c}.weight' in names for c in cfg['first_conv'])
    assert get_pretrained_cfg('stn_test_vit').classifier == 'backbone.head'


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_efficientnet'])
def test_layer_decay_groups_as_the_backbone_and_trains_transformers_like_the_head(name):
    plain, model = create(name), create('stn_' + name, stn_stages=('input', 1))
    scales = {}
    for net in (plain, model):
        names = {id(p): n for n, p in net.named_parameters()}
        for group in param_groups_layer_decay(net, layer_decay=0.5):
            scales.update({(net is model, names[id(p)]): group['lr_scale'] for p in group['params']})
    for (ours, key), scale in scales.items():
        if ours:
            assert scale == (1.0 if 'stn.' in key else scales[False, key.removeprefix('backbone.')]), key
