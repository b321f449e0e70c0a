"""A small CNN for colour images of 32 x 32 pixels, made for traffic signs, as a plain timm model: `signs_cnn`.

Not of the paper: seven convolutions in the manner of VGG (Simonyan & Zisserman 2015, arXiv:1409.1556), with batch norm;
1.3 million parameters, 45 million multiply-adds. Pixels are in [0, 1]; the network itself takes each image's mean from
them and divides by its standard deviation, so that brightness and contrast do not matter.
"""
from collections import OrderedDict
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from .base import LayerNet, info_of_layers

__all__ = ['SignsCNN']

CHANNELS = (32, 64, 64, 128, 128, 256, 256)
KERNELS = (5, 3, 3, 3, 3, 3, 3)
POOLED = (0, 2, 4)  # layers that end in a max pool of 2 x 2


class SignsCNN(LayerNet):
    """Convolutions with padding, batch norm and ReLU, three max pools of 2 x 2, and a classifier.

    conv 32 (5 x 5) - pool - conv 64 - conv 64 - pool - conv 128 - conv 128 - pool - conv 256 - conv 256 - classifier,
    which sees a map of 4 x 4, as an image of 32 x 32 has; the maps of larger ones are max-pooled to it.
    """

    def __init__(
            self,
            width: float = 1.,
            num_classes: int = 43,
            in_chans: int = 3,
            global_pool: str = 'flatten',
            drop_rate: float = 0.3,
            grid: int = 4,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            width: Factor of all channels.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Number of channels of the input.
            global_pool: 'flatten', or '' to leave the features as a map (without a classifier only).
            drop_rate: Dropout before the classifier.
            grid: Side of the map that the classifier sees.

        Raises:
            ValueError: A value is not accepted.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        if not isinstance(width, (int, float)) or not 0 < width < float('inf'):
            raise ValueError(f'width must be a number above 0, got {width!r}.')
        if not isinstance(grid, int) or grid < 1:
            raise ValueError(f'grid must be an integer above 0, got {grid!r}.')
        channels = [max(round(n * width), 1) for n in CHANNELS]
        super().__init__(info_of_layers(channels, POOLED), (grid, grid), in_chans, drop_rate)
        self.input_pool = nn.GroupNorm(1, in_chans, affine=False)  # each image by its own mean and deviation
        self.layers = nn.Sequential(*(
            _layer(before, after, KERNELS[i], i in POOLED, **dd)
            for i, (before, after) in enumerate(zip([in_chans, *channels], channels))))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
        self.pool = nn.AdaptiveMaxPool2d(grid)
        self._create_classifier(num_classes, global_pool, **dd)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def layers_in_order(self) -> list[nn.Module]:
        """The seven convolutions, with what belongs to each."""
        return list(self.layers)

    def _keep_layers(self, count: int) -> None:
        self.layers = self.layers[:count]

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that assign parameters to groups, for layer-wise learning rate decay."""
        return {'stem': r'^input_pool', 'blocks': r'^layers\.(\d+)'}

    def forward_features(self, x: Tensor) -> Tensor:
        """The output of the last convolution, a map (N, C, h, w)."""
        x = self.input_pool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return checkpoint_seq(self.layers, x)
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores of features, or the classifier's input with `pre_logits`."""
        if self.global_pool:
            x = self.pool(x).flatten(1)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _layer(in_chs: int, out_chs: int, kernel_size: int, pool: bool, **dd: Any) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    modules['conv'] = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, bias=False, **dd)
    if pool:
        modules['pool'] = nn.MaxPool2d(2)  # before the batch norm: a quarter of the elements
    modules['bn'] = nn.BatchNorm2d(out_chs, **dd)
    modules['act'] = nn.ReLU(inplace=True)
    return nn.Sequential(modules)


default_cfgs = generate_default_cfgs({
    'signs_cnn.untrained': {
        'url': '', 'num_classes': 43, 'input_size': (3, 32, 32), 'pool_size': (4, 4),
        'crop_pct': 1.0, 'interpolation': 'bilinear', 'mean': (0., 0., 0.), 'std': (1., 1., 1.),
        'first_conv': 'layers.0.conv', 'classifier': 'fc',
    },
})


@register_model  # type: ignore[untyped-decorator]
def signs_cnn(pretrained: bool = False, **kwargs: Any) -> SignsCNN:
    """A small CNN with batch norm for colour images of 32 x 32 pixels."""
    feature_cfg = {'out_indices': tuple(range(len(CHANNELS))), 'flatten_sequential': True}
    return build_model_with_cfg(SignsCNN, 'signs_cnn', pretrained, feature_cfg=feature_cfg, **kwargs)
