"""A timm model with spatial transformers in it: it looks first, then the backbone answers."""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from .._timm import feature_take_indices
from ..geometry.shrink import shrink
from ..geometry.sizes import as_sides, plain, sides_of
from ..geometry.symbolic import Recorded, recorded_method, symbol_in
from ..modules.evaluation import as_in_evaluation
from ..modules.localization import Regressed
from ..modules.orbit import Orbit
from ..modules.record import describe
from ..modules.spatial_transformer import SpatialTransformer
from .arguments import StnArguments
from .attach import StageTransformer, attach
from .glance import Glance, make_input_transformer, resolve_auto
from .keys import as_tuple, prefix_of, prefixed
from .scripting import scriptable, traced_signature
from .stages import check_keeps_tokens, feature_infos, stage_layouts
from .streams import StreamsNetwork, map_tensors
from .timm_model import Nest, Placement, TimmModel
from .wrapper import if_backbone_can

__all__ = ['SpatialTransformerNetwork']

register_notrace_module(SpatialTransformer)
register_notrace_module(StageTransformer)


class SpatialTransformerNetwork(Recorded, StreamsNetwork):
    """A timm backbone that looks through spatial transformers (Jaderberg et al. 2015).

    Images pass the input transformer, if there is one, then the backbone; transformers at stages are children of the
    stages' own modules. What timm asks of a model is answered here; other attributes are read from, and written to,
    the backbone.

    Args:
        backbone: A timm model, or a feature extractor that timm made of one.
        arguments: Of :func:`timm_stn.network.arguments.stn_arguments`.
        input_size: (C, H, W) of what enters, before the input transformer.
        towers: Further backbones, one for each stream after the first, for ``stn_towers='separate'``.
        name: Architecture to record. Default: ``stn_`` and the backbone's.
        num_classes: Classes of the joined classifier over several streams. Default: the backbone's.
        pretrained_localization: Load pretrained weights of ``timm:<arch>`` localization networks.

    Shape:
        (N, C, H, W) to what the backbone gives. With S > 1 streams, the whole image (with ``stn_whole``) and then the
        glimpses, features have a dimension S after N. With ``stn_join='channels'`` the backbone sees (N, S * C, h, w).

    Raises:
        ValueError: A stage cannot have a transformer; the message says why and what to use instead.
    """

    stn: SpatialTransformer | None
    # Defaults on the class make these our own, even if the backbone has attributes of the same names.
    arguments: StnArguments = cast(StnArguments, None)
    glimpses: int = 1
    glance: Glance | None = None
    _input_size: tuple[int, int, int] = (0, 0, 0)
    _stage_names: dict[int | str, list[str]] = {}  # of the transformers at stages, in each backbone
    _has_tokens: bool = False

    def __init__(
            self,
            backbone: TimmModel,
            arguments: StnArguments,
            input_size: tuple[int, int, int],
            towers: Sequence[nn.Module] = (),
            name: str | None = None,
            num_classes: int | None = None,
            pretrained_localization: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd: Placement = {'device': device, 'dtype': dtype}
        of_timm = dict(pretrained=True) if pretrained_localization else {}
        arguments = resolve_auto(backbone, arguments, input_size)
        stn, glance = make_input_transformer(backbone, arguments, input_size, dd, **of_timm)
        super().__init__(backbone, towers, arguments.streams, arguments.join, arguments.stream_drop, dd, stn=stn)
        self.arguments, self.glimpses, self.glance = arguments, arguments.glimpses, glance
        self._input_size = (input_size[0], input_size[1], input_size[2])
        if arguments.stacked > 1:
            self.__dict__['in_chans'] = input_size[0]  # the backbone has more
        self._stage_names = self._attach_stages(**of_timm)
        self._has_tokens = self._find_tokens()
        self.arguments = self._resolved()
        self._describe_transformers()
        self.join_classifiers(num_classes)  # last, for it draws random numbers: a seed gives the same transformers
        self._describe(name)

    def _attach_stages(self, **of_timm: Any) -> dict[int | str, list[str]]:
        stages = self.arguments.feature_stages
        names: dict[int | str, list[str]] = {s: [] for s in stages}
        for i, backbone in enumerate(self.backbones() if stages else ()):
            layouts = stage_layouts(backbone, stages, self._backbone_size)
            check_keeps_tokens(backbone, layouts)
            transformers = {}
            for stage, (module, layout) in layouts.items():
                extra = of_timm if self.arguments.source(stage).is_timm else {}
                transformer = StageTransformer(layout, **vars(self.arguments.settings(stage)), **self._dd, **extra)
                transformer.stage, transformer.rows = stage, 1 if self.has_towers else self.streams
                transformers[module] = transformer
            attached = attach(backbone, transformers, self._backbone_size)
            for stage, (module, _) in layouts.items():
                names[stage].append(prefix_of(i) + attached[module])
        return names

    def _resolved(self) -> StnArguments:
        """The arguments, with what defaults came to; the size of a glance only where it does not follow the streams."""
        arguments = self.arguments
        for stage, transformer in self.spatial_transformers().items():
            size = cast('tuple[int, int] | None', transformer.localization.size)
            if transformer is self.stn and self.glance is not None and not self.glance.learns:
                size = self.glance.size
            sized = {} if size is None else dict(localization_size=size)
            arguments = arguments.resolve(stage, bound=transformer.bound, **sized)
        return arguments

    def _describe_transformers(self) -> None:
        """Tell each transformer what the network knows of it, for whom its weights are loaded into."""
        for transformer in self._by_name().values():
            describe(transformer, stage=transformer.stage)
        if self.stn is not None:
            known: dict[str, Any] = dict(whole=bool(self.arguments.whole), target=self.arguments.target)
            source = self.arguments.source(self.stn.stage)
            if source.poses is not None:
                known.update(localization=self.arguments.settings(self.stn.stage).localization)
            if source.on_features and self.glance is not None:
                known.update(localization=f'{source.kind}:{self.glance.stage}', localization_size=self.glance.size)
            describe(self.stn, 'stn_', **known)

    # what timm, and whoever saves a model, is told of it

    @property
    def _backbone_size(self) -> tuple[int, int, int]:
        size = self.stn.size if self.stn is not None else None
        height, width = size or self._input_size[1:]
        return self._input_size[0] * self.arguments.stacked, height, width

    def _describe(self, name: str | None) -> None:
        """The wrapper's own pretrained cfg and traits: the backbone's, with names as they are here."""
        cfg = dict(getattr(self.backbone, 'pretrained_cfg', None) or {})
        cfg.pop('state_dict', None)
        cfg['architecture'] = name or 'stn_' + str(cfg.get('architecture') or type(self.backbone).__name__.lower())
        cfg['classifier'] = 'classifier' if self.joined else prefixed(cfg.get('classifier'))
        cfg['first_conv'] = self._first_convs(cfg.get('first_conv'))
        self.pretrained_cfg = self.default_cfg = cfg
        self.pretrained_model_args: dict[str, Any] = {}
        traits = dict(getattr(self.backbone, '_traits', {}))
        traits['first_conv'] = cfg['first_conv']
        if self._backbone_size[1:] != self._input_size[1:] or traits.get('img_size'):
            traits['img_size'] = self._input_size[1:]
        self._traits = traits

    def _first_convs(self, stem: Any) -> tuple[str, ...] | None:
        names = list(as_tuple(prefixed(stem)))
        if self.stn is not None and self.glance is None:
            modules = self.stn.localization.named_modules(prefix='stn.localization')
            names += [name for name, module in modules if isinstance(module, nn.Conv2d)][:1]
        return tuple(names) or None

    @property
    def _model_args(self) -> dict[str, Any]:
        """Arguments that rebuild this model: the backbone's, and every resolved ``stn_`` argument."""
        args = {**getattr(self.backbone, '_model_args', {}), **self.arguments.json}
        if self._traits.get('img_size'):
            args['img_size'] = tuple(self._traits['img_size'])
        if self.arguments.stacked > 1:
            args['in_chans'] = self._input_size[0]
        return args

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        theirs = {k: plain(v) for k, v in args.items() if not k.startswith('stn_')}
        if self.arguments.stacked > 1:
            theirs['in_chans'] = self._backbone_size[0]
        if self._backbone_size[1:] != self._input_size[1:] or not getattr(self.backbone, '_traits', {}).get('img_size'):
            theirs.pop('img_size', None)
        self.backbone._model_args = theirs

    # looking

    def spatial_transformers(self) -> dict[int | str, SpatialTransformer]:
        """The transformers by stage, as named in ``stn_stages``; those of further towers are not listed."""
        found: dict[int | str, SpatialTransformer] = {}
        if self.stn is not None:
            found[self.stn.stage] = self.stn
        for stage, names in self._stage_names.items():
            found[stage] = cast(SpatialTransformer, self.get_submodule(names[0]))
        return found

    @recorded_method
    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the input's transformer sees, (N, [G,] C, H, W), and theta, the map that made it (section 3.1).

        Raises:
            ValueError: There is no transformer at the input.
        """
        if self.stn is None:
            raise ValueError("look needs a transformer at the input; this model's are at "
                             f'{list(self._stage_names)}: see spatial_transformers().')
        return self.stn.look(x, self._localize if self.asks_itself else None)

    @contextmanager
    def record_thetas(self) -> Iterator[dict[str, Tensor]]:
        """Within it, every forward pass puts each transformer's theta, with its graph, into the dict that it gives.

        By the transformer's name in ``named_modules``; the last forward pass wins, and compiled code puts nothing.
        The network itself keeps no graph.
        """
        thetas: dict[str, Tensor] = {}
        found = self._by_name()
        before = {name: transformer.recorder for name, transformer in found.items()}
        for name, transformer in found.items():
            transformer.recorder = partial(thetas.__setitem__, name)
        try:
            yield thetas
        finally:
            for name, transformer in found.items():
                transformer.recorder = before[name]

    def stn_penalty_loss(self, thetas: Mapping[str, Tensor]) -> Tensor:
        """The penalty that ``stn_penalty`` takes the gradient of, as a scalar for a training loop of one's own.

        The mean over images of how far glimpses are outside the image or collapsed
        (:func:`timm_stn.modules.gradients.placement_penalty`), summed over the transformers.

        Args:
            thetas: By the transformers' names, as `record_thetas` gives them; the input's is ``stn``.

        Raises:
            ValueError: ``thetas`` is empty, or a name is not that of a transformer.
        """
        found = self._by_name()
        if not thetas or not found.keys() >= thetas.keys():
            raise ValueError(f'thetas must have thetas of transformers {list(found)}, got those of {list(thetas)}.')
        return torch.stack([found[name].placement_penalty(theta).mean() for name, theta in thetas.items()]).sum()

    def _by_name(self) -> dict[str, SpatialTransformer]:
        return {n: m for n, m in self.named_modules() if isinstance(m, SpatialTransformer)}

    def _stream_size(self, x: Tensor) -> tuple[int, int]:
        """(H, W) of what the backbone sees of images x."""
        return cast('tuple[int, int]', as_sides(self.arguments.size or tuple(x.shape[2:])))

    @property
    def asks_itself(self) -> bool:
        """Whether the backbone tells where to look: by its features, or by its answers."""
        return self.glance is not None or (self.stn is not None and isinstance(self.stn.localization, Orbit))

    def _answer(self, x: Tensor) -> Tensor:
        """The backbone's logits for images of one stream, as in evaluation."""
        return cast(Tensor, as_in_evaluation(self.backbone, x, lambda: self.backbone(x)))

    def _localize(self, x: Tensor) -> Regressed:
        """Parameters of the input's transform from the backbone's own features, or its pose from the answers."""
        stn = cast(SpatialTransformer, self.stn)
        if self.glance is None:
            answer = self._answer if self.num_classes else None
            return cast(Regressed, stn.localization(x, answer, stn.sampling, self._stream_size(x)))
        glance = self.glance
        # A whole image that is a stream has the size of the images; else a later look, at a glimpse, asks as the first.
        streams = self._stream_size(x) if glance.is_stream else self._backbone_size[1:]
        return cast(Regressed, stn.localization(glance.maps(self.backbone, x, streams)))

    def _see(self, x: Tensor) -> Tensor:
        """What the backbone sees: an image, or (N, S, C, H, W) with S > 1 streams, the whole image first."""
        self._check_aspect(x)
        if self.stn is None:
            return x
        if not self.asks_itself:
            seen = self.stn(x)
        else:
            seen, theta = self.look(x)  # (N, [G,] C, h, w), (N, [G,] ...)
            self.stn.remember(theta)
        if self.arguments.whole:
            whole = x if self.arguments.size is None else shrink(x, self._stream_size(x))  # (N, C, h, w)
            seen = torch.cat([whole.unsqueeze(1), self._glimpses_of(seen)], 1)  # (N, 1 + G, C, h, w)
        return seen.flatten(1, 2) if self.arguments.stacked > 1 else seen

    def _glimpses_of(self, seen: Tensor) -> Tensor:
        """(N, C, h, w) of one glimpse or (N, G, C, h, w) of several to (N, G, C, h, w)."""
        return seen.unsqueeze(1) if self.glimpses == 1 else seen

    def _sees_the_whole_once(self, x: Tensor) -> bool:
        """Whether the glance at the whole image x serves as its stream, too; not where x is a symbol of torch.fx.

        In evaluation only: in training all streams must be in one batch, of which batch norms take the statistics.
        """
        once = self.glance is not None and self.glance.is_stream and not self.backbone.training
        return once and symbol_in(x) is None

    def _features_at_once(self, x: Tensor, **kwargs: object) -> Nest:
        """Features of all streams, where those of the whole image also tell where to look: they are computed once."""
        self._check_aspect(x)
        stn, glance = cast(SpatialTransformer, self.stn), cast(Glance, self.glance)
        finals: list[Nest] = []

        def localize(image: Tensor) -> Regressed:
            maps, final = glance.maps_and_features(self.backbone, image, self._stream_size(image), **kwargs)
            finals.append(final)
            return cast(Regressed, stn.localization(maps))

        seen, theta = stn.look(x, localize)
        stn.remember(theta)
        images = self._glimpses_of(seen)  # (N, G, C, h, w)
        glimpses = self.each_stream(lambda b, image: b.forward_features(image, **kwargs), images, first=1)
        return map_tensors(_first_of_streams, finals[0], glimpses)

    def forward(self, x: Tensor, **kwargs: object) -> Any:
        if self._sees_the_whole_once(x):
            return self.forward_head(self._features_at_once(x, **kwargs))
        return super().forward(self._see(x), **kwargs)

    forward.__wrapped__ = traced_signature  # type: ignore[attr-defined]

    def forward_features(self, x: Tensor, **kwargs: object) -> Any:
        """Unpooled features of the backbone; (N, S, ...) with streams."""
        if self._sees_the_whole_once(x):
            return self._features_at_once(x, **kwargs)
        return super().forward_features(self._see(x), **kwargs)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
            **kwargs: object,
    ) -> Any:
        """Features of several stages, as timm's models give them; (N, S, ...) with streams."""
        kwargs.update(
            indices=indices, norm=norm, stop_early=stop_early, output_fmt=output_fmt,
            intermediates_only=intermediates_only)
        return self.each_stream(lambda b, image: b.forward_intermediates(image, **kwargs), self._see(x))

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script takes in its place."""
        return scriptable(self)

    # changes

    @if_backbone_can
    def prune_intermediate_layers(
            self,
            indices: int | list[int] | None = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
            **kwargs: object,
    ) -> list[int]:
        """Remove what comes after the last of the features that are asked for; ``kwargs`` go to the backbone."""
        kept = None
        if self.glance is not None:
            kept = list(feature_take_indices(len(feature_infos(self.backbone)), indices)[0])
            indices = [*kept, self.glance.stage]
        for backbone in self.backbones():
            taken = backbone.prune_intermediate_layers(indices, prune_norm, prune_head, **kwargs)
        if prune_head and self.joined:
            self.reset_classifier(0)
        modules = dict(self.named_modules())
        self._stage_names = {s: names for s, names in self._stage_names.items() if all(n in modules for n in names)}
        self._has_tokens = self._find_tokens()
        return list(taken) if kept is None else kept

    @if_backbone_can
    def set_input_size(self, img_size: int | Sequence[int] | None = None, **kwargs: object) -> None:
        """Change the size of what enters; with ``stn_size`` the backbone keeps its own."""
        size = self._input_size[1:] if img_size is None else sides_of(img_size, 2, 'img_size')
        if self.arguments.size is None:
            for backbone in self.backbones():  # which may refuse the size
                backbone.set_input_size(img_size=None if img_size is None else size, **kwargs)
        self._input_size = (self._input_size[0], size[0], size[1])
        self._traits = {**self._traits, 'img_size': size}
        if self.arguments.size is None:
            self._resize_localization()
        else:
            self.pretrained_cfg = self.default_cfg = {**self.pretrained_cfg, 'input_size': self._input_size}
        self._refresh_layouts()

    def _resize_localization(self) -> None:
        """Give the localization network on a glance's features the map size it would have been built with."""
        if self.glance is not None and self.glance.size is None and not self.glance.learns:
            layout = stage_layouts(self.backbone, [self.glance.stage], self._backbone_size)[self.glance.stage][1]
            localization: Any = cast(SpatialTransformer, self.stn).localization
            localization.size = localization.resolve_size(localization.kind, layout.size, None)

    def _refresh_layouts(self) -> None:
        """Tell the transformers at stages the size of the features for another size of input."""
        for i, backbone in enumerate(self.backbones() if self._stage_names else ()):
            for stage, (_, layout) in stage_layouts(backbone, list(self._stage_names), self._backbone_size).items():
                cast(StageTransformer, self.get_submodule(self._stage_names[stage][i])).layout = layout

    def _find_tokens(self) -> bool:
        return any(m.layout.fmt == 'NLC' for m in self.modules() if isinstance(m, StageTransformer))

    def _check_aspect(self, x: object) -> None:
        """Tokens do not tell the aspect ratio of their map, which transformers at stages take from that of the input.

        Raises:
            ValueError: The images have another one than the network was made for.
        """
        if self._has_tokens and self.arguments.size is None and isinstance(x, Tensor) and x.ndim == 4:
            (height, width), (usual_height, usual_width) = x.shape[2:], self._input_size[1:]
            if height * usual_width != width * usual_height:
                raise ValueError(
                    f'transformers at stages of tokens were made for images of {usual_height} x {usual_width}, got '
                    f'{height} x {width}; call set_input_size(({height}, {width})), or give that as img_size.')


def _first_of_streams(whole: Tensor, glimpses: Tensor) -> Tensor:
    """Features (N, ...) of the whole images before those of the glimpses (N, G, ...): (N, 1 + G, ...)."""
    return torch.cat([whole.unsqueeze(1), glimpses], 1)
