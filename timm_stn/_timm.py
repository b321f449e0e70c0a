"""The private names of timm that are used, all of them; tests/test_timm_private.py tells which is missing."""
from timm.models._features import FeatureGetterNet, feature_take_indices

__all__ = ['FeatureGetterNet', 'feature_take_indices']
