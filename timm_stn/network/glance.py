"""A glance: the backbone looks at the whole image first, and its features tell its transformer where to look."""
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from ..geometry.layout import Layout
from ..geometry.shrink import shrink
from ..geometry.sizes import as_sides, sides_of
from ..geometry.transforms import get_transform
from ..modules.evaluation import as_in_evaluation
from ..modules.localization import Localization
from ..modules.orbit import Orbit
from ..modules.poses import Poses
from ..modules.saliency import Saliency
from ..modules.settings import TransformerSettings
from ..modules.spatial_transformer import SpatialTransformer
from ..modules.trial import trial_forward
from .arguments import InputTransformer, StnArguments
from .stages import feature_infos, name_of, resolve_stage, stage_layouts
from .timm_model import Nest, Placement, TimmModel

__all__ = ['Glance', 'make_input_transformer', 'resolve_auto']

LEAST_MAP = 7  # sides of the smallest map whose places are worth looking at


class Glance(NamedTuple):
    """How the backbone glances at the image: ``shared:<stage>``, ``saliency:<stage>`` and ``stn_target='input'``."""
    stage: int  # index into the backbone's feature_info
    size: tuple[int, int] | None  # of what it is shown, for the config; None: as large as the streams
    learns: bool  # gradients reach the backbone (Finnveden et al. 2020); else it is asked as in evaluation
    is_stream: bool  # the network sees the whole image anyway (`stn_whole`)

    def shown(self, x: Tensor, streams: tuple[int, int]) -> Tensor:
        """Images (N, C, H, W) as the backbone is shown them: as large as the streams where it is one of them."""
        return shrink(x, streams if self.is_stream else self.size or streams)

    def maps(self, backbone: TimmModel, x: Tensor, streams: tuple[int, int]) -> Tensor:
        """The stage's features (N, C', h, w) of images (N, C, H, W); ``streams`` is the size of the streams."""
        ask = partial(
            backbone.forward_intermediates, self.shown(x, streams), indices=[self.stage],
            intermediates_only=True, stop_early=True)
        features = ask() if self.learns else as_in_evaluation(backbone, x, ask)
        found = cast('list[Tensor]', features)[0]
        return found if self.learns else found.detach()  # in forward mode, too, where no_grad lets derivatives pass

    def maps_and_features(
            self,
            backbone: TimmModel,
            x: Tensor,
            streams: tuple[int, int],
            **kwargs: object,
    ) -> tuple[Tensor, Nest]:
        """Those, and the last features, of one pass: where the whole image is a stream anyway, in evaluation."""
        found = backbone.forward_intermediates(self.shown(x, streams), indices=[self.stage], **kwargs)
        final, maps = cast('tuple[Nest, list[Tensor]]', found)
        return maps[0].detach(), final


def make_input_transformer(
        backbone: nn.Module,
        arguments: StnArguments,
        input_size: tuple[int, int, int],
        dd: Placement,
        **of_timm: Any,
) -> tuple[SpatialTransformer | None, Glance | None]:
    """The transformer of the input, if there is one, and the glance that tells where it looks, if the backbone does.

    Args:
        backbone: The timm model.
        arguments: With nothing left that is ``auto``.
        input_size: (C, H, W) of what enters.
        dd: Device and dtype.
        **of_timm: For a localization network ``timm:<arch>``.
    """
    planned = arguments.input_transformer()
    if planned is None:
        return None, None
    new: dict[str, Any] = dict(size=arguments.size, glimpses=arguments.glimpses, **dd)
    if planned.poses is not None:
        return _make_searching(backbone, planned.settings, planned.poses, input_size, new), None
    if planned.features_of is None:
        extra = of_timm if arguments.source(planned.stage).is_timm else {}
        stn = SpatialTransformer(input_size[0], input_size[1:], **vars(planned.settings), **new, **extra)
        return stn, None
    return _make_glancing(backbone, arguments, planned, input_size, new, dd)


def _make_glancing(
        backbone: nn.Module,
        arguments: StnArguments,
        planned: InputTransformer,
        input_size: tuple[int, int, int],
        new: dict[str, Any],
        dd: Placement,
) -> tuple[SpatialTransformer, Glance]:
    settings, streams = planned.settings, as_sides(arguments.size or input_size[1:])
    size = None
    if not planned.learns:  # else the glance is as large as the streams, and the size is of what the network sees
        size = _fixed_size(settings.localization_size, arguments, streams)
        settings = replace(settings, localization_size=None)
    try:
        stage = cast(int | str, planned.features_of)
        index, layout = _feature_stage(backbone, stage, (input_size[0], *(size or streams)))
    except ValueError as error:
        if planned.learns:  # it is among the stages
            raise
        asked = arguments.settings(planned.stage).localization
        raise ValueError(str(error).replace('stn_stages', f'stn_localization={asked!r}', 1)) from None
    scales = settings.scales
    if planned.is_salient:
        _check_salient(arguments, planned)
    plain = {**vars(settings), 'scale': scales[0], 'localization': nn.Identity()}  # which is replaced below
    stn = SpatialTransformer(input_size[0], input_size[1:], **plain, **new)
    make = Saliency if planned.is_salient else Localization
    stn.scales = scales
    stn.localization = make(
        settings.localization, layout.channels, layout.size, stn.glimpses * stn.transform.num_params,
        size=settings.localization_size, lr_scale=settings.lr_scale, **dd)
    stn.stage = planned.stage
    return stn, Glance(index, size, planned.learns, arguments.whole)


