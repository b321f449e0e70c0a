"""Fields that speak of weights are timm's own, and none that describes a network is among them."""
from dataclasses import fields

import timm
from timm.models import PretrainedCfg

from timm_stn.names.provenance import OF_WEIGHTS, TESTED, inherited


def test_each_field_of_timms_is_known_here_or_describes_the_network():
    known = {f.name for f in fields(PretrainedCfg)}
    network = {
        'architecture', 'input_size', 'min_input_size', 'fixed_input_size', 'interpolation', 'crop_pct', 'crop_mode',
        'mean', 'std', 'num_classes', 'pool_size', 'first_conv', 'classifier'}
    source = {'url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'custom_load'}
    assert known - set(OF_WEIGHTS) - set(TESTED) == network | source and set(OF_WEIGHTS) | set(TESTED) <= known


def test_what_somebody_has_set_is_not_inherited():
    for name in ('stn_test_resnet', 'stn_resnet18.tv_in1k'):
        model = timm.create_model(name, num_classes=2)
        assert set(inherited(model.pretrained_cfg)) == set(OF_WEIGHTS)
        model.pretrained_cfg.update(label_names=['a', 'b'], license='mit', description='mine')
        assert set(inherited(model.pretrained_cfg)) == set(OF_WEIGHTS) - {'label_names', 'license', 'description'}
