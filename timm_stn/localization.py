"""Localization networks: they look at an image or a feature map and regress a transform's parameters.

Paper, section 3.1 and appendix A.4 to A.6. Each network sees an anti-aliased shrink of its input at a fixed side, so
that one set of weights serves every input size. It ends in a :class:`ThetaRegression`, which starts at the identity.
"""
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from .dry import dry_forward
from .grid import centers, coordinate_dtype, has_values
from .layout import Layout, infer_layout, told_of_layout
from .precision import full_precision
from .standardize import Standardize, without_statistics
from .steps import bound_steps

__all__ = ['Localization', 'ThetaRegression', 'shrink', 'localization_names']


def shrink(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize feature maps with an anti-aliasing triangle filter; volumes are pooled over boxes.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W).
        size: Output (H, W) or (D, H, W).

    Returns:
        (N, C, *size) in the dtype of ``x``; ``x`` itself where the size agrees.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    volume = x.ndim == 5
    pixels = x.to(coordinate_dtype(x.dtype))
    with full_precision(x):
        if torch.onnx.is_in_onnx_export() and (volume or _is_traced()):
            return _shrink_by_matrices(pixels, size).to(x.dtype)
        if volume:
            return F.adaptive_avg_pool3d(x, size)  # type: ignore[arg-type]
        return F.interpolate(pixels, size, mode='bilinear', align_corners=False, antialias=True).to(x.dtype)


def _is_traced() -> bool:
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _shrink_by_matrices(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The same, as a product an axis: ONNX has no adaptive pool of volumes, its TorchScript exporter no triangles."""
    weigh = _triangles if x.ndim == 4 else _boxes
    for axis, m in enumerate(size, 2):
        weights = weigh(int(x.shape[axis]), m).to(x)
        x = torch.matmul(x.transpose(axis, x.ndim - 1), weights.T).transpose(axis, x.ndim - 1)
    return x


def _triangles(n: int, m: int) -> Tensor:
    """Weights (m, n) of n pixels in each of m: triangles as wide as the scale, normalised."""
    scale = n / m
    centers = (torch.arange(m, dtype=torch.float64).unsqueeze(1) + 0.5) * scale - 0.5
    weights = (1 - (torch.arange(n, dtype=torch.float64) - centers).abs() / max(scale, 1)).relu()
    return weights / weights.sum(1, keepdim=True)


def _boxes(n: int, m: int) -> Tensor:
    """Weights (m, n) of n pixels in each of m: equal ones for all pixels that a cell touches."""
    pixel, cell = torch.arange(n), torch.arange(m).unsqueeze(1)
    weights = ((pixel + 1) * m > cell * n) & (pixel * m < (cell + 1) * n)
    return weights / weights.sum(1, keepdim=True, dtype=torch.float64)


class ThetaRegression(nn.Module):
    """The last layer of a localization network: theta = lr_scale * (W h / fan_in + b), W and b start at zero.

    Dividing by the fan-in makes a step of any optimiser move theta by about lr * lr_scale, whatever the width. Forward
    uses gain * W with gain = lr_scale / fan_in while W receives the gradient as if the gain were 1, so that SGD, AdamW,
    Lion, Muon and LAMB all scale theta's step alike (a plain gain would enter twice under SGD). ``lr_scale`` is saved
    beside W (in billionths: an integer survives casts to half precision), and a checkpoint written with another one is
    converted when it is loaded, so that it may change at any time.

    Args:
        in_features: Width F of the features.
        out_features: Number P of parameters.
        lr_scale: Learning rate of theta relative to the rest of the network, from 1e-9 to 1e9; rounded to billionths.

    Raises:
        ValueError: ``lr_scale`` is not between these.
    """

    lr_scale_nano: Tensor

    def __init__(
            self,
            in_features: int,
            out_features: int,
            lr_scale: float = 1.0,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(lr_scale, (int, float)) or not 1e-9 <= lr_scale <= 1e9:
            raise ValueError(f'lr_scale must be a number from 1e-9 to 1e9, got {lr_scale!r}.')
        self.in_features = in_features
        self.out_features = out_features
        self.lr_scale = round(lr_scale * 1e9) / 1e9
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        self.register_buffer('lr_scale_nano', torch.tensor(round(self.lr_scale * 1e9), device=device))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.lr_scale_nano.fill_(round(self.lr_scale * 1e9))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, F) to parameters (N, P), in float32 (float64 for float64 weights) whatever the autocast."""
        dtype = coordinate_dtype(self.weight.dtype)
        with full_precision(x):
            weight = _gain(self.weight.to(dtype), self.lr_scale / self.in_features)
            return F.linear(x.to(dtype), weight, _gain(self.bias.to(dtype), self.lr_scale))

    def effective_weight(self) -> Tensor:
        """What multiplies the features, (P, F): the same whatever ``lr_scale`` it was trained with."""
        return self.weight.detach() * (self.lr_scale / self.in_features)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + 'lr_scale_nano')
        if saved is not None and not saved.is_meta:
            nano = round(self.lr_scale * 1e9)
            ratio = _ratio(prefix + 'lr_scale_nano', saved, nano)
            for name, own in self.named_parameters():
                value = state_dict.get(prefix + name)
                if value is not None and ratio != 1.0:
                    state_dict[prefix + name] = value.to(torch.promote_types(value.dtype, own.dtype)) * ratio
            state_dict[prefix + 'lr_scale_nano'] = torch.full_like(saved, nano, dtype=torch.int64)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'in_features={self.in_features}, out_features={self.out_features}, lr_scale={self.lr_scale}'


