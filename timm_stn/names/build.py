"""Builds a network by name and loads its weights.

A checkpoint belongs either to the backbone alone or to the whole network. Its keys tell: those of a whole network start
with ``backbone.`` and ``stn.``. timm's own factory always loads the backbone's part, and adapts channels, classes and
image size.
"""
import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import (
    FeatureDictNet,
    FeatureListNet,
    PretrainedCfg,
    adapt_input_conv,
    get_pretrained_cfg,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from ..geometry.layout import size_that_enters
from ..geometry.sizes import as_sides, plain, sides_of
from ..modules.gradients import without_counts
from ..modules.record import misfit, without_records
from ..modules.spatial_transformer import SpatialTransformer
from ..modules.standardize import without_statistics
from ..modules.timm_body import start_as
from ..network.arguments import DEFAULTS, StnArguments, hint, split_arguments, stn_arguments
from ..network.features import StnFeatures, usual_indices
from ..network.keys import (
    CLASSIFIER,
    as_tuple,
    is_classifiers,
    is_transformers,
    is_whole,
    prefix_of,
    split_backbone,
    unjoined,
)
from ..network.model import SpatialTransformerNetwork
from ..network.timm_model import TimmModel
from .brief import listed, short
from .untrusted import Budget, check_config, config_location
from .weights import StateDict, check_kinds, location_of, naming, place_of, read_weights

__all__ = ['build_network', 'wrap']

NO_SOURCE = dict(source=None, file=None, url=None, hf_hub_id=None, hf_hub_filename=None, custom_load=False)


def build_network(
        name: str,
        base: str,
        /,
        pretrained: bool = False,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        features_only: bool = False,
        pretrained_model_args: dict[str, Any] | None = None,
        pretrained_sha256: str | None = None,
        **kwargs: Any,
) -> nn.Module:
    """Entry point of every ``stn_`` name.

    A config.json (``hf-hub:``, ``local-dir:``) is checked before anything is built, and errors name it.

    Args:
        name: Name of the network, ``stn_resnet50``.
        base: Name of the timm architecture in it, ``resnet50``.
        pretrained: Load the weights of the whole network if the cfg leads to some, else the backbone's. If these are
            timm's own, a ``timm:<arch>`` localization network is pretrained too; if they come from elsewhere, one of
            the backbone's architecture starts from them, too, or at random where they are of a changed architecture.
        pretrained_cfg: Tag, dict or cfg, as in ``timm.create_model``.
        pretrained_cfg_overlay: Entries that replace those of the cfg.
        cache_dir: Where downloads are kept.
        features_only: Return the features of several stages instead of logits.
        pretrained_model_args: Arguments that the checkpoint was made with, if known.
        pretrained_sha256: Hash of the only file that is accepted from the Hub. Default: any.
        **kwargs: ``stn_`` arguments and arguments of the backbone.

    Raises:
        TypeError: An argument is unknown.
        ValueError: An argument's value is not accepted.
        RuntimeError: There are no weights, or they do not fit.
    """
    location = config_location(pretrained_cfg)
    if location is not None:
        pretrained_cfg = check_config(pretrained_cfg, pretrained_model_args, kwargs)  # type: ignore[arg-type]
    with naming(location, 'config.json: '):
        given, rest = split_arguments(kwargs)
        rest.update({k: plain(rest[k]) for k in ('img_size', 'in_chans', 'num_classes') if k in rest})
        arguments = stn_arguments(**given)
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)  # type: ignore[arg-type]
        state_dict = read_weights(cfg, base, cache_dir, pretrained_sha256) if pretrained else None
        with nullcontext() if location is None else Budget(location, state_dict):
            return _assemble(
                name, base, cfg, arguments, rest, state_dict, pretrained=pretrained, cache_dir=cache_dir,
                features_only=features_only, model_args=pretrained_model_args or {})


