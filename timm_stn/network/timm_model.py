"""What is asked of a timm model, with types, which timm itself does not have: for type checkers and for readers."""
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

__all__ = ['FeatureInfo', 'Nest', 'Placement', 'TimmModel']

Nest: TypeAlias = 'Tensor | list[Nest] | tuple[Nest, ...] | dict[str, Nest]'  # what forward passes take and give


class Placement(TypedDict):
    """Where new parameters are, and of which dtype; None: torch's default."""
    device: torch.device | str | None
    dtype: torch.dtype | None


class FeatureInfo(TypedDict, total=False):
    """What a timm model says of one of its feature stages."""
    module: str
    num_chs: int
    reduction: int
    index: int
    hook_type: str


class TimmModel(nn.Module):
    """A model that timm's factory made. Models are cast to this class, and none is made of it."""
    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: object
    pretrained_cfg: Mapping[str, Any]
    _model_args: dict[str, object]

    def __call__(self, x: Tensor, **kwargs: object) -> Nest:
        raise NotImplementedError

    def forward_features(self, x: Tensor, **kwargs: object) -> Nest:
        raise NotImplementedError

    def forward_head(self, x: Nest, pre_logits: bool = False) -> Nest:
        raise NotImplementedError

    def forward_intermediates(self, x: Tensor, indices: object = None, **kwargs: object) -> Nest:
        """With ``intermediates_only`` a list of features (N, C, H, W), else the last features and that list."""
        raise NotImplementedError

    def prune_intermediate_layers(self, indices: object, *args: object, **kwargs: object) -> list[int]:
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, *global_pool: str) -> None:
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool) -> None:
        raise NotImplementedError

    def set_input_size(self, img_size: int | Sequence[int] | None = None, **kwargs: object) -> None:
        raise NotImplementedError

    def init_weights(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> object:
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        raise NotImplementedError
