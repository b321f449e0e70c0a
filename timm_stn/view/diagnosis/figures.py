"""Numbers of what a transformer did with images, of which a verdict is made."""
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry_of_looks import wrapped
from .examined import Examined

__all__ = ['FAR', 'Figures', 'Range', 'Share', 'figures_of']

FAR = 4.0  # half-widths
BLANK = 0.02  # contrast of what is seen, in that of the input, below which it is taken to be of one colour


class Range(NamedTuple):
    """The 5th, 50th and 95th percentile of views."""
    low: float
    middle: float
    high: float


class Share(NamedTuple):
    """A share, and its standard error; of a difference, that of paired images."""
    value: float
    error: float


@dataclass(frozen=True)
class Figures:
    """What one transformer did with images. Lengths are in half-widths of its input, whose edges are at -1 and 1.

    Attributes:
        stage: As in ``stn_stages``.
        name: In ``named_modules``.
        images: How many.
        glimpses: How many views of each.
        scale: Of views, the root of their share of the input's area, or the cube root of that of its volume. For
            families that are not affine, that of the affine map nearest to each; so are angle and shear.
        start_scale: The same with nothing regressed, the median.
        angle: Degrees, clockwise, in pixels; None of volumes.
        shear: Degrees by which sides are not at right angles; None of volumes.
        center_x: Of the centres of views; so is ``center_y``.
        outside: Share of the views' pixels that lie outside the image.
        far: Share of the views of which most lies farther than four half-widths from the image's centre.
        moved: How far points of views are from where they would be with nothing regressed (root mean square).
        between: How far they are from their mean over the images (the same).
        within: How far they move with noise of a tenth of the images' standard deviation (the same).
        overlap: Of the two glimpses that overlap most: intersection over union of the boxes around them, the mean over
            images.
        blank: Share of the images of which no view shows more than one colour.
        infinite: Share of the images for which parameters were not finite.
        gradient: Norm of the loss's gradient to theta, in that to the parameters of the backbone.
        accuracy: With the transformer; None where targets are not known.
        accuracy_at_start: With nothing regressed.
        accuracy_shuffled: With thetas shuffled between images.
        gain: The first less the second.
        gain_from_looking: The first less the third.
        loss_from_looking: The same of the cross-entropy; below zero, looking helps.
        chance: Accuracy of whoever always answers the most frequent class; None where targets are no classes.
        changed: Share of the answers that shuffling changes.
        box_overlap: Of true boxes with the view that meets each best, intersection over union, the mean.
        box_found: Share of true boxes whose centre is in (the box around) a view.
    """
    stage: int | str
    name: str
    images: int
    glimpses: int
    scale: Range
    start_scale: float
    angle: Range | None
    shear: Range | None
    center_x: Range
    center_y: Range
    outside: float
    far: float
    moved: float
    between: float
    within: float
    overlap: float | None
    blank: float
    infinite: float
    gradient: float | None
    accuracy: Share | None = None
    accuracy_at_start: Share | None = None
    accuracy_shuffled: Share | None = None
    gain: Share | None = None
    gain_from_looking: Share | None = None
    loss_from_looking: Share | None = None
    chance: float | None = None
    changed: float | None = None
    box_overlap: float | None = None
    box_found: float | None = None

    @property
    def lines(self) -> list[str]:
        """The figures in words."""
        found = []
        if self.infinite:
            found.append(f'parameters are not finite for {_percent(self.infinite)} of the images, which are seen as if '
                         'nothing had been regressed: the figures below are of all')
        found += [
            f'scale {_words(self.scale)} of the side (at its start {self.start_scale:.2f})'
            + (f', angle {_words(self.angle, 0)} degrees' if self.angle else '')
            + (f', shear {_words(self.shear, 0)} degrees' if self.shear else ''),
            f'centre x {_words(self.center_x)}, y {_words(self.center_y)} half-widths; {_percent(self.outside)} of the '
            'views outside the image'
            + ('' if self.overlap is None else f'; glimpses overlap by {_percent(self.overlap)}'),
            f'between images {self.between:.3f} half-widths, with noise on an image {self.within:.3f}; from its start '
            f'{self.moved:.3f}',
        ]
        if self.accuracy and self.accuracy_at_start and self.accuracy_shuffled:
            found.append(f'accuracy {_share_words(self.accuracy)}; with it at its start '
                         f'{_share_words(self.accuracy_at_start)}; with thetas of other images '
                         f'{_share_words(self.accuracy_shuffled)}')
            if self.loss_from_looking is not None:
                value, error = self.loss_from_looking
                found.append(f'with thetas of other images, the loss is {abs(value):.2g} ± {error:.1g} '
                             f'{"higher" if value < 0 else "lower"}')
        elif self.changed is not None:
            found.append(f'{_percent(self.changed)} of the answers change with thetas of other images')
        if self.gradient is not None:
            found.append(f"the gradient to theta is {self.gradient:.2g} times the backbone's")
        if self.box_overlap is not None and self.box_found is not None:
            found.append(f'of the true boxes, {_percent(self.box_found)} have their centre in a view; mean overlap '
                         f'{_percent(self.box_overlap)}')
        return found

    @property
    def json(self) -> dict[str, Any]:
        """Plain numbers, rounded to six digits."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def figures_of(each: Examined) -> Figures:
    stn = each.watch.stn
    points, start, noisy = (each.all(part).double() for part in ('points', 'start', 'noisy'))
    right, at_start, shuffled = (each.all(part).double() for part in ('right', 'right_start', 'right_shuffled'))
    known = len(right) > 0
    answers = each.all('answer')
    targets = each.all('class').long()
    boxes, loss = _padded(each.parts['boxes']), each.all('loss').double()
    return Figures(
        stn.stage, each.watch.name, len(points), stn.glimpses,
        scale=_range(each.all('scale')), start_scale=float(each.all('start_scale').median()),
        angle=_turns(each.all('angle')), shear=_turns(each.all('shear')),
        center_x=_range(each.all('center')[..., 0]), center_y=_range(each.all('center')[..., 1]),
        outside=float(each.all('outside').mean()),
        far=float((points.abs().amax(3).median(2).values > FAR).double().mean()),
        moved=_rms(points - start), between=_rms(points - points.mean(0)), within=_rms(noisy - points),
        overlap=_overlap(points, stn.glimpses), blank=float((each.all('contrast').amax(1) < BLANK).double().mean()),
        infinite=float((~each.all('finite')).double().mean()), gradient=each.gradient,
        accuracy=_share(right) if known else None,
        accuracy_at_start=_share(at_start) if known else None,
        accuracy_shuffled=_share(shuffled) if known else None,
        gain=_share(right - at_start) if known else None,
        gain_from_looking=_share(right - shuffled) if known else None,
        loss_from_looking=_share(loss - each.all('loss_shuffled').double()) if len(loss) else None,
        chance=float(targets.bincount().max() / len(targets)) if len(targets) else None,
        changed=float((answers != each.all('answer_shuffled')).double().mean()) if len(answers) else None,
        **_agreement(points, boxes))


def _range(values: Tensor) -> Range:
    values = values.flatten().double()
    return Range(*torch.quantile(values, values.new_tensor([0.05, 0.5, 0.95])).tolist())


def _turns(degrees: Tensor) -> Range | None:
    """About their mean direction, for 179 and -179 degrees are near each other."""
    if not len(degrees):
        return None
    turns = torch.deg2rad(degrees.double())
    mean = float(torch.rad2deg(torch.atan2(turns.sin().mean(), turns.cos().mean())))
    return Range(*(mean + away for away in _range(wrapped(degrees - mean))))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _share(values: Tensor) -> Share:
    """Mean and standard error."""
    return Share(float(values.mean()), float(values.std(unbiased=False)) / math.sqrt(len(values)))


def _boxes_around(points: Tensor) -> Tensor:
    """(..., 2 d): low corners, then high ones, of points (..., K, d)."""
    return torch.cat([points.amin(-2), points.amax(-2)], -1)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 2 d)."""
    d = one.shape[-1] // 2
    low, high = torch.maximum(one[..., :d], other[..., :d]), torch.minimum(one[..., d:], other[..., d:])
    shared = (high - low).clamp_min(0).prod(-1)
    area = [(box[..., d:] - box[..., :d]).prod(-1) for box in (one, other)]
    return shared / (area[0] + area[1] - shared).clamp_min(1e-12)