def _assemble(
        name: str,
        base: str,
        cfg: PretrainedCfg,
        arguments: StnArguments,
        rest: dict[str, Any],
        state_dict: StateDict | None,
        *,
        pretrained: bool,
        cache_dir: Any,
        features_only: bool,
        model_args: dict[str, Any],
) -> nn.Module:
    """The network with its weights; ``rest`` are the backbone's arguments."""
    whole = state_dict is not None and is_whole(state_dict)
    sized, input_size = 'img_size' in rest, _input_size(base, cfg, rest, arguments)
    at_stages = bool(arguments.feature_stages) or arguments.asks_backbone
    feature_args = {k: rest.pop(k) for k in ('out_indices', 'feature_cls') if features_only and at_stages and k in rest}
    if features_only and not at_stages:
        rest['features_only'] = True
    elif features_only and 'out_indices' not in feature_args:
        feature_args['out_indices'] = usual_indices(base, rest)
    if arguments.stacked > 1:
        rest['in_chans'] = input_size[0] * arguments.stacked
    num_classes = rest.get('num_classes', cfg.num_classes)
    num_classes = None if num_classes < 0 else num_classes
    behind_join = arguments.join == 'concat' or arguments.towers == 'separate'
    if whole and state_dict and any(map(is_classifiers, state_dict)):
        if behind_join:  # one classifier over all streams
            rest['num_classes'] = 0
        else:
            classifier, = as_tuple((get_pretrained_cfg(base) or cfg).classifier)
            state_dict = {unjoined(key, classifier): value for key, value in state_dict.items()}
    stem = None
    if whole and state_dict and arguments.stacked > 1:
        stem = rest['in_chans']
        state_dict = _adapt_stacked(state_dict, base, arguments.stacked, input_size[0])
    bases = [
        _build_base(base, cfg, rest, pretrained, _part(state_dict, tower, whole), cache_dir, model_args, stem)
        for tower in range(arguments.streams if arguments.towers == 'separate' else 1)
    ]
    net = SpatialTransformerNetwork(
        cast(TimmModel, bases[0]), arguments, input_size, bases[1:], name=name, num_classes=num_classes,
        pretrained_localization=pretrained and state_dict is None, device=rest.get('device'), dtype=rest.get('dtype'))
    net.pretrained_cfg.update(_cfg_of_weights(cfg))
    if arguments.size is not None or (sized and not _is_fixed(base, cfg)):  # of which the backbone tells nothing
        net.pretrained_cfg['input_size'] = input_size
    if sized:
        net._traits = {**net._traits, 'img_size': input_size[1:]}
    net.pretrained_model_args = dict(model_args)
    net.cfg_is_of_weights = pretrained  # else it speaks of weights that are not here
    if state_dict is not None:
        check_kinds(state_dict, (net if whole else net.backbone).state_dict(), place_of(cfg))
    if whole and state_dict is not None:
        with naming(location_of(cfg)):
            _load_own(net, state_dict, cfg)
    elif state_dict is not None:
        plain = dict(in_chans=input_size[0], num_classes=0)
        _start_localizations(
            net, base, state_dict, partial(_build_base, base, cfg, plain, True, state_dict, cache_dir, model_args))
    return StnFeatures(net, **feature_args) if features_only and at_stages else net


def wrap(model: nn.Module, stages: Any = ('input',), **settings: Any) -> SpatialTransformerNetwork:
    """Add spatial transformers to an existing timm model, which becomes the backbone.

    Args:
        model: Any timm model; its weights are used as they are.
        stages: As ``stn_stages``.
        **settings: The other ``stn_`` arguments without their prefix: ``transform='tps'``, ``glimpses=2``.

    Returns:
        A :class:`SpatialTransformerNetwork` around ``model``.

    Raises:
        TypeError: A setting is unknown, or ``model`` is no timm model.
        ValueError: A value is not accepted, or ``model`` has transformers already.
    """
    if isinstance(model, (SpatialTransformerNetwork, StnFeatures)):
        raise ValueError('model has spatial transformers already; give stages to it when it is created.')
    cfg = getattr(model, 'pretrained_cfg', None)
    if not isinstance(model, nn.Module) or not cfg:
        raise TypeError(f'model must be a timm model (an nn.Module with a pretrained_cfg), got {type(model).__name__}.')
    if settings.get('towers') == 'separate':
        raise ValueError("towers='separate' needs a network made by timm.create_model, which builds all towers.")
    accepted = [name.removeprefix('stn_') for name in DEFAULTS]
    for name in settings:
        if name not in accepted:
            raise TypeError(f'unknown setting {name!r}.{hint(name.removeprefix("stn_"), accepted)}')
    arguments = stn_arguments(stn_stages=stages, **{f'stn_{k}': v for k, v in settings.items()})
    like = next(model.parameters())
    channels, height, width = size_that_enters(model)
    if channels % arguments.stacked:
        raise ValueError(f"join='channels': a model with in_chans={channels} cannot see {arguments.stacked} images at "
                         'once; in_chans must be a multiple of that.')
    size = channels // arguments.stacked, height, width
    net = SpatialTransformerNetwork(
        cast(TimmModel, model), arguments, size, device=like.device, dtype=like.dtype)
    return net.train(model.training)


