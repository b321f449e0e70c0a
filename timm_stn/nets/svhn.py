"""The paper's CNN for sequences of digits (section 4.2, SVHN) as a plain timm model: `svhn_cnn`.

Eight convolutions, three hidden layers and five classifiers of 11 classes: the digits 0 to 9, and 10 for none. One
linear layer of 55 equals the five; `logits.unflatten(1, (5, 11))` has them apart. Pixels are in [0, 1] without
normalisation.

Our choices where the paper gives no details: dropout takes single features, of the input of each layer but the first
two (so of what each layer gives, but the first convolution; transformers between layers see all). Hidden layers start
as in He et al. 2015 (arXiv:1502.01852): with PyTorch's default, the logits of different images differ by only 2e-6
after eleven of them (width 0.25). The paper does not say whether its network for 128 x 128 pixels differs; here it is
the same, and its first hidden layer sees more.
"""
from collections import OrderedDict
from numbers import Real
from typing import Any, cast

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch import traceable_assert
from .base import LayerNet, check_pooling, info_of_layers, pools

__all__ = ['SvhnCNN']

CHANNELS = (48, 64, 128, 160, 192, 192, 192, 192)
POOLED = (0, 2, 4, 6)  # layers that end in a max pool of 2 x 2
HIDDEN = 3072  # units of each of the three hidden layers


class SvhnCNN(LayerNet):
    """The paper's network for sequences of digits.

    conv 48 - pool - conv 64 - conv 128 - pool - conv 160 - conv 192 - pool - conv 192 - conv 192 - pool - conv 192 -
    FC 3072, three times - classifier. Convolutions are 5 x 5 with padding 2, pools 2 x 2; ReLU follows each layer. The
    paper's transformers stand before the first four convolutions: `stn_stages=('input', 0, 1, 2)`.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 64,
            width: float = 1.,
            num_classes: int = 55,
            in_chans: int = 3,
            global_pool: str = 'flatten',
            drop_rate: float = 0.5,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            img_size: Height and width of the input, 16 at least; they set the first hidden layer's width.
            width: Factor of all channels and hidden units, for smaller networks.
            num_classes: Outputs of the classifier, five times 11; 0 for no classifier.
            in_chans: Number of channels of the input.
            global_pool: 'flatten', or '' to leave the features as a map (without a classifier only).
            drop_rate: Dropout of each layer's input, but of the first two.

        Raises:
            ValueError: A value is not accepted.
        """
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        if min(to_2tuple(img_size)) < 2 ** len(POOLED):
            raise ValueError(f'img_size must be at least {2 ** len(POOLED)}, got {img_size}.')
        if not isinstance(width, (float, Real)) or not 0 < width < float('inf'):
            raise ValueError(f'width must be a number above 0, got {width!r}.')
        channels = [max(round(n * width), 1) for n in CHANNELS]
        super().__init__(info_of_layers(channels, POOLED), _size_after(img_size, len(CHANNELS)), in_chans, drop_rate)
        self.img_size = img_size
        self.layers = nn.Sequential(*(
            _layer(before, after, i in POOLED, drop_rate if i > 1 else 0., **dd)
            for i, (before, after) in enumerate(zip([in_chans, *channels], channels))))
        flat = self.num_features * self.feat_size[0] * self.feat_size[1]
        self.hidden = _hidden(flat, max(round(HIDDEN * width), 1), drop_rate, **dd)
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
                nn.init.zeros_(cast(Tensor, m.bias))
        self._create_classifier(num_classes, global_pool, **dd)

    def _create_classifier(self, num_classes: int, global_pool: str, **dd: Any) -> None:
        check_pooling(num_classes, global_pool)
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.flat_size = self.num_features * self.feat_size[0] * self.feat_size[1]
        hidden = [m.out_features for m in self.hidden if isinstance(m, nn.Linear)] or [self.flat_size]
        self.head_hidden_size = hidden[-1] if global_pool else self.num_features
        self.fc = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def layers_in_order(self) -> list[nn.Module]:
        """The eight convolutions, with what belongs to each."""
        return list(self.layers)

    def _keep_layers(self, count: int) -> None:
        self.layers = self.layers[:count]
        self.feat_size = _size_after(self.img_size, count)

    def _drop_hidden(self) -> None:
        self.hidden = nn.Sequential()

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that assign parameters to groups, for layer-wise learning rate decay."""
        return {'stem': r'^input_pool', 'blocks': r'^layers\.(\d+)', 'hidden': r'^hidden\.fc(\d+)'}

    def forward_features(self, x: Tensor) -> Tensor:
        """The output of the last convolution, a map (N, C, h, w)."""
        x = self.input_pool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return checkpoint_seq(self.layers, x)
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores of features, or the classifier's input with `pre_logits`."""
        if self.global_pool:
            x = x.flatten(1)
            traceable_assert(
                x.shape[1] == self.flat_size,
                f'The hidden layers take {self.flat_size} features: does the input have the size img_size?')
            x = F.dropout(self.hidden(x), p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _size_after(img_size: int | tuple[int, int], count: int) -> tuple[int, int]:
    height, width = to_2tuple(img_size)
    return height // 2 ** pools(POOLED, count), width // 2 ** pools(POOLED, count)


def _layer(in_chs: int, out_chs: int, pool: bool, drop_rate: float, **dd: Any) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if drop_rate:
        modules['drop'] = nn.Dropout(drop_rate)
    modules['conv'] = nn.Conv2d(in_chs, out_chs, 5, padding=2, **dd)
    if pool:
        modules['pool'] = nn.MaxPool2d(2)
    modules['act'] = nn.ReLU(inplace=True)  # after the pool: same values and gradients, for a quarter of the elements
    return nn.Sequential(modules)


def _hidden(width: int, units: int, drop_rate: float, **dd: Any) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, 4):
        modules[f'drop{i}'] = nn.Dropout(drop_rate)
        modules[f'fc{i}'] = nn.Linear(width, units, **dd)
        modules[f'act{i}'] = nn.ReLU(inplace=True)
        width = units
    return nn.Sequential(modules)


default_cfgs = generate_default_cfgs({
    'svhn_cnn.untrained': {
        'url': '', 'num_classes': 55, 'input_size': (3, 64, 64), 'fixed_input_size': True, 'pool_size': (4, 4),
        'crop_pct': 1.0, 'interpolation': 'bilinear', 'mean': (0., 0., 0.), 'std': (1., 1., 1.),
        'first_conv': 'layers.0.conv', 'classifier': 'fc', 'paper_ids': 'arXiv:1506.02025',
    },
})


@register_model  # type: ignore[untyped-decorator]
def svhn_cnn(pretrained: bool = False, **kwargs: Any) -> SvhnCNN:
    """The paper's CNN on SVHN (arXiv:1506.02025, section 4.2)."""
    feature_cfg = {'out_indices': tuple(range(len(CHANNELS))), 'flatten_sequential': True}
    return build_model_with_cfg(SvhnCNN, 'svhn_cnn', pretrained, feature_cfg=feature_cfg, **kwargs)
