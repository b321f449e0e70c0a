"""The paper's own small networks of section 4.1, distorted MNIST, as plain timm models: `mnist_cnn` and `mnist_fcn`.

They take pixels in [0, 1] without normalisation (mean 0, std 1): black is zero, so zero padding is background.
Weights have PyTorch's default initialisation; the paper does not name its own.
"""
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch import traceable_assert
from .base import LayerNet

__all__ = ['MnistCNN', 'MnistFCN', 'MnistNet']


class MnistNet(LayerNet):
    """Two layers and a linear classifier on their flattened output: the base class of `MnistCNN` and `MnistFCN`."""

    def __init__(
            self,
            layers: Sequence[nn.Sequential],
            feature_info: list[dict[str, Any]],
            feat_size: tuple[int, int],
            num_classes: int = 10,
            in_chans: int = 1,
            global_pool: str = 'flatten',
            drop_rate: float = 0.,
            pool_input: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            layers: The two layers.
            feature_info: The two layers' feature info, for timm's feature extractors.
            feat_size: Height and width of the second layer's output, before it is flattened.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Number of channels of the input.
            global_pool: 'flatten', or '' to leave the features as a map (without a classifier only).
            drop_rate: Dropout before the classifier.
            pool_input: Average-pool the input by this factor first.
        """
        super().__init__(feature_info, feat_size, in_chans, drop_rate, pool_input)
        self.layer1, self.layer2 = layers
        self._create_classifier(num_classes, global_pool, device=device, dtype=dtype)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that assign parameters to groups, for layer-wise learning rate decay."""
        return {'stem': r'^input_pool', 'blocks': r'^layer(\d+)'}

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def layers_in_order(self) -> list[nn.Module]:
        """The two layers."""
        return [self.layer1, self.layer2]

    def _keep_layers(self, count: int) -> None:
        self.layer2 = nn.Sequential()

    def forward_features(self, x: Tensor) -> Tensor:
        """The output of the second layer, a map (N, C, h, w)."""
        x = self.input_pool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return checkpoint(self.layer2, checkpoint(self.layer1, x))
        return self.layer2(self.layer1(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores of features, or the classifier's input with `pre_logits`."""
        if self.global_pool:
            x = x.flatten(1)
            traceable_assert(
                x.shape[1] == self.head_hidden_size,
                f'The classifier takes {self.head_hidden_size} features: does the input have the size img_size?')
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _layer(in_chs: int, out_chs: int, kernel_size: int | tuple[int, int], pool: int, **dd: Any) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    modules['conv'] = nn.Conv2d(in_chs, out_chs, kernel_size, **dd)
    if pool > 1:
        modules['pool'] = nn.MaxPool2d(pool)
    modules['act'] = nn.ReLU(inplace=True)  # after the pool: same values and gradients, for a quarter of the elements
    return nn.Sequential(modules)


def _info(num_chs: Sequence[int], reductions: Sequence[int]) -> list[dict[str, Any]]:
    names = ('layer1', 'layer2')
    return [{'num_chs': c, 'reduction': r, 'module': m} for c, r, m in zip(num_chs, reductions, names, strict=True)]


class MnistCNN(MnistNet):
    """The paper's CNN: conv 9 x 9, max-pool 2, conv 7 x 7, max-pool 2, classifier; no padding, ReLU after each conv."""

    def __init__(
            self,
            img_size: int | tuple[int, int] = 28,
            channels: tuple[int, int] = (32, 32),
            num_classes: int = 10,
            in_chans: int = 1,
            global_pool: str = 'flatten',
            drop_rate: float = 0.,
            pool_input: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            img_size: Height and width of the input; they set the classifier's width.
            channels: Filters of the two convolutions.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Number of channels of the input.
            global_pool: 'flatten', or '' to leave the features as a map (without a classifier only).
            drop_rate: Dropout before the classifier.
            pool_input: Average-pool the input by this factor first (2 in the paper's cluttered digits).
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        feat_size = tuple(((n // pool_input - 8) // 2 - 6) // 2 for n in to_2tuple(img_size))
        if min(feat_size) < 1:
            raise ValueError(
                f'img_size must be at least {24 * pool_input} with pool_input={pool_input}, got {img_size}.')
        layers = [
            _layer(in_chans, channels[0], 9, pool=2, **dd),
            _layer(channels[0], channels[1], 7, pool=2, **dd),
        ]
        super().__init__(
            layers, _info(channels, (2 * pool_input, 4 * pool_input)), (feat_size[0], feat_size[1]),
            num_classes, in_chans, global_pool, drop_rate, pool_input, **dd)


class MnistFCN(MnistNet):
    """The paper's fully connected network: two hidden layers and the classifier, ReLU after the hidden ones.

    The first layer is a convolution whose kernel covers the whole input, which equals a linear layer with the same
    weights. So features are 1 x 1 maps, and timm can adapt `in_chans`.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 28,
            hidden: int = 256,
            num_classes: int = 10,
            in_chans: int = 1,
            global_pool: str = 'flatten',
            drop_rate: float = 0.,
            pool_input: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            img_size: Height and width of the input; they set the first layer's kernel.
            hidden: Units of each hidden layer.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Number of channels of the input.
            global_pool: 'flatten', or '' to leave the features as a 1 x 1 map (without a classifier only).
            drop_rate: Dropout before the classifier.
            pool_input: Average-pool the input by this factor first.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        height, width = (n // pool_input for n in to_2tuple(img_size))
        if min(height, width) < 1:
            raise ValueError(f'img_size must be at least pool_input={pool_input}, got {img_size}.')
        layers = [
            _layer(in_chans, hidden, (height, width), pool=1, **dd),
            _layer(hidden, hidden, 1, pool=1, **dd),
        ]
        reduction = pool_input * max(height, width)
        super().__init__(
            layers, _info((hidden, hidden), (reduction, reduction)), (1, 1),
            num_classes, in_chans, global_pool, drop_rate, pool_input, **dd)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'url': '', 'num_classes': 10, 'input_size': (1, 28, 28), 'fixed_input_size': True, 'pool_size': (2, 2),
        'crop_pct': 1.0, 'interpolation': 'bilinear', 'mean': (0.,), 'std': (1.,),
        'first_conv': 'layer1.conv', 'classifier': 'fc', 'paper_ids': 'arXiv:1506.02025',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    'mnist_cnn.untrained': _cfg(),
    'mnist_fcn.untrained': _cfg(pool_size=(1, 1)),
})


def _create(cls: type[MnistNet], variant: str, pretrained: bool, **kwargs: Any) -> MnistNet:
    return build_model_with_cfg(cls, variant, pretrained, feature_cfg={'out_indices': (0, 1)}, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def mnist_cnn(pretrained: bool = False, **kwargs: Any) -> MnistNet:
    """The paper's CNN on MNIST (arXiv:1506.02025, section 4.1)."""
    return _create(MnistCNN, 'mnist_cnn', pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def mnist_fcn(pretrained: bool = False, **kwargs: Any) -> MnistNet:
    """The paper's fully connected network on MNIST (arXiv:1506.02025, section 4.1)."""
    return _create(MnistFCN, 'mnist_fcn', pretrained, **kwargs)
