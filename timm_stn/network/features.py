"""Feature extraction with transformers at stages: timm's getter around the whole network."""
from typing import Any

import timm
import torch
from torch import Tensor

from .._timm import FeatureGetterNet
from .model import SpatialTransformerNetwork

__all__ = ['StnFeatures', 'usual_indices']


class StnFeatures(FeatureGetterNet):
    """What ``features_only=True`` gives where transformers sit at stages.

    timm's list, hook and fx extractors rebuild or cut a network; they would lose or misplace the transformers unsaid.

    Args:
        net: The network.
        out_indices: Feature indices, negative from the end.
        feature_cls: ``getter`` is the only one that keeps the transformers.

    Raises:
        ValueError: Another ``feature_cls`` is asked for.
    """

    def __init__(
            self,
            net: SpatialTransformerNetwork,
            out_indices: Any,
            feature_cls: Any = 'getter',
    ) -> None:
        if feature_cls not in ('getter', FeatureGetterNet):
            raise ValueError(f"feature_cls must be 'getter' with transformers at stages, got {feature_cls!r}.")
        super().__init__(net, out_indices=out_indices)
        self.pretrained_cfg = self.default_cfg = {
            k: v for k, v in net.pretrained_cfg.items() if k not in ('num_classes', 'classifier', 'global_pool')}
        self._traits = dict(net._traits)
        self.in_chans = net._input_size[0]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]

    def spatial_transformers(self) -> dict[int | str, Any]:
        return self.model.spatial_transformers()  # type: ignore[operator, no-any-return]

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.look(x)  # type: ignore[operator, no-any-return]


def usual_indices(arch: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    """The features that timm gives of an architecture, made with these arguments, where nobody says which."""
    with torch.device('meta'):
        return tuple(timm.create_model(arch, features_only=True, **arguments).feature_info.out_indices)
