"""The private names of timm that are used, all of them; tests/test_private_names.py tells which is missing."""
from timm.models._features import FeatureGetterNet, feature_take_indices

__all__ = ['MODEL_NAMES', 'FeatureGetterNet', 'feature_take_indices']

# What timm's factory notes on a model: written on the network always, read where the backbone has it.
MODEL_NAMES = ('_model_args', '_traits')