def _check_salient(arguments: StnArguments, planned: InputTransformer) -> None:
    settings = planned.settings
    zooms = get_transform(settings.transform).has_density
    fits = settings.scales == (1, 1) and arguments.glimpses == 1 if zooms else settings.scales[0] < 1
    if not fits:
        needed = 'stn_scale must be 1, stn_glimpses 1,' if zooms else 'stn_scale must be below 1'
        raise ValueError(
            f"stn_localization='saliency:{planned.features_of}' is for glimpses, or to zoom: {needed} with "
            f'stn_transform={settings.transform!r}; got {settings.scale!r}, {arguments.glimpses}.')


def _make_searching(
        backbone: nn.Module,
        settings: TransformerSettings,
        poses: Poses,
        input_size: tuple[int, int, int],
        new: dict[str, Any],
) -> SpatialTransformer:
    if not hasattr(backbone, 'reset_classifier'):
        raise ValueError(f'stn_localization={settings.localization!r} asks a classifier, which '
                         f'{type(backbone).__name__} is not.')
    size = settings.localization_size
    shown = None if size is None else cast('tuple[int, int]', sides_of(size, 2, 'stn_localization_size'))
    plain = {**vars(settings), 'localization': nn.Identity(), 'localization_size': None}
    stn = SpatialTransformer(input_size[0], input_size[1:], **plain, **new)
    stn.localization = Orbit(poses, stn.transform.num_params, shown)
    if shown is not None:
        try:
            trial_forward(backbone, (input_size[0], *shown))
        except Exception as error:
            raise ValueError(f'stn_localization_size={size!r}: {name_of(backbone)} takes no pictures of this size: '
                             f'{error}') from None
    return stn


def _feature_stage(backbone: nn.Module, stage: int | str, size: tuple[int, int, int]) -> tuple[int, Layout]:
    """Index and layout of a stage that is one of the backbone's features."""
    name, info = resolve_stage(backbone, stage)
    if 'index' not in info and 'num_chs' not in info:
        raise ValueError(
            f'stn_stages: {name} is no feature stage; stn_target, shared:<stage> and saliency:<stage> need one.')
    names = [resolve_stage(backbone, i)[0] for i in range(len(feature_infos(backbone)))]
    return names.index(name), stage_layouts(backbone, [stage], size)[stage][1]


def _fixed_size(size: Any, arguments: StnArguments, streams: tuple[int, int]) -> tuple[int, int] | None:
    """What ``stn_localization_size`` asks for, (H, W)."""
    if size is None:
        return None
    height, width = sides_of(size, 2, 'stn_localization_size')
    if arguments.whole and (height, width) != streams:
        raise ValueError(f'stn_localization_size={size!r}: with stn_whole, features of the whole image tell where '
                         f'to look, and those are of {streams}; leave it out.')
    return height, width


def resolve_auto(backbone: nn.Module, arguments: StnArguments, input_size: tuple[int, int, int]) -> StnArguments:
    """What ``auto`` stands for: glimpses look where the backbone responds, in its deepest map of 7 x 7 at least."""
    for stage in arguments.stages:
        if arguments.source(stage).kind == 'auto':
            salient = stage == arguments.input_stage and arguments.wants_saliency
            found = _deepest_map(backbone, arguments, input_size) if salient else None
            arguments = arguments.resolve(stage, localization='conv' if found is None else f'saliency:{found}')
    return arguments


def _deepest_map(backbone: nn.Module, arguments: StnArguments, input_size: tuple[int, int, int]) -> int | None:
    """Index of the last stage that yields one map of 7 x 7 at least from what a stream shows."""
    size = as_sides(arguments.size or input_size[1:])
    for i, info in reversed(list(enumerate(feature_infos(backbone)))):
        if min(size) >= LEAST_MAP * info.get('reduction', min(size)):
            with suppress(ValueError):
                stage_layouts(backbone, [i], (input_size[0], *size))
                return i
    return None
