"""Several images of each input: how they pass through one backbone or several, and how one answer comes of them."""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..geometry.layout import told_of_layout
from ..geometry.symbolic import recorded_call
from .keys import CLASSIFIER
from .timm_model import Nest, Placement, TimmModel
from .wrapper import TimmWrapper, if_backbone_can

__all__ = ['StreamsNetwork', 'map_tensors']


class StreamsNetwork(TimmWrapper):
    """Backbone(s) that see S images of each input, and one classifier over what they make of them.

    Logits are averaged; of a linear classifier they are those of averaged features. Several backbones, or features side
    by side, share one classifier behind the join, ``classifier``, which is also read and written under timm's name for
    it (``net.fc``). A subclass calls :meth:`join_classifiers` when all that draws random numbers before it is made.

    Args:
        backbone, towers, **before: See :class:`TimmWrapper`; with towers each stream has a backbone of its own.
        streams: Number S of images.
        join: ``mean`` of what the streams give, or ``concat`` of their features.
        drop: In training, the share of images that one stream alone answers, drawn for each image: each stream learns
            to answer (modality dropout, Neverova et al. 2015, arXiv:1501.00102). Features of an extractor stay whole.
        dd: Device and dtype of new layers.

    Shape:
        (N, S, C, H, W), or (N, C, H, W) where S is 1. Features have a dimension S after N, too.
    """

    classifier: nn.Module  # a child only where streams are joined: else it is the backbone's
    # Defaults on the class make these our own, even if the backbone has attributes of the same names.
    streams: int = 1
    stream_join: str = 'mean'
    stream_drop: float = 0.0
    _dd: Placement = {'device': None, 'dtype': None}
    joined: bool = False  # one classifier over all streams
    _classifier_name: str = ''  # of the backbone's classifier that it replaces
    _num_classes: int = 0  # of it

    def __init__(
            self,
            backbone: TimmModel,
            towers: Sequence[nn.Module] = (),
            streams: int = 1,
            join: str = 'mean',
            drop: float = 0.0,
            dd: Placement | None = None,
            **before: nn.Module | None,
    ) -> None:
        super().__init__(backbone, towers, **before)
        self.streams, self.stream_join, self.stream_drop, self._dd = streams, join, drop, dd or self._dd
        self.joined = _needs_classifier(backbone, streams, join, bool(towers))

    def join_classifiers(self, num_classes: int | None = None) -> None:
        """Put one classifier behind the join, if one is needed, for ``num_classes``. Default: the backbone's.

        It starts from the backbone's classifier where that has the same classes.
        """
        if not self.joined:
            return
        old = self.backbone.get_classifier()
        self._classifier_name = next(name for name, m in self.backbone.named_modules() if m is old)
        self._num_classes = self.backbone.num_classes if num_classes is None else num_classes
        self._leave_classifiers_out()
        classifier = self._make_classifier(self._num_classes)
        nn.Module.__setattr__(self, 'classifier', classifier)  # even if the backbone has one
        state: dict[str, Tensor] = old.state_dict()
        if 'weight' in state and not state['weight'].is_meta and isinstance(classifier, nn.Linear):
            start = _over_streams(state['weight'], state.get('bias'), classifier)
            classifier.load_state_dict(start, strict=bool(start))

    def _leave_classifiers_out(self, *pool: str) -> None:
        for backbone in self.backbones():
            if pool or backbone.num_classes:  # to timm 1.0.29, no pooling would mean average pooling
                backbone.reset_classifier(0, *pool)
            if type(dict(backbone.named_modules()).get(self._classifier_name)) is nn.Identity:
                backbone.set_submodule(self._classifier_name, _Elsewhere())

    def _named_here(self, name: str) -> str:
        return 'classifier' if self.joined and name == self._classifier_name else name

    def _make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes, **self._dd) if num_classes > 0 else nn.Identity()

    def adapt_plain(self, plain: dict[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
        """If the class counts match, the joined classifier starts from the plain one; otherwise that is left out."""
        if not self.joined:
            return {}, set()
        weight, bias = plain.get(f'{self._classifier_name}.weight'), plain.get(f'{self._classifier_name}.bias')
        start: dict[str, Tensor] = {}
        if weight is not None and isinstance(self.classifier, nn.Linear):
            start = _over_streams(weight, bias, self.classifier)
        used = {name for name in plain if name.startswith(self._classifier_name + '.')}
        return {CLASSIFIER + name: value for name, value in start.items()}, used

    @property
    def num_classes(self) -> int:
        return self._num_classes if self.joined else self.backbone.num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        if self.joined:
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
        own = hasattr(self.backbone, 'head_hidden_size')
        width = self.backbone.head_hidden_size if own else self.backbone.num_features
        return width * self.streams if self.stream_join == 'concat' else width

    @if_backbone_can
    def get_classifier(self) -> nn.Module:
        return self.classifier if self.joined else self.backbone.get_classifier()

    @if_backbone_can
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for other classes; 0 for none. ``global_pool`` None keeps the pooling."""
        pool = () if global_pool is None else (global_pool,)
        if not self.joined:
            for backbone in self.backbones():
                backbone.reset_classifier(num_classes, *pool)
        else:
            if pool:
                self._leave_classifiers_out(*pool)
            self._num_classes = num_classes
            like = next(self.parameters())
            self.classifier = self._make_classifier(num_classes).to(device=like.device, dtype=like.dtype)

    def each_stream(self, fn: Callable[[TimmModel, Any], Nest], x: Nest, first: int = 0) -> Nest:
        """Run ``fn(backbone, x)`` over the streams of x, (N, S, ...) or nests of such; so is what comes out.

        Args:
            fn: What to run.
            x: Without S where there is one stream.
            first: Number of streams that come before those of x.
        """
        if self.streams == 1:
            return fn(self.backbone, x)
        if self.has_towers:
            towers = self.backbones()[first:]
            outs = [fn(tower, map_tensors(partial(torch.select, dim=1, index=s), x)) for s, tower in enumerate(towers)]
            return map_tensors(_stack, *outs)
        out = fn(self.backbone, map_tensors(lambda t: t.flatten(0, 1), x))  # (N * S, ...)
        return map_tensors(lambda t: t.unflatten(0, (-1, self.streams - first)), out)  # (N, S, ...)

    def forward(self, x: Tensor, **kwargs: object) -> Any:
        if self.streams == 1:
            return self.backbone(x, **kwargs)
        self._check_left_out()
        return self._logits(self.each_stream(lambda backbone, image: backbone(image, **kwargs), x))

    def forward_features(self, x: Tensor, **kwargs: object) -> Any:
        """Unpooled features of the backbone; (N, S, ...) with streams."""
        return self.each_stream(lambda backbone, image: backbone.forward_features(image, **kwargs), x)

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """Features to logits, or to what the classifier takes."""
        if self.streams == 1:
            return self.backbone.forward_head(x, pre_logits=pre_logits)
        self._check_left_out()
        out = self.each_stream(lambda backbone, f: backbone.forward_head(f, pre_logits=pre_logits or self.joined), x)
        return self._join(out) if pre_logits else self._logits(out)

    def _join(self, x: Nest) -> Tensor:
        """Features (N, S, ...) of all streams to the mean, or to all channels side by side."""
        x = cast(Tensor, self._dropped(x))
        if self.stream_join == 'mean':
            return x.mean(1)
        return _side_by_side(x, told_of_layout(self.backbone)['output_fmt'] != 'NHWC')

    def _logits(self, out: Nest) -> Nest:
        """What the streams' backbones give to logits; features of an extractor stay apart."""
        if self.joined:
            return cast(Tensor, self.classifier(self._join(out)))
        return map_tensors(_mean, self._dropped(out)) if hasattr(self.backbone, 'reset_classifier') else out

    def _dropped(self, x: Nest) -> Nest:
        """What the streams give, (N, S, ...), of which in training some images keep one stream alone."""
        if not (self.stream_drop and self.training):
            return x
        weights = _stream_weights(_first_tensor(x), self.stream_drop)
        return map_tensors(lambda t: _weighed(t, weights), x)

    def _check_left_out(self) -> None:
        """Raise where the backbone has a classifier again: what it gives is not what the joined one takes."""
        if self.joined and any(_has_linear(backbone, self._classifier_name) for backbone in self.backbones()):
            raise ValueError(
                f'{self._classifier_name}: this network has one classifier over all streams, {_Elsewhere.advice}')


class _Elsewhere(nn.Identity):
    """What a backbone has in place of a classifier that is behind the join."""
    advice = 'net.classifier: replace that, or call net.reset_classifier(num_classes).'

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(f'no {name} here: the classifier over all streams is {self.advice}') from None


def _needs_classifier(backbone: TimmModel, streams: int, join: str, has_towers: bool) -> bool:
    if streams == 1 or not hasattr(backbone, 'reset_classifier'):
        return False
    old = backbone.get_classifier()
    if join == 'mean':
        return has_towers and isinstance(old, nn.Linear | nn.Identity)
    if not isinstance(old, nn.Module):
        raise ValueError(f"stn_join='concat' needs a backbone with one classifier; {type(backbone).__name__} has "
                         "several: use stn_join='mean'.")
    return True


def _over_streams(weight: Tensor, bias: Tensor | None, classifier: nn.Linear) -> dict[str, Tensor]:
    """Weights that give the mean over the streams of what one backbone's linear classifier gives; else none."""
    weight = weight.flatten(1)  # of a convolution
    repeats = classifier.in_features // weight.shape[1]
    if tuple(classifier.weight.shape) != (weight.shape[0], weight.shape[1] * repeats):
        return {}
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return dict(weight=weight.repeat(1, repeats) / repeats, bias=bias)


def _has_linear(module: nn.Module, name: str) -> bool:
    """Whether a module has a linear layer of this name; some timm models remove what holds their classifier, too."""
    found: Any = module
    for part in name.split('.'):
        found = getattr(found, part, None)
    return isinstance(found, nn.Linear)


@recorded_call
def _stream_weights(x: Tensor, drop: float) -> Tensor:
    """(N, S) for what S streams give, (N, S, ...): ones, or S for one stream and 0 for the others."""
    like = x.detach().flatten(2)[:, :, 0].float()  # (N, S)
    chosen = torch.rand_like(like)
    alone = (chosen == chosen.amax(1, keepdim=True)) * like.shape[1]
    return torch.where(torch.rand_like(like[:, :1]) < drop, alone, torch.ones_like(like))


@recorded_call
def _weighed(x: Tensor, weights: Tensor) -> Tensor:
    return x * weights.to(x.dtype).reshape(*weights.shape, *[1] * (x.ndim - 2))


@recorded_call
def _side_by_side(x: Tensor, channels_first: bool) -> Tensor:
    """Features (N, S, ...) of all streams to one with all channels; `channels_first` is of maps."""
    if x.ndim == 3:
        return x.flatten(1)  # (N, S, C) to (N, S * C)
    return torch.cat(x.unbind(1), 1 if channels_first and x.ndim == 5 else -1)


def _stack(*streams: Tensor) -> Tensor:
    """Of S streams (N, ...) to (N, S, ...)."""
    return torch.stack(streams, 1)


def _mean(x: Tensor) -> Tensor:
    """(N, S, ...) to (N, ...)."""
    return x.mean(1)


def _first_tensor(tree: Nest) -> Tensor:
    while isinstance(tree, (dict, list, tuple)):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree


def map_tensors(fn: Callable[..., Tensor], *trees: Nest) -> Nest:
    """``fn`` over the tensors of equal nests of lists, tuples and dicts."""
    first = trees[0]
    if isinstance(first, dict):
        dicts = cast('tuple[dict[str, Nest], ...]', trees)
        return {k: map_tensors(fn, *[d[k] for d in dicts]) for k in first}
    if isinstance(first, (list, tuple)):
        mapped = [map_tensors(fn, *parts) for parts in zip(*cast('tuple[list[Nest], ...]', trees))]
        return mapped if isinstance(first, list) else tuple(mapped)
    return fn(*trees)
