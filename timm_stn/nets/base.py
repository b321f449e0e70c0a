"""What timm asks of a model that is layers one after the other and a classifier."""
from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import torch
from timm.models import checkpoint
from torch import Tensor, nn

__all__ = ['Indices', 'LayerNet', 'check_pooling', 'info_of_layers', 'pools']

Indices = int | list[int] | tuple[int, ...] | None


class LayerNet(nn.Module):
    """Layers one after the other, then a classifier `fc`: the base class of the paper's small networks.

    A subclass has `layers_in_order`, `forward_features` and `forward_head`, and calls `_create_classifier`.
    """

    global_pool: str

    def __init__(
            self,
            feature_info: list[dict[str, Any]],
            feat_size: tuple[int, int],
            in_chans: int,
            drop_rate: float,
            pool_input: int = 1,
    ) -> None:
        """
        Args:
            feature_info: The layers' feature info, for timm's feature extractors.
            feat_size: Height and width of the last layer's output, before it is flattened.
            in_chans: Number of channels of the input.
            drop_rate: Share of features that dropout takes.
            pool_input: Average-pool the input by this factor first.

        Raises:
            ValueError: `drop_rate` is not from 0 to 1.
        """
        super().__init__()
        if not isinstance(drop_rate, (float, Real)) or not 0 <= drop_rate <= 1:
            raise ValueError(f'drop_rate must be a number from 0 to 1, got {drop_rate!r}.')
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feat_size = feat_size
        self.feature_info = feature_info
        self.num_features = feature_info[-1]['num_chs']
        self.input_pool: nn.Module = nn.AvgPool2d(pool_input) if pool_input > 1 else nn.Identity()

    def layers_in_order(self) -> list[nn.Module]:
        """The layers, of which each has a feature info."""
        raise NotImplementedError

    def _keep_layers(self, count: int) -> None:
        """Drop all layers but the first `count`."""
        raise NotImplementedError

    def _drop_hidden(self) -> None:
        """Drop what lies between the last layer and the classifier, if anything does."""

    def _create_classifier(self, num_classes: int, global_pool: str, **dd: Any) -> None:
        """Make a linear classifier of the last layer's flattened output, or none."""
        check_pooling(num_classes, global_pool)
        self.num_classes = num_classes
        self.global_pool = global_pool
        positions = self.feat_size[0] * self.feat_size[1] if global_pool else 1
        self.head_hidden_size = self.num_features * positions
        self.fc = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the layers' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return cast('nn.Module', self.fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; `global_pool=None` keeps the pooling."""
        pool = self.global_pool if global_pool is None else global_pool
        like = next(self.parameters())
        self._create_classifier(num_classes, pool, device=like.device, dtype=like.dtype)
        self.get_classifier().train(self.training)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The final features and the outputs of the selected layers.

        Args:
            x: Images.
            indices: An int selects the last n layers, None all, a list these indices.
            norm: Ignored: there are no norm layers.
            stop_early: Stop after the last selected layer.
            output_fmt: Must be 'NCHW'.
            intermediates_only: Return only the intermediate features.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}.")
        take = self._take_indices(indices)
        intermediates = []
        x = self.input_pool(x)
        for i, layer in enumerate(self.layers_in_order()):
            if stop_early and i > max(take):
                break
            x = checkpoint(layer, x) if self.grad_checkpointing else layer(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Drop the classifier and all layers after the last of `indices`; returns the selected indices."""
        take, count = self._take_indices(indices), len(self.feature_info)
        last = max(take)
        if last < count - 1:
            self._keep_layers(last + 1)
            self.num_features = self.feature_info[last]['num_chs']
        if prune_head or last < count - 1:
            self._drop_hidden()
            self.reset_classifier(0, '')
        return take

    def _take_indices(self, indices: Indices) -> list[int]:
        count = len(self.feature_info)
        if isinstance(indices, int):
            indices = [count - indices + i for i in range(indices)]
        take = [count + i if i < 0 else i for i in (range(count) if indices is None else indices)]
        if not take or not all(0 <= i < count for i in take):
            raise ValueError(f'indices must select among {count} layers, got {indices!r}.')
        return take


def pools(pooled: Sequence[int], count: int) -> int:
    """How many of the first `count` layers end in a pool, of the indices of all that do."""
    return sum(i < count for i in pooled)


def info_of_layers(channels: Sequence[int], pooled: Sequence[int]) -> list[dict[str, Any]]:
    """Feature info of `layers`, of which some end in a pool of 2 x 2."""
    return [{'num_chs': n, 'reduction': 2 ** pools(pooled, i + 1), 'module': f'layers.{i}'}
            for i, n in enumerate(channels)]


def check_pooling(num_classes: int, global_pool: str) -> None:
    """Raise a ValueError for a classifier of features that are not flattened."""
    if global_pool not in ('', 'flatten') or (num_classes > 0 and not global_pool):
        raise ValueError(
            f"global_pool must be 'flatten', or '' where num_classes is 0; got {global_pool!r} "
            f'with num_classes={num_classes}.')