def _input_size(
        base: str,
        cfg: PretrainedCfg,
        rest: dict[str, Any],
        arguments: StnArguments,
) -> tuple[int, int, int]:
    """Input size (C, H, W) of the whole network; sets ``img_size`` in ``rest`` to that of the backbone."""
    given, is_fixed = rest.pop('img_size', None), _is_fixed(base, cfg)
    height, width = sides_of(cfg.input_size[1:] if given is None else given, 2, 'img_size')
    if arguments.size is not None and is_fixed:
        rest['img_size'] = as_sides(arguments.size)
    elif arguments.size is None and given is not None and (is_fixed or _takes_size(base, {**rest, 'img_size': given})):
        rest['img_size'] = given
    return rest.get('in_chans', cfg.input_size[0]), height, width


def _is_fixed(base: str, cfg: PretrainedCfg) -> bool:
    return (get_pretrained_cfg(base) or cfg).fixed_input_size


def _takes_size(base: str, rest: dict[str, Any]) -> bool:
    """Whether the backbone is made for a size; others take any, and no ``img_size``."""
    try:
        with torch.device('meta'):
            timm.create_model(base, **rest)
    except TypeError as error:
        return not re.search("unexpected keyword .*'img_size'", str(error))
    except Exception:  # which the backbone itself will raise, too
        pass
    return True


def _part(state_dict: StateDict | None, tower: int, whole: bool) -> StateDict | None:
    """The backbone's part, with timm's own keys; every tower of a plain checkpoint starts from the whole of it."""
    if state_dict is None or not whole:
        return state_dict
    return split_backbone(state_dict, tower) or split_backbone(state_dict, 0)  # `_load_own` says what is missing


def _build_base(
        base: str,
        cfg: PretrainedCfg,
        rest: dict[str, Any],
        pretrained: bool,
        state_dict: StateDict | None,
        cache_dir: Any,
        model_args: dict[str, Any],
        channels: int | None = None,
) -> nn.Module:
    """A backbone; ``channels`` are those of its stem in the state dict. Default: as the cfg says."""
    base_cfg = _base_cfg(base, cfg, model_args)
    if channels is not None:
        base_cfg = replace(base_cfg, input_size=(channels, *base_cfg.input_size[1:]))
    if state_dict is not None:
        base_cfg = replace(base_cfg, **NO_SOURCE, state_dict=dict(state_dict))
    args = {k: v for k, v in model_args.items() if not k.startswith('stn_')}
    if channels is not None and 'in_chans' in args:
        args['in_chans'] = channels
    where = location_of(cfg) if state_dict is not None else None
    with naming(where, f"{base} with arguments {short(', '.join(sorted(rest))) or 'of its own'}: "):
        if 'img_size' in args:
            args['img_size'] = base_cfg.input_size[1:]
        extra = dict(pretrained_model_args=args) if args and _knows_model_args() else {}
        stem = base_cfg.first_conv
        if state_dict is not None and rest.get('in_chans') == base_cfg.input_size[0] and not _knows_channels():
            base_cfg = replace(base_cfg, first_conv=None)  # else timm adapts it, as if it were of three channels
        try:
            model = timm.create_model(
                base, pretrained=pretrained, pretrained_cfg=base_cfg, cache_dir=cache_dir, **extra, **rest)
        except TypeError as error:
            raise TypeError(f'{error}{_prefix_forgotten(error)}') from error
    if state_dict is not None:
        model.pretrained_cfg.pop('state_dict', None)
        model.pretrained_cfg['first_conv'] = stem
    return model


def _prefix_forgotten(error: TypeError) -> str:
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return f". Did you mean 'stn_{found[1]}'?" if found and f'stn_{found[1]}' in DEFAULTS else ''


def _knows_model_args() -> bool:
    return hasattr(timm.models, 'get_model_args')


def _base_cfg(base: str, cfg: PretrainedCfg, model_args: dict[str, Any]) -> PretrainedCfg:
    """The backbone's cfg from the network's: keys without prefix, and the input size of the backbone's training."""
    registered = get_pretrained_cfg(base) or PretrainedCfg()
    inner = model_args.get('stn_size')
    size = tuple(cfg.input_size)
    if inner is not None:
        size = (size[0], *as_sides(inner))
    return replace(
        cfg, architecture=base, input_size=size, classifier=registered.classifier, first_conv=registered.first_conv)


def _cfg_of_weights(cfg: PretrainedCfg) -> dict[str, Any]:
    """Entries of the network's cfg that come from its own pretrained cfg, not from the backbone's."""
    kept = cfg.to_dict()
    return {k: v for k, v in kept.items() if k not in ('state_dict', 'architecture', 'classifier', 'first_conv')}


