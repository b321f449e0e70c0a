"""A timm model with spatial transformers in it: looks first, then asks the backbone."""
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from typing import Any, cast

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from .._timm import feature_take_indices
from ..geometry.grid import has_values
from ..geometry.layout import told_of_layout
from ..geometry.precision import uncached
from ..geometry.shrink import shrink
from ..geometry.sizes import are_sides
from ..modules.localization import Localization
from ..modules.saliency import Saliency
from ..modules.spatial_transformer import SpatialTransformer
from .arguments import FROM_FEATURES, StnArguments, scales_of
from .attach import StageTransformer, attach, feature_infos, hooked, resolve_stage, stage_layouts, unhook
from .scripting import ScriptableNetwork, share_tensors, traced_signature
from .stages import check_keeps_tokens
from .wrapper import if_backbone_can

__all__ = ['SpatialTransformerNetwork']

register_notrace_module(SpatialTransformer)
register_notrace_module(StageTransformer)

# Would give the bare backbone, what it makes of images that nobody looked at, or names without their prefix.
NOT_READ_THROUGH = (
    'backbone', 'towers', 'stn', 'fuse', 'reparameterize', 'default_cfg', 'pretrained_cfg', 'pretrained_model_args',
    '_traits', 'get_intermediate_layers')


class SpatialTransformerNetwork(nn.Module):
    """A timm backbone that looks through spatial transformers (Jaderberg et al. 2015).

    Images pass the input transformer, if there is one, then the backbone; transformers at stages are children of the
    stages' own modules. What timm asks of a model is answered here; other attributes are read from, and written to,
    the backbone.

    Args:
        backbone: A timm model, or a feature extractor that timm made of one.
        arguments: Resolved ``stn_`` arguments.
        input_size: (C, H, W) of what enters, before the input transformer.
        towers: Further backbones, one for each stream after the first, for ``stn_towers='separate'``.
        name: Architecture to record. Default: ``stn_`` and the backbone's.
        num_classes: Classes of the joined classifier over several streams. Default: the backbone's.
        pretrained_localization: Load pretrained weights of ``timm:<arch>`` localization networks.

    Shape:
        (N, C, H, W) to what the backbone gives. With S > 1 streams, the whole image (with ``stn_whole``) and then the
        glimpses, features have a dimension S after N.

    Raises:
        ValueError: A stage cannot have a transformer; the message says why and what to use instead.
    """

    stn: SpatialTransformer | None
    backbone: Any
    towers: nn.ModuleDict
    classifier: Any

    def __init__(
            self,
            backbone: Any,
            arguments: StnArguments,
            input_size: tuple[int, int, int],
            towers: Sequence[nn.Module] = (),
            name: str | None = None,
            num_classes: int | None = None,
            pretrained_localization: bool = False,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__()
        self.arguments = arguments
        self.glimpses: int = arguments.glimpses
        self.streams: int = arguments.streams
        self._input_size = tuple(input_size)
        self._localization_extra = dict(pretrained=True) if pretrained_localization else {}
        self._dd = dict(device=device, dtype=dtype)
        self._source: int | None = None
        self._keeps_glance = False  # of one size, whatever the streams are
        self._joined = self._wants_classifier(backbone)  # one over all streams
        for stage in arguments.stages:
            self._resolve_localization(backbone, stage)
        self.stn = self._make_input_transformer(backbone)
        if self.stn is not None and arguments.to_input:
            self.stn.stage = next(iter(arguments.stages))
        self._glances = arguments.whole and self._source is not None  # the whole image's features say where to look
        self.backbone = backbone
        if towers:
            self.towers = nn.ModuleDict({str(i): tower for i, tower in enumerate(towers, 1)})
        self._stage_names = self._attach_stages()
        self._has_tokens = self._find_tokens()
        for stage, transformer in self.spatial_transformers().items():
            self.arguments.resolve(stage, bound=transformer.bound, **self._side_of_localization(transformer))
        if self._joined:
            self._own_classifier(backbone.num_classes if num_classes is None else num_classes)
        self._describe(name)
        self.register_load_state_dict_pre_hook(_load_plain)  # type: ignore[no-untyped-call]

    # construction

    def _side_of_localization(self, transformer: SpatialTransformer) -> dict[str, Any]:
        """To record; nothing where a glance is of the size of the streams."""
        if transformer is not self.stn or self._source is None or self.arguments.to_input:
            return dict(localization_size=transformer.localization.size)
        return dict(localization_size=self._shared_size) if self._keeps_glance else {}

    @property
    def _backbone_size(self) -> tuple[int, int, int]:
        size = self.stn.size if self.stn is not None else None
        height, width = size or self._input_size[1:]
        return self._input_size[0], height, width

    def _make_input_transformer(self, backbone: nn.Module) -> SpatialTransformer | None:
        stages = self.arguments.stages
        if not self.arguments.to_input and 'input' not in stages:
            return None
        stage = 'input' if 'input' in stages else next(iter(stages))
        settings = self.arguments.settings(stage)
        source = stage if self.arguments.to_input else None
        kind = str(settings['localization'])
        if kind.startswith(FROM_FEATURES):
            source, settings['localization'] = kind.split(':', 1)[1], 'moments'
        salient = kind.startswith('saliency:')
        if isinstance(settings['scale'], (list, tuple)) and not salient:
            raise ValueError(f"stn_scale={settings['scale']!r}: two numbers need stn_localization='saliency:<stage>', "
                             f'got {kind!r}.')
        input_size = self._input_size
        extra = dict(self._dd, size=self.arguments.size, glimpses=self.glimpses)
        if source is None:
            return SpatialTransformer(input_size[0], input_size[1:], **settings, **extra, **self._extra(settings))
        return self._make_shared(backbone, source, settings, extra, salient)

    def _resolve_localization(self, backbone: nn.Module, stage: int | str) -> None:
        """What ``auto`` stands for: glimpses look where the backbone responds, in its deepest map of 7 x 7 at least."""
        if self.arguments.settings(stage)['localization'] == 'auto':
            stage_of_map = self._deepest_map(backbone, 7) if self.arguments.wants_saliency(stage) else None
            kind = 'conv' if stage_of_map is None else f'saliency:{stage_of_map}'
            self.arguments.resolve(stage, localization=kind)

    def _deepest_map(self, backbone: nn.Module, side: int) -> int | None:
        """Index of the last stage that yields one map of ``side`` x ``side`` at least from what a stream shows."""
        size = _two(self.arguments.size or self._input_size[1:])
        for i, info in reversed(list(enumerate(feature_infos(backbone)))):
            if min(size) >= side * info.get('reduction', min(size)):
                with suppress(ValueError):
                    stage_layouts(backbone, [i], (self._input_size[0], *size))
                    return i
        return None

    def _make_shared(
            self,
            backbone: nn.Module,
            source: int | str,
            settings: dict[str, Any],
            extra: dict[str, Any],
            salient: bool,
    ) -> SpatialTransformer:
        """theta from the backbone's features (Finnveden 2020): ``shared:``, ``saliency:``, ``stn_target='input'``."""
        size = self._shared_size = self._size_of_glance(settings)
        index = int(source) if re.fullmatch(r'-?\d+', str(source)) else source
        name, info = resolve_stage(backbone, index)
        if 'index' not in info and 'num_chs' not in info:
            raise ValueError(
                f'stn_stages: {name} is no feature stage; stn_target, shared:<stage> and saliency:<stage> need one.')
        names = [resolve_stage(backbone, i)[0] for i in range(len(feature_infos(backbone)))]
        self._source = names.index(name)
        layout = stage_layouts(backbone, [index], (self._input_size[0], *size))[index][1]
        scales = scales_of(settings['scale'])
        if salient and scales[0] >= 1:
            raise ValueError(f"stn_localization='saliency:{source}' is for glimpses: stn_scale must be below 1, "
                             f'got {scales[0]}.')
        settings['scale'] = scales[0]
        probe = SpatialTransformer(
            self._input_size[0], self._input_size[1:], **{**settings, 'localization': nn.Identity()}, **extra)
        kind = partial(Saliency, probe.tiles, scales, probe.bound) if salient else Localization
        probe.localization = kind(
            settings['localization'], layout.channels, layout.size, self.glimpses * probe.transform.num_params,
            size=settings.get('localization_size'), lr_scale=settings['lr_scale'], **self._dd)
        return probe

    def _size_of_glance(self, settings: dict[str, Any]) -> tuple[int, int]:
        """What the backbone is shown to tell where to look, (H, W): as its streams, or of ``stn_localization_size``."""
        streams = _two(self.arguments.size or self._input_size[1:])
        if self.arguments.to_input or settings['localization_size'] is None:
            return cast(tuple[int, int], streams)
        size = settings.pop('localization_size')
        if not are_sides(_two(size), 2):
            raise ValueError(f'stn_localization_size must be 2 positive integers, or one, got {size!r}.')
        if self.arguments.whole and _two(size) != streams:
            raise ValueError(f'stn_localization_size={size!r}: with stn_whole, features of the whole image tell where '
                             f'to look, and those are of {streams}; leave it out.')
        self._keeps_glance = True
        return cast(tuple[int, int], _two(size))

    def _extra(self, settings: dict[str, Any]) -> dict[str, Any]:
        return self._localization_extra if str(settings['localization']).startswith('timm:') else {}

    def _attach_stages(self) -> dict[int | str, list[str]]:
        stages = [s for s in self.arguments.stages if s != 'input' and not self.arguments.to_input]
        names: dict[int | str, list[str]] = {s: [] for s in stages}
        for prefix, backbone in self._all_backbones() if stages else ():
            layouts = stage_layouts(backbone, stages, self._backbone_size)
            check_keeps_tokens(backbone, layouts)
            transformers = {}
            for stage, (module, layout) in layouts.items():
                settings = self.arguments.settings(stage)
                transformer = StageTransformer(layout, **settings, **self._dd, **self._extra(settings))
                transformer.stage, transformer.rows = stage, 1 if 'towers' in self._modules else self.streams
                transformers[module] = transformer
            attached = attach(backbone, transformers, self._backbone_size)
            for stage, (module, _) in layouts.items():
                names[stage].append(prefix + attached[module])
        return names

    def _all_backbones(self) -> list[tuple[str, Any]]:
        towers = self.towers.items() if 'towers' in self._modules else ()
        return [('backbone.', self.backbone), *((f'towers.{k}.', tower) for k, tower in towers)]

    def _wants_classifier(self, backbone: Any) -> bool:
        """Whether joined features need a classifier of their own, in place of the mean of the backbone's logits.

        A linear classifier makes of the mean of the features the mean of the logits, once. Others stay where they are.
        """
        if self.streams == 1 or not hasattr(backbone, 'reset_classifier'):
            return False
        old = backbone.get_classifier()
        if self.arguments.join == 'mean':
            return isinstance(old, nn.Linear | nn.Identity)
        if not isinstance(old, nn.Module):
            raise ValueError(f"stn_join='concat' needs a backbone with one classifier; {type(backbone).__name__} has "
                             "several: use stn_join='mean'.")
        return True

    def _own_classifier(self, num_classes: int) -> None:
        """The classifier over the joined streams; starts from the backbone's where that has the same classes."""
        old = self.backbone.get_classifier()
        self._replaced = next(name for name, m in self.backbone.named_modules() if m is old)
        self._num_classes = num_classes
        for _, backbone in self._all_backbones():
            backbone.reset_classifier(0)
        super().__setattr__('classifier', self._make_classifier(self._num_classes))  # even if the backbone has one
        state = old.state_dict()
        if 'weight' in state and not state['weight'].is_meta and isinstance(self.classifier, nn.Linear):
            start = _over_streams(state['weight'], state.get('bias'), self.classifier)
            self.classifier.load_state_dict(start, strict=bool(start))

    def _make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes, **self._dd) if num_classes > 0 else nn.Identity()

    def _describe(self, name: str | None) -> None:
        """The wrapper's own pretrained cfg and traits: the backbone's, with names as they are here."""
        cfg = dict(getattr(self.backbone, 'pretrained_cfg', None) or {})
        cfg.pop('state_dict', None)
        cfg['architecture'] = name or 'stn_' + str(cfg.get('architecture') or type(self.backbone).__name__.lower())
        joined = self._joined
        cfg['classifier'] = 'classifier' if joined else prefixed(cfg.get('classifier'))
        cfg['first_conv'] = self._first_convs(cfg.get('first_conv'))
        self.pretrained_cfg = self.default_cfg = cfg
        self.pretrained_model_args: dict[str, Any] = {}
        traits = dict(getattr(self.backbone, '_traits', {}))
        traits['first_conv'] = cfg['first_conv']
        if self._backbone_size != self._input_size or traits.get('img_size'):
            traits['img_size'] = self._input_size[1:]
        self._traits = traits

    def _first_convs(self, stem: Any) -> tuple[str, ...] | None:
        names = list(as_tuple(prefixed(stem)))
        if self.stn is not None and self._source is None:
            modules = self.stn.localization.named_modules(prefix='stn.localization')
            names += [name for name, module in modules if isinstance(module, nn.Conv2d)][:1]
        return tuple(names) or None

    # reading and writing through to the backbone

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith('__') or name in NOT_READ_THROUGH or 'backbone' not in self.__dict__.get('_modules', {}):
                raise
            return getattr(self.backbone, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in self.__dict__ or hasattr(type(self), name) or 'backbone' not in self.__dict__.get('_modules', {})
        own = own or name in NOT_READ_THROUGH or name in self._modules or name in self._buffers
        if own or not hasattr(self.backbone, name):
            super().__setattr__(name, value)
        else:
            setattr(self.backbone, name, value)

    @property
    def _model_args(self) -> dict[str, Any]:
        """Arguments that rebuild this model: the backbone's, and every resolved ``stn_`` argument."""
        args = {**getattr(self.backbone, '_model_args', {}), **self.arguments.json}
        if self._traits.get('img_size'):
            args['img_size'] = tuple(self._traits['img_size'])
        return args

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        theirs = {k: v for k, v in args.items() if not k.startswith('stn_')}
        if self._backbone_size != self._input_size:
            theirs.pop('img_size', None)
        self.backbone._model_args = theirs

    @property
    def num_classes(self) -> int:
        return self._num_classes if self._joined else self.backbone.num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        if self._joined:
            self._num_classes = value
        else:
            self.backbone.num_classes = value

    @property
    def num_features(self) -> int:
        """Width of the features, of one stream."""
        return self.backbone.num_features

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier takes; joined over the streams."""
        width = getattr(self.backbone, 'head_hidden_size', self.backbone.num_features)
        return width * self.streams if self.arguments.join == 'concat' else width

    # looking

    def spatial_transformers(self) -> dict[int | str, SpatialTransformer]:
        """The transformers by stage, as named in ``stn_stages``; those of further towers are not listed."""
        found: dict[int | str, SpatialTransformer] = {}
        if self.stn is not None:
            found[self.stn.stage] = self.stn
        for stage, names in self._stage_names.items():
            found[stage] = cast(SpatialTransformer, self.get_submodule(names[0]))
        return found

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the input's transformer sees, (N, [G,] C, H, W), and theta, the map that made it (section 3.1).

        Raises:
            ValueError: There is no transformer at the input.
        """
        if self.stn is None:
            raise ValueError("look needs a transformer at the input; this model's are at "
                             f'{list(self._stage_names)}: see spatial_transformers().')
        return self.stn.look(x, self._localize if self._source is not None else None)

    @contextmanager
    def record_thetas(self) -> Iterator[dict[str, Tensor]]:
        """Within it, every forward pass puts each transformer's theta, with its graph, into the dict that it gives.

        By the transformer's name in ``named_modules``; the last forward pass wins, and compiled code puts nothing.
        The network itself keeps no graph.
        """
        thetas: dict[str, Tensor] = {}
        found = {n: m for n, m in self.named_modules() if isinstance(m, SpatialTransformer)}
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
        found = {n: m for n, m in self.named_modules() if isinstance(m, SpatialTransformer)}
        if not thetas or not found.keys() >= thetas.keys():
            raise ValueError(f'thetas must have thetas of transformers {list(found)}, got those of {list(thetas)}.')
        return torch.stack([found[name].placement_penalty(theta).mean() for name, theta in thetas.items()]).sum()

    def _localize(self, x: Tensor) -> Any:
        """Parameters of the input's transform from the backbone's own features."""
        size = self._size_of_whole(x) if self._glances else self._shared_size
        ask = partial(
            self.backbone.forward_intermediates, shrink(x, size), indices=[self._source], intermediates_only=True,
            stop_early=True)
        features = ask() if self.arguments.to_input else _as_in_evaluation(self.backbone, x, ask)
        return cast(SpatialTransformer, self.stn).localization(features[0])

    def _see(self, x: Tensor) -> Tensor:
        """What the backbone sees: an image, or (N, S, C, H, W) with S > 1 streams, the whole image first."""
        self._check_aspect(x)
        if self.stn is None:
            return x
        if self._source is None:
            seen: Tensor = self.stn(x)
        else:
            seen, theta = self.look(x)
            self.stn.remember(theta)
        if not self.arguments.whole:
            return seen
        return torch.cat([shrink(x, self._size_of_whole(x)).unsqueeze(1), self._glimpses_of(seen)], 1)

    def _size_of_whole(self, x: Tensor) -> tuple[int, int]:
        """Of the stream that shows the whole image, (H, W): as the glimpses'."""
        return cast(tuple[int, int], _two(self.arguments.size) or tuple(x.shape[2:]))

    def _find_tokens(self) -> bool:
        return any(m.layout.fmt == 'NLC' for m in self.modules() if isinstance(m, StageTransformer))

    def _check_aspect(self, x: Any) -> None:
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

    def _glimpses_of(self, seen: Tensor) -> Tensor:
        return seen.unsqueeze(1) if self.glimpses == 1 else seen

    def _glance(self, x: Tensor, **kwargs: Any) -> Any:
        """Features of all streams, where those of the whole image also tell where to look: they are computed once.

        In evaluation only: in training all streams must be in one batch, of which batch norms take the statistics.
        """
        self._check_aspect(x)
        stn, finals = cast(SpatialTransformer, self.stn), []

        def localize(image: Tensor) -> Tensor:
            final, maps = self.backbone.forward_intermediates(
                shrink(image, self._size_of_whole(image)), indices=[self._source], **kwargs)
            finals.append(final)
            return stn.localization(maps[0].detach())

        seen, theta = stn.look(x, localize)
        stn.remember(theta)
        glimpses = self._each(lambda b, image: b.forward_features(image, **kwargs), self._glimpses_of(seen), first=1)
        return _map(lambda whole, parts: torch.cat([whole.unsqueeze(1), parts], 1), finals[0], glimpses)

    def _each(self, fn: Callable[[Any, Any], Any], x: Any, first: int = 0) -> Any:
        """Run ``fn(backbone, x)`` over the streams of x, (N, S, ...) or nests of such; so is what comes out.

        Args:
            fn: What to run.
            x: Without S where there is one stream.
            first: Number of streams that come before those of x.
        """
        if self.streams == 1:
            return fn(self.backbone, x)
        if 'towers' in self._modules:
            towers = [tower for _, tower in self._all_backbones()[first:]]
            outs = [fn(tower, _map(itemgetter((slice(None), s)), x)) for s, tower in enumerate(towers)]
            return _map(lambda *ts: torch.stack(ts, 1), *outs)
        out = fn(self.backbone, _map(lambda t: t.flatten(0, 1), x))
        return _map(lambda t: t.unflatten(0, (-1, self.streams - first)), out)

    def _join(self, x: Tensor) -> Tensor:
        """Features (N, S, ...) of all streams to the mean, or to all channels side by side."""
        if self.arguments.join == 'mean':
            return x.mean(1)
        if x.ndim == 3:
            return x.flatten(1)
        channels_first = x.ndim == 5 and told_of_layout(self.backbone)['output_fmt'] != 'NHWC'
        return torch.cat(x.unbind(1), 1 if channels_first else -1)

    def _logits(self, out: Any) -> Any:
        """What the streams' backbones give to logits; features of an extractor stay apart."""
        if self._joined:
            return self.classifier(self._join(out))
        return _map(lambda t: t.mean(1), out) if hasattr(self.backbone, 'reset_classifier') else out

    # timm's interface

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        if self._glances and not self.backbone.training:
            return self.forward_head(self._glance(x, **kwargs))
        x = self._see(x)
        if self.streams == 1:
            return self.backbone(x, **kwargs)
        out = self._each(lambda backbone, image: backbone(image, **kwargs), x)
        return self._logits(out)

    forward.__wrapped__ = traced_signature  # type: ignore[attr-defined]

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script takes in its place."""
        backbone = share_tensors(self.backbone)
        unhook(backbone)
        found = {
            'several streams': self.streams > 1,
            "theta from the backbone's own features": self._source is not None,
            'a transformer at a stage that yields several things': any(
                m.layout.item is not None for m in backbone.modules() if isinstance(m, StageTransformer)),
            f"transformers in forward hooks (at {', '.join(hooked(backbone))})": bool(hooked(backbone)),
        }
        for what, is_here in found.items():
            if is_here:
                raise ValueError(f'torch.jit.script cannot compile {what}; use torch.jit.trace or torch.export.')
        return ScriptableNetwork(self.stn or nn.Identity(), backbone)

    def forward_features(self, x: Tensor, **kwargs: Any) -> Any:
        """Unpooled features of the backbone; (N, S, ...) with streams."""
        if self._glances and not self.backbone.training:
            return self._glance(x, **kwargs)
        return self._each(lambda backbone, image: backbone.forward_features(image, **kwargs), self._see(x))

    def forward_head(self, x: Any, pre_logits: bool = False) -> Tensor:
        """Features to logits, or to what the classifier takes."""
        if self.streams == 1:
            return self.backbone.forward_head(x, pre_logits=pre_logits)
        pre_logits_of_streams = pre_logits or self._joined
        out = self._each(lambda backbone, f: backbone.forward_head(f, pre_logits=pre_logits_of_streams), x)
        return self._join(out) if pre_logits else self._logits(out)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
            **kwargs: Any,
    ) -> Any:
        """Features of several stages, as timm's models give them; (N, S, ...) with streams."""
        kwargs.update(
            indices=indices, norm=norm, stop_early=stop_early, output_fmt=output_fmt,
            intermediates_only=intermediates_only)
        return self._each(lambda b, image: b.forward_intermediates(image, **kwargs), self._see(x))

    @if_backbone_can
    def prune_intermediate_layers(
            self,
            indices: int | list[int] | None = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
            **kwargs: Any,
    ) -> list[int]:
        """Remove what comes after the last of the features that are asked for; ``kwargs`` go to the backbone."""
        kept = None
        if self._source is not None:
            kept = list(feature_take_indices(len(feature_infos(self.backbone)), indices)[0])
            indices = [*kept, self._source]
        for _, backbone in self._all_backbones():
            taken = backbone.prune_intermediate_layers(indices, prune_norm, prune_head, **kwargs)
        if prune_head and self._joined:
            self.reset_classifier(0)
        modules = dict(self.named_modules())
        self._stage_names = {s: names for s, names in self._stage_names.items() if all(n in modules for n in names)}
        self._has_tokens = self._find_tokens()
        return list(taken) if kept is None else kept

    @if_backbone_can
    def get_classifier(self) -> nn.Module:
        return self.classifier if self._joined else self.backbone.get_classifier()

    @if_backbone_can
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for other classes; 0 for none. ``global_pool`` None keeps the pooling."""
        pool = () if global_pool is None else (global_pool,)
        joined = self._joined
        if not joined or pool:
            for _, backbone in self._all_backbones():
                backbone.reset_classifier(0 if joined else num_classes, *pool)
        if joined:
            self._num_classes = num_classes
            probe = next(self.parameters())
            self.classifier = self._make_classifier(num_classes).to(device=probe.device, dtype=probe.dtype)

    @if_backbone_can
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for _, backbone in self._all_backbones():
            backbone.set_grad_checkpointing(enable)

    @if_backbone_can
    def set_input_size(self, img_size: int | Sequence[int] | None = None, **kwargs: Any) -> None:
        """Change the size of what enters; with ``stn_size`` the backbone keeps its own."""
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size or self._input_size[1:])
        if self.arguments.size is None:
            for _, backbone in self._all_backbones():
                backbone.set_input_size(img_size=img_size, **kwargs)
            self._resize_glance(size)
        self._input_size = (self._input_size[0], *size)
        self._traits = {**self._traits, 'img_size': size}
        self._refresh_layouts()
        if self.arguments.size is not None:
            self.pretrained_cfg = self.default_cfg = {**self.pretrained_cfg, 'input_size': self._input_size}

    def _resize_glance(self, size: Any) -> None:
        """As a network that is built for this size of streams has it."""
        if self._source is not None and not self._keeps_glance:
            self._shared_size = size
            if not self.arguments.to_input:
                layout = stage_layouts(self.backbone, [self._source], (self._input_size[0], *size))[self._source][1]
                localization: Any = cast(SpatialTransformer, self.stn).localization
                localization.size = localization.resolve_size(localization.kind, layout.size, None)

    def _refresh_layouts(self) -> None:
        """Tell the transformers at stages the size of the features for another size of input."""
        for prefix, backbone in self._all_backbones() if self._stage_names else ():
            for stage, (_, layout) in stage_layouts(backbone, list(self._stage_names), self._backbone_size).items():
                for name in self._stage_names[stage]:
                    if name.startswith(prefix):
                        cast(StageTransformer, self.get_submodule(name)).layout = layout

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Initialise everything anew: the backbone(s) by their own rules, transformers at the identity."""
        for _, backbone in self._all_backbones():
            if hasattr(backbone, 'init_weights'):
                backbone.init_weights(*args, **kwargs)
        own: list[Any] = [m for name, m in self.named_modules() if _is_own(name + '.') and name]
        for module in reversed(own):  # a localization network after its layers, which start as it says
            for initialize in ('reset_parameters', 'init_non_persistent_buffers'):
                if hasattr(module, initialize):
                    getattr(module, initialize)()

    @if_backbone_can
    def group_matcher(self, coarse: bool = False) -> Any:
        """Layer groups of the backbone; transformers and joined classifier are new layers and group with the head."""
        matcher = self.backbone.group_matcher(coarse=coarse)
        if callable(matcher):
            return lambda name: matcher(_base_name(name)) if _base_name(name) else float('inf')
        return {group: _prefix_pattern(pattern) for group, pattern in matcher.items()}

    @if_backbone_can
    def no_weight_decay(self) -> set[str]:
        return {p + n for p, b in self._all_backbones() for n in b.no_weight_decay()}

    def init_non_persistent_buffers(self) -> None:
        """Restore what is not in the state dict, after the model left the meta device."""
        modules: list[Any] = list(self.modules())
        for module in modules:
            if module is not self and hasattr(module, 'init_non_persistent_buffers'):
                module.init_non_persistent_buffers()


def _as_in_evaluation(module: nn.Module, x: Tensor, ask: Callable[[], Any]) -> Any:
    """Without gradients, and with batch norms that use, and leave as they are, the statistics that they have.

    To ask a backbone where to look must not change it: a glance at the whole image, of another size and scale than what
    it is trained on, would mix its statistics with theirs, which evaluation then uses.
    """
    training = [m for m in module.modules() if m.training]
    witnessed = SpatialTransformer.witness is not None and has_values(x)  # who would count the image twice
    glancing = [m for m in module.modules() if isinstance(m, SpatialTransformer)] if witnessed else []
    for m in training:
        m.training = False
    for m in glancing:
        m.witness = None
    try:  # no context manager of our own: torch.compile of torch 2.6 does not look into one
        with torch.no_grad(), uncached(x):
            return ask()
    finally:
        for m in training:
            m.training = True
        for m in glancing:
            del m.witness


def _two(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else size


def _load_plain(net: SpatialTransformerNetwork, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Before a state dict is loaded: a plain checkpoint of the backbone fills backbone(s), the transformers stay."""
    names = [k[len(prefix):] for k in state_dict if k.startswith(prefix)]
    if not names or any(n.startswith('backbone.') for n in names):
        return
    plain = {n: state_dict.pop(prefix + n) for n in names}
    used = _join_classifier(net, plain, state_dict, prefix) if net._joined else set()
    for name, value in net.state_dict().items():
        key = re.sub(r'^(backbone|towers\.\d+)\.', '', name)
        if key != name and key in plain:
            state_dict[prefix + name] = plain[key]
            used.add(key)
        elif _is_own(name):
            state_dict.setdefault(prefix + name, value)
    state_dict.update({prefix + n: v for n, v in plain.items() if n not in used})


def _join_classifier(net: SpatialTransformerNetwork, plain: dict[str, Any], state_dict: Any, prefix: str) -> set[str]:
    """The plain classifier, for as many classes, gives the mean over the streams; for others it is left out."""
    within = net._replaced + '.'
    weight, bias = plain.get(within + 'weight'), plain.get(within + 'bias')
    if weight is not None and isinstance(net.classifier, nn.Linear):
        start = _over_streams(weight, bias, net.classifier)
        state_dict.update({f'{prefix}classifier.{name}': value for name, value in start.items()})
    return {name for name in plain if name.startswith(within)}


def _over_streams(weight: Tensor, bias: Tensor | None, classifier: nn.Linear) -> dict[str, Tensor]:
    """Weights that give the mean over the streams of what one backbone's linear classifier gives; else none."""
    weight = weight.flatten(1)  # of a convolution
    repeats = classifier.in_features // weight.shape[1]
    if tuple(classifier.weight.shape) != (weight.shape[0], weight.shape[1] * repeats):
        return {}
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return dict(weight=weight.repeat(1, repeats) / repeats, bias=bias)


def _is_own(name: str) -> bool:
    return re.search(r'(^|[._])stn\.', name) is not None or name.startswith('classifier.')


def prefixed(names: Any, prefix: str = 'backbone.') -> Any:
    """Parameter names of the backbone as they are here; None, a name or several."""
    if not names:
        return names
    return prefix + names if isinstance(names, str) else tuple(prefix + n for n in names)


def as_tuple(names: Any) -> tuple[str, ...]:
    """Names as a pretrained cfg has them (none, one or several) as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def _base_name(name: str) -> str:
    match = re.match(r'(?:backbone|towers\.\d+)\.(?!.*stn\.)(.*)', name)
    return match.group(1) if match else ''


def _prefix_pattern(pattern: Any) -> Any:
    if isinstance(pattern, str):
        return r'(?:backbone|towers\.\d+)\.(?!.*stn\.)(?:' + re.sub(r'(^|\||\()\^', r'\1', pattern) + ')'
    return [(_prefix_pattern(p[0]), *p[1:]) for p in pattern] if pattern is not None else None


def _map(fn: Callable[..., Tensor], *trees: Any) -> Any:
    """``fn`` over the tensors of equal nests of lists, tuples and dicts."""
    first = trees[0]
    if isinstance(first, Tensor):
        return fn(*trees)
    if isinstance(first, dict):
        return {k: _map(fn, *(t[k] for t in trees)) for k in first}
    return type(first)(_map(fn, *parts) for parts in zip(*trees))
