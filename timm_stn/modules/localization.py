"""Localization networks: they look at an image or a feature map and regress a transform's parameters.

Paper, section 3.1 and appendix A.4 to A.6. Each network sees an anti-aliased shrink of its input at a fixed side, so
that one set of weights serves every input size. It ends in a :class:`ThetaRegression`, which starts at the identity.
"""
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..geometry.grid import has_values
from ..geometry.shrink import shrink
from ..geometry.sizes import is_count, plain, sides_of
from .moments import Moments
from .poses import Poses, check_poses
from .regression import ThetaRegression
from .standardize import Standardize, without_statistics
from .steps import bound_steps

__all__ = ['Localization', 'Regressed', 'Source', 'localization_names', 'parse_source']


def _side(size: tuple[int, ...], limit: int, halve: bool) -> tuple[int, ...]:
    """The paper halves what its convolutional networks see, here to 14 at least; large maps are seen at ``limit``."""
    return tuple(min(max(s // 2, min(s, 14)) if halve else s, limit) for s in size)


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
        depth: int = 1,
        **dd: Any,
) -> tuple[nn.Module, int]:
    """conv 5x5 - max pool - conv 5x5 - FC, as appendix A.4; 3x3 with padding on maps too small for that.

    ``depth`` is that of the FC layers: two in appendix A.5.
    """
    conv, pool = (nn.Conv2d, nn.MaxPool2d) if len(size) == 2 else (nn.Conv3d, nn.MaxPool3d)
    kernel, pad = (5, 0) if min(size) >= 14 else (3, 1)
    stride = 2 if min(size) >= 4 else 1
    out = [((s - kernel + 1 + 2 * pad) // stride) - kernel + 1 + 2 * pad for s in size]
    body = nn.Sequential(
        conv(in_chans, channels, kernel, padding=pad, **dd), nn.ReLU(), pool(stride),
        conv(channels, channels, kernel, padding=pad, **dd), nn.ReLU(), nn.Flatten(),
        nn.Linear(channels * _numel(out), hidden, **dd),
    )
    for _ in range(depth - 1):
        body.extend([nn.ReLU(), nn.Linear(hidden, hidden, **dd)])
    return body, hidden


def _numel(size: Any) -> int:
    n = 1
    for s in size:
        n *= s
    return n


ON_FEATURES = ('shared', 'saliency')
ORBIT = 'orbit'
MOST_COLORS = 4  # channels of an image
MOST = 8192  # of a setting that is part of a name, as it may be in a config that somebody else wrote
WITH_NAME = ('timm', ORBIT, *ON_FEATURES)


class Body(NamedTuple):
    """The layers of a localization network before its regression."""
    build: Callable[..., tuple[nn.Module, int]]  # (in_chans, size, **settings, device, dtype) to layers, their width
    side: int  # largest that it sees by default
    sees_half: bool = False  # by default, as in the paper
    settings: tuple[str, ...] = ()  # positive integers, with defaults of their own
    relu: bool = False  # after its features, which are then standardized first


_BODIES: dict[str, Body] = {
    'conv': Body(_conv, 64, sees_half=True, settings=('channels', 'hidden', 'depth'), relu=True),
    'fc': Body(_fc, 64, settings=('hidden', 'depth'), relu=True),
    'linear': Body(_linear, 16),
    'moments': Body(_moments, 64),
}


def localization_names() -> list[str]:
    """Names that need no argument; ``timm:<arch>`` names any timm model."""
    return list(_BODIES)


class Source(NamedTuple):
    """What regresses theta, as the argument ``localization`` names it: ``conv``, ``timm:resnet18``, ``saliency:3``."""
    kind: str
    of: str = ''  # the architecture of ``timm``, the stage of ``shared`` and ``saliency``, the settings of others
    poses: Poses | None = None  # of ``orbit``

    @property
    def on_features(self) -> bool:
        """Whether it needs the features of a backbone around it."""
        return self.kind in ON_FEATURES

    @property
    def needs_network(self) -> bool:
        """Whether it asks the network around it."""
        return self.on_features or self.poses is not None

    @property
    def is_timm(self) -> bool:
        return self.kind == 'timm'

    @property
    def settings(self) -> dict[str, int]:
        """Sizes of a network of ours: ``fc:hidden=32,depth=2``."""
        pairs = self.of.split(',') if self.of and self.kind in _BODIES else []
        return {name: int(value) for name, _, value in (pair.partition('=') for pair in pairs)}

    def check_alone(self, ndim: int) -> None:
        """Raise a ValueError where this is no network that can look at inputs of ``ndim`` dimensions by itself."""
        name = f'{self.kind}:{self.of}' if self.kind in WITH_NAME else self.kind
        if self.kind == 'auto':  # which a network resolves
            raise _unknown(name)
        if self.needs_network:
            raise ValueError(f'localization {name!r} needs the backbone of a network around it; here it must be one of '
                             f"{', '.join(_BODIES)}, timm:<arch>.")
        if self.is_timm:
            from .timm_body import is_known
            if not is_known(self.of):
                raise ValueError(f'localization {name!r}: timm knows no model {self.of!r}.')
            if ndim != 2:
                raise ValueError(f"localization {name!r} looks at images, volumes take one of {', '.join(_BODIES)}.")


def parse_source(localization: Any) -> Source:
    """Read the argument ``localization``.

    Raises:
        ValueError: It names no localization network; the message has the nearest name.
    """
    if isinstance(localization, (list, tuple)):
        try:
            return Source(ORBIT, poses=check_poses(localization, 'localization'))
        except ValueError:
            raise _unknown(localization) from None
    kind, colon, of = localization.partition(':') if isinstance(localization, str) else (localization, '', '')
    if isinstance(kind, str) and (kind in WITH_NAME if colon else kind in (*_BODIES, 'auto')):
        if kind == ORBIT:
            poses = int(of) if of.isdecimal() else of
            return Source(kind, of, check_poses(poses, f'localization={localization!r}: poses'))
        return Source(kind, of)
    if isinstance(kind, str) and kind in _BODIES and _are_settings(kind, of.split(',')):
        return Source(kind, of)
    raise _unknown(localization)


def _are_settings(kind: str, pairs: list[str]) -> bool:
    """Whether each text is ``name=value`` of a setting that a network has, and of another one."""
    found = {name: value for name, _, value in (pair.partition('=') for pair in pairs)}
    return len(found) == len(pairs) and found.keys() <= {*_BODIES[kind].settings} and all(
        value.isascii() and value.isdecimal() and value[0] != '0' and int(value) <= MOST for value in found.values())


def _unknown(localization: Any) -> ValueError:
    near = get_close_matches(str(localization), _BODIES, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    sized = [f"{name}:{','.join(f'{setting}=<n>' for setting in body.settings)}" for name, body in _BODIES.items()
             if body.settings]
    accepted = ', '.join([*_BODIES, 'timm:<arch>', 'shared:<stage>', 'saliency:<stage>', 'orbit:<n>', *sized])
    return ValueError(
        f'localization must be one of {accepted}, or a list of matrices (2, 3); got {localization!r}.{hint}')


class Regressed(NamedTuple):
    """What a localization network gives for N images and G glimpses.

    ``params`` (N, G * P) are of the transform's family. ``energy`` (N, h, w), zero or more, says where there is
    something to look at; ``start``, matrices (N * G, d, d + 1), where the first look starts, for families with a
    matrix; with neither, looks start from the base of the transformer. Where every look shall start from an energy of
    its own, the network says so by an attribute ``finds``, True.
    """
    params: Tensor
    energy: Tensor | None = None
    start: Tensor | None = None


class Localization(nn.Module):
    """A network from what is looked at to the parameters of a transform (paper, section 3.1).

    Args:
        kind: ``conv`` (conv 20@5x5, max pool, conv 20@5x5, FC 20), ``fc`` (FC 32, three times), both as in appendix
            A.4, ``linear``, ``moments``, or ``timm:<arch>``, moments of the last features of any timm model (of the
            pooled ones, where it cannot do without pooling). Settings may be part of it: ``fc:hidden=32,depth=2``.
        in_chans: Channels C of the input.
        input_size: (H, W) or (D, H, W) that the input usually has; sets the default of ``size``.
        num_params: Number P of parameters to regress.
        size: Side(s) that the network sees, an anti-aliased shrink of the input. Default: ``conv`` half the input, from
            14 (or the input, if that is less) to 64, ``fc`` at most 64, ``linear`` at most 16, ``timm:<arch>`` at most
            what that model was made for.
        lr_scale: See :class:`ThetaRegression`.
        pretrained: Load the pretrained weights of ``timm:<arch>``.
        **settings: Sizes of the network: ``channels``, ``hidden``, ``depth`` (conv), ``hidden``, ``depth`` (fc); for
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
        dd, settings = dict(device=device, dtype=dtype), plain(settings)
        self.kind = kind
        self.size = self.resolve_size(kind, tuple(input_size), size)
        source = parse_source(kind)
        if source.is_timm:
            from .timm_body import timm_body
            self.body, width = timm_body(source.of, in_chans, self.size, pretrained, **settings, **dd)
        else:
            settings = {**source.settings, **settings}
            _check_settings(source.kind, settings)
            self.body, width = _BODIES[source.kind].build(in_chans, self.size, **settings, **dd)
            self.reset_parameters()
        relu = not source.is_timm and _BODIES[source.kind].relu
        self.standardize = Standardize(width, relu=relu, device=device)
        self.regression = ThetaRegression(width, num_params, lr_scale, **dd)
        self.last_features: Tensor | None = None  # (N, F), what the regression saw; detached, only in eager mode
        bound_steps(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        bound_steps(self)

    def reset_parameters(self) -> None:
        """Start the layers before the regression as He et al. 2015 do (arXiv:1502.01852); not those of a timm model."""
        if parse_source(self.kind).is_timm:
            return
        for m in self.body.modules():
            if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    @staticmethod
    def resolve_size(kind: str, input_size: tuple[int, ...], size: Any) -> tuple[int, ...]:
        """The sides that a network sees, of inputs of a size: ``size``, or by default."""
        source, ndim = parse_source(kind), len(input_size)
        source.check_alone(ndim)
        if size is not None:
            return sides_of(size, ndim, 'localization_size')
        if source.is_timm:
            from .timm_body import size_seen  # imports timm, which no other network needs
            return size_seen(source.of, input_size)
        body = _BODIES[source.kind]
        return _side(input_size, body.side, body.sees_half)

    def forward(self, x: Tensor) -> Regressed:
        """(N, C, H, W), any size, to parameters (N, P), float32."""
        found = self.body(_as_convolved(shrink(x, self.size), self.body))  # (N, F)
        features = self.standardize(found)  # (N, F)
        if has_values(features):
            self.last_features = features.detach()
        return Regressed(self.standardize.track(self.regression(features), found))  # (N, P)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        state_dict.update(without_statistics(state_dict, prefix + 'regression.weight'))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _as_convolved(x: Tensor, body: nn.Module) -> Tensor:
    """The same pixels, channels last where they are images for the network `conv`, in eager mode on a CPU.

    Max pooling and its gradient take a fifth of the time then. For features the convolutions would take longer.
    """
    if not has_values(x) or x.device.type != 'cpu' or not isinstance(body, nn.Sequential):
        return x
    first = body[0]
    if not isinstance(first, nn.Conv2d) or first.in_channels > MOST_COLORS:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _check_settings(kind: str, settings: dict[str, Any]) -> None:
    accepted = _BODIES[kind].settings
    for name, value in settings.items():
        if name not in accepted:
            names = ', '.join(accepted) or 'no settings'
            raise TypeError(f'localization {kind!r} takes {names}, got {name}={value!r}.')
        if not is_count(value):
            raise ValueError(f'{name} of localization {kind!r} must be a positive integer, got {value!r}.')