def _load_own(net: SpatialTransformerNetwork, state_dict: StateDict, cfg: PretrainedCfg) -> None:
    """Load the transformers (strictly), and the joined classifier if the class counts match.

    Raises:
        RuntimeError: A key is missing, unexpected or of another shape.
    """
    target = net.state_dict()
    state_dict = without_counts({**state_dict, **without_statistics(state_dict)})
    same_classes = net.joined and net.num_classes == cfg.num_classes
    own = {k: v for k, v in state_dict.items() if is_transformers(k) or (same_classes and is_classifiers(k))}
    for conv in net.pretrained_cfg['first_conv'] or ():
        key = conv + '.weight'
        if key in own and key in target and own[key].shape[1] != target[key].shape[1]:
            own[key] = _adapt_channels(own[key], target[key].shape[1])
    classifiers = as_tuple(net.pretrained_cfg.get('classifier'))
    excused = () if same_classes else (CLASSIFIER, *(f'{name}.' for name in classifiers))
    if not net.joined and getattr(net.backbone, 'num_classes', None) == cfg.num_classes:
        excused = (prefix_of(0),)  # timm has loaded these strictly; it may have renamed keys
    known = without_records(without_counts(target))
    asked = {k for k in known if is_transformers(k) or not k.startswith(excused)} | set(own)
    missing = sorted(k for k in asked if k in target and k not in state_dict)
    unexpected = sorted(k for k in state_dict if k not in target and (k in own or not k.startswith(excused)))
    wrong = [
        f'{k} {tuple(own[k].shape)}, here {tuple(target[k].shape)}'
        for k in sorted(own) if k in target and own[k].shape != target[k].shape]
    if (not isinstance(net.backbone, (FeatureListNet, FeatureDictNet)) and (missing or unexpected)) or wrong:
        transformers = [(f'{n}.', m) for n, m in net.named_modules() if isinstance(m, SpatialTransformer)]
        why = [f' {text}' for prefix, m in transformers for text in misfit(m, state_dict, prefix)]
        raise RuntimeError(
            f"The checkpoint does not fit this network's stn_ arguments. Missing: {listed(missing)}; unexpected: "
            f"{listed(unexpected)}; of another shape: {listed(wrong)}.{''.join(why)}")
    net.load_state_dict({**target, **{k: v for k, v in own.items() if k in target}})


def _start_localizations(
        net: SpatialTransformerNetwork,
        base: str,
        state_dict: StateDict,
        build: Callable[[], nn.Module],
) -> None:
    """Localization networks of the backbone's architecture start from the plain checkpoint that it has loaded.

    One that the backbone does not fit, as it has another stem or not all stages, starts from a network that is built;
    at random, if the checkpoint is of a changed architecture.
    """
    bodies = [cast(nn.Module, transformer.localization.body) for transformer in net.spatial_transformers().values()
              if transformer.localization.kind == f'timm:{base}']
    rest = [body for body in bodies if not start_as(body, net.backbone.state_dict())]
    weights = _weights_of_plain(state_dict, build) if rest else {}
    for body in rest:
        start_as(body, weights)


def _weights_of_plain(state_dict: StateDict, build: Callable[[], nn.Module]) -> StateDict:
    """Those of the plain network that a checkpoint is loaded into; none if it is not of that network, or half."""
    try:
        found = build().state_dict()
    except (KeyError, RuntimeError, ValueError):  # of timm, which reads checkpoints of many forms
        return {}
    named = [key in state_dict for key in without_counts(found)]
    return {} if any(named) and not all(named) else found


def _knows_channels() -> bool:
    """Whether timm is told how many channels a stem has; to 1.0.29 it takes three."""
    return 'base_chans' in inspect.signature(adapt_input_conv).parameters


def _adapt_stacked(state_dict: StateDict, base: str, images: int, channels: int) -> StateDict:
    """A whole network's weights, for another number of channels of each of the images that the stem sees at once."""
    found = dict(state_dict)
    for name in as_tuple(getattr(get_pretrained_cfg(base), 'first_conv', None)):
        key = f'{prefix_of(0)}{name}.weight'
        weight = found.get(key)
        if weight is not None and weight.shape[1] % images == 0 and weight.shape[1] != images * channels:
            found[key] = torch.cat([_adapt_channels(part, channels) for part in weight.chunk(images, 1)], 1)
    return found


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight of a first convolution for another number of channels, adapted as timm adapts a stem."""
    base = dict(base_chans=weight.shape[1]) if _knows_channels() else {}
    try:
        return adapt_input_conv(channels, weight, **base)
    except NotImplementedError:
        raise RuntimeError(
            f'in_chans={channels}: a localization network trained with {weight.shape[1]} channels cannot be adapted '
            'to that.') from None
