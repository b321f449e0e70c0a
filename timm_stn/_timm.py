"""The private names of timm and torch that are used, all of them; tests/test_timm_private.py tells which is missing."""
from collections.abc import Callable

import torch
from timm.models._features import FeatureGetterNet, feature_take_indices

__all__ = ['FeatureGetterNet', 'after_backward', 'feature_take_indices']


def after_backward(callback: Callable[[], None]) -> None:
    """In a backward pass: call ``callback`` when it is complete; not if it fails."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)  # type: ignore[attr-defined]