def _ratio(key: str, saved: Tensor, own: int) -> float:
    """Of the lr_scale of a checkpoint to one's own, in billionths; tools that average checkpoints make it a float."""
    value = saved.item() if saved.numel() == 1 else math.nan
    if not 1 <= value <= 10 ** 18 or value != int(value):
        raise ValueError(f'{key} must be one integer, billionths of lr_scale from 1e-9 to 1e9, got {saved} '
                         '(half precision cannot hold it: cast floating-point tensors only).')
    rounding = torch.finfo(saved.dtype).eps if saved.is_floating_point() else 0.0
    return 1.0 if abs(value - own) <= rounding * own else value / own


def _gain(weight: Tensor, gain: float) -> Tensor:
    """gain * weight, to full precision however small the gain is, with a gradient of 1; the second term is zero."""
    return weight if gain == 1.0 else gain * weight.detach() + (weight - weight.detach())


def _side(size: tuple[int, ...], limit: int, halve: bool) -> tuple[int, ...]:
    """The paper halves what its convolutional networks see, here to 14 at least; large maps are seen at ``limit``."""
    return tuple(min(max(s // 2, min(s, 14)) if halve else s, limit) for s in size)


class Moments(nn.Module):
    """What feature maps hold and where: (N, C, *size) to the means of all channels and their first moments.

    The output, (N, C (1 + ndim)), float32 or float64, is divided by the root mean square of the sample's map. A
    regression from it has one weight a channel and axis in place of one a position: it cannot learn places by heart,
    and what it learns of a thing at one place holds wherever the thing is.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(coordinate_dtype(x.dtype))
        moments = [x.flatten(2).mean(2)]
        for axis in range(2, x.ndim):
            along = x.movedim(axis, -1).flatten(2, -2).mean(2)
            moments.append((along * centers(x.shape[axis], x.device, x.dtype)).mean(2))
        rms = x.square().flatten(1).mean(1, keepdim=True).clamp_min(1e-12).sqrt()  # of 0, sqrt has no slope
        return torch.cat(moments, 1) / rms


def _moments(in_chans: int, size: tuple[int, ...], **dd: Any) -> tuple[nn.Module, int]:
    return Moments(), in_chans * (1 + len(size))


def _linear(in_chans: int, size: tuple[int, ...], **dd: Any) -> tuple[nn.Module, int]:
    return nn.Flatten(), in_chans * _numel(size)


def _fc(in_chans: int, size: tuple[int, ...], hidden: int = 32, depth: int = 3, **dd: Any) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Flatten()]
    width = in_chans * _numel(size)
    for _ in range(depth):
        layers += [nn.Linear(width, hidden, **dd), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers[:-1]), width


def _conv(
        in_chans: int,
        size: tuple[int, ...],
        channels: int = 20,
        hidden: int = 20,
        **dd: Any,
) -> tuple[nn.Module, int]:
    """conv 5x5 - max pool - conv 5x5 - FC, as appendix A.4; 3x3 with padding on maps too small for that."""
    conv, pool = (nn.Conv2d, nn.MaxPool2d) if len(size) == 2 else (nn.Conv3d, nn.MaxPool3d)
    kernel, pad = (5, 0) if min(size) >= 14 else (3, 1)
    stride = 2 if min(size) >= 4 else 1
    out = [((s - kernel + 1 + 2 * pad) // stride) - kernel + 1 + 2 * pad for s in size]
    body = nn.Sequential(
        conv(in_chans, channels, kernel, padding=pad, **dd), nn.ReLU(), pool(stride),
        conv(channels, channels, kernel, padding=pad, **dd), nn.ReLU(), nn.Flatten(),
        nn.Linear(channels * _numel(out), hidden, **dd),
    )
    return body, hidden


def _numel(size: Any) -> int:
    n = 1
    for s in size:
        n *= s
    return n


class _Unpooled(nn.Module):
    """A timm model's last features as maps (N, C, H, W)."""

    def __init__(self, net: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.net, self.layout = net, layout

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.maps(self.net(x))


def _timm(arch: str, in_chans: int, size: Any, pretrained: bool, **dd: Any) -> tuple[nn.Module, int]:
    """Moments of the last features, which say where things are; the pooled ones of a network that has no others."""
    cfg = get_pretrained_cfg(arch)
    sized = dict(img_size=tuple(size)) if cfg is not None and cfg.fixed_input_size else {}
    make = partial(timm.create_model, arch, pretrained=pretrained, in_chans=in_chans, num_classes=0, **sized)
    if 'global_pool' not in dd:
        with suppress(AssertionError, TypeError, ValueError):  # some cannot do without pooling
            net = make(global_pool='', **dd)
            layout = _layout(net, dry_forward(net, (in_chans, *size)), size)
            if layout is not None:
                return nn.Sequential(_Unpooled(net, layout), Moments()), 3 * layout.channels
    net = make(**dd)
    return net, dry_forward(net, (in_chans, *size)).shape[-1]


def _layout(net: Any, features: Any, size: Any) -> Layout | None:
    if not isinstance(features, Tensor):
        return None
    return infer_layout(tuple(features.shape), net.num_features, size=size, **told_of_layout(net))


# name -> (builder, largest side it sees by default, whether it sees half, settings); a ReLU follows those with `hidden`
_BODIES: dict[str, tuple[Callable, int, bool, tuple[str, ...]]] = {
    'conv': (_conv, 64, True, ('channels', 'hidden')),
    'fc': (_fc, 64, False, ('hidden', 'depth')),
    'linear': (_linear, 16, False, ()),
    'moments': (_moments, 64, False, ()),
}


def localization_names() -> list[str]:
    """Names that need no argument; ``timm:<arch>`` names any timm model."""
    return list(_BODIES)


class Localization(nn.Module):
    """A network from what is looked at to the parameters of a transform (paper, section 3.1).

    Args:
        kind: ``conv`` (conv 20@5x5, max pool, conv 20@5x5, FC 20), ``fc`` (FC 32, three times), both as in appendix
            A.4, ``linear``, ``moments``, or ``timm:<arch>``, moments of the last features of any timm model (of the
            pooled ones, where it cannot do without pooling).
        in_chans: Channels C of the input.
        input_size: (H, W) or (D, H, W) that the input usually has; sets the default of ``size``.
        num_params: Number P of parameters to regress.
        size: Side(s) that the network sees, an anti-aliased shrink of the input. Default: ``conv`` half the input, from
            14 (or the input, if that is less) to 64, ``fc`` at most 64, ``linear`` at most 16, ``timm:<arch>`` at most
            what that model was made for.
        lr_scale: See :class:`ThetaRegression`.
        pretrained: Load the pretrained weights of ``timm:<arch>``.
        **settings: Sizes of the network: ``channels``, ``hidden`` (conv), ``hidden``, ``depth`` (fc); for
            ``timm:<arch>`` what ``timm.create_model`` takes.

    Raises:
        ValueError: ``kind`` is none of these, or ``size`` or a setting is not positive.
        TypeError: The network has no such setting.
    """

    def __init__(
            self,
            kind: str,
            in_chans: int,
            input_size: tuple[int, ...],
            num_params: int,
            size: int | Sequence[int] | None = None,
            lr_scale: float = 10.0,
            pretrained: bool = False,
            device: Any = None,
            dtype: Any = None,
            **settings: Any,
    ) -> None:
        super().__init__()
        dd = dict(device=device, dtype=dtype)
        self.kind = kind
        self.size = self.resolve_size(kind, tuple(input_size), size)
        if kind.startswith('timm:'):
            self.body, width = _timm(kind[5:], in_chans, self.size, pretrained, **settings, **dd)
        else:
            _check_settings(kind, settings)
            self.body, width = _BODIES[kind][0](in_chans, self.size, **settings, **dd)
            self.reset_parameters()
        hidden = kind in _BODIES and 'hidden' in _BODIES[kind][3]
        self.standardize = Standardize(width, relu=hidden, device=device)
        self.regression = ThetaRegression(width, num_params, lr_scale, **dd)
        self.last_features: Tensor | None = None  # (N, F), what the regression saw; detached, only in eager mode
        bound_steps(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        bound_steps(self)

    def reset_parameters(self) -> None:
        """Start the layers before the regression as He et al. 2015 do (arXiv:1502.01852); not those of a timm model."""
        for m in () if self.kind.startswith('timm:') else self.body.modules():
            if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
                nn.init.zeros_(cast(Tensor, m.bias))

    @staticmethod
    def resolve_size(kind: str, input_size: tuple[int, ...], size: Any) -> tuple[int, ...]:
        """The sides that a network sees, of inputs of a size: ``size``, or by default."""
        ndim = len(input_size)
        _check_kind(kind, ndim)
        if size is not None:
            sides = (size,) * ndim if isinstance(size, int) else size
            if not are_sides(sides, ndim):
                raise ValueError(f'localization_size must be {ndim} positive integers, or one, got {size!r}.')
            return tuple(sides)
        if kind.startswith('timm:'):
            cfg = get_pretrained_cfg(kind[5:])
            native = tuple(cfg.input_size[1:]) if cfg is not None else (224, 224)
            fixed = cfg is not None and cfg.fixed_input_size
            return native if fixed else tuple(min(a, b) for a, b in zip(native, input_size))
        _, limit, halve, _ = _BODIES[kind]
        return _side(input_size, limit, halve)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), any size, to parameters (N, P), float32."""
        found = self.body(shrink(x, self.size))
        features = self.standardize(found)
        if has_values(features):
            self.last_features = features.detach()
        return self.standardize.track(self.regression(features), found)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        state_dict.update(without_statistics(state_dict, prefix + 'regression.weight'))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_kind(kind: Any, ndim: int) -> None:
    if isinstance(kind, str):
        if kind in _BODIES:
            return
        if kind.startswith('timm:'):
            if not timm.is_model(kind[5:]):
                raise ValueError(f'localization {kind!r}: timm knows no model {kind[5:]!r}.')
            if ndim != 2:
                raise ValueError(f"localization {kind!r} looks at images, volumes take one of {', '.join(_BODIES)}.")
            return
        if kind.startswith(('shared:', 'saliency:')):
            raise ValueError(f'localization {kind!r} needs the backbone of a network around it; here it must be one of '
                             f"{', '.join(_BODIES)}, timm:<arch>.")
    near = get_close_matches(str(kind), _BODIES, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    accepted = ', '.join([*_BODIES, 'timm:<arch>', 'shared:<stage>', 'saliency:<stage>'])
    raise ValueError(f'localization must be one of {accepted}; got {kind!r}.{hint}')


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def are_sides(value: Any, ndim: int) -> bool:
    return isinstance(value, Sequence) and len(value) == ndim and all(is_count(side) for side in value)


def _check_settings(kind: str, settings: dict[str, Any]) -> None:
    accepted = _BODIES[kind][3]
    for name, value in settings.items():
        if name not in accepted:
            names = ' and '.join(accepted) or 'no settings'
            raise TypeError(f'localization {kind!r} takes {names}, got {name}={value!r}.')
        if not is_count(value):
            raise ValueError(f'{name} of localization {kind!r} must be a positive integer, got {value!r}.')