def _overlap(points: Tensor, glimpses: int) -> float | None:
    if glimpses == 1:
        return None
    views = _boxes_around(points).reshape(len(points), -1, glimpses, 2 * points.shape[-1])  # (N, rows, G, 2 d)
    pairs = [iou(views[:, :, a], views[:, :, b]).mean() for a, b in combinations(range(glimpses), 2)]
    return float(torch.stack(pairs).max())


def _padded(boxes: list[Tensor]) -> Tensor:
    """Boxes (n, B, 4) of all batches as (N, B, 4), with as many as there are at most; those that are not are of nan."""
    most = max((b.shape[1] for b in boxes), default=0)
    return torch.cat([torch.cat([b, b.new_full((len(b), most - b.shape[1], 4), math.nan)], 1) for b in boxes]
                     or [torch.empty(0, 0, 4)])


def _agreement(points: Tensor, boxes: Tensor) -> dict[str, float]:
    """Of each true box, with the view that meets it best."""
    known = boxes.isfinite().all(-1)  # (N, B)
    if not known.any() or points.shape[-1] != 2:
        return {}
    views, boxes = _boxes_around(points)[:, None], boxes.double()[:, :, None]  # (N, 1, V, 4), (N, B, 1, 4)
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((views[..., :2] <= center) & (center <= views[..., 2:])).all(3).any(2)
    best = iou(views, boxes).amax(2)
    return dict(box_overlap=float(best[known].mean()), box_found=float(inside[known].double().mean()))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _words(values: Range, digits: int = 2) -> str:
    low, middle, high = (f'{value:.{digits}f}' for value in values)
    return middle if low == high else f'{middle} ({low} to {high})'


def _percent(share: float) -> str:
    return f'{100 * share:.0f} %'


def _share_words(share: Share) -> str:
    return f'{100 * share.value:.1f} %'
