"""The private names of timm and torch that are used, all of them; tests/test_timm_private.py tells which is missing."""
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['FeatureGetterNet', 'TorchDispatchMode', 'feature_take_indices']
