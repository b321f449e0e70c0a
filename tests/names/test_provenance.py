"""Fields that speak of weights are timm's own, and none that describes a network is among them."""
from dataclasses import fields

from timm.models import PretrainedCfg

from timm_stn.names.provenance import OF_WEIGHTS, TESTED


def test_each_field_of_timms_is_known_here_or_describes_the_network():
    known = {f.name for f in fields(PretrainedCfg)}
    network = {
        'architecture', 'input_size', 'min_input_size', 'fixed_input_size', 'interpolation', 'crop_pct', 'crop_mode',
        'mean', 'std', 'num_classes', 'pool_size', 'first_conv', 'classifier'}
    source = {'url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'custom_load'}
    assert known - set(OF_WEIGHTS) - set(TESTED) == network | source and set(OF_WEIGHTS) | set(TESTED) <= known
