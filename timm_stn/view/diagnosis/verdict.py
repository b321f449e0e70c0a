"""What is wrong with a transformer, in plain words, and which knob to turn."""
from collections.abc import Callable
from typing import NamedTuple

from ...geometry.transforms import get_transform
from ...modules.spatial_transformer import SpatialTransformer
from .figures import FAR, Figures, Share
from .watch import Watch

__all__ = ['Fault', 'faults_of', 'healthy']

SOME = 0.05  # share of views
STILL = 1e-6  # half-widths by which nothing has moved
ALIKE = 0.005  # half-widths: below, theta does not depend on the image
SMALL = 0.2  # of the scale at its start, below which a view has collapsed
MOSTLY = 0.5  # share of views, or of a view
TOGETHER = 0.8  # overlap of glimpses that look at the same place
ERRORS = 2.0  # standard errors from which a difference counts
LITTLE = 0.01  # share of answers
TRACE = 0.005  # of cross-entropy
SIMPLER = ('affine', 'similarity', 'attention', 'translation')


class Fault(NamedTuple):
    """``kind`` in one word; ``text`` says what is wrong, and which knob to turn."""
    kind: str
    text: str


def faults_of(figures: Figures, watch: Watch) -> list[Fault]:
    """The faults of a transformer, the worst first: none that only follows from another."""
    found: list[Fault] = []
    hidden: set[str] = set()
    for kind, (rule, hides) in RULES.items():
        text = rule(figures, watch.stn) if watch.learns or kind in OF_ALL else None
        if text and kind not in hidden:
            found.append(Fault(kind, text))
            hidden |= hides
    return found


def healthy(figures: Figures) -> str:
    """One line on a transformer without a fault."""
    if figures.between < ALIKE:
        return 'no harm found, and no use: it does the same for every image'
    text = f'healthy: what it looks at differs from image to image (by {figures.between:.2f} half-widths)'
    gain, loss, accuracy = figures.gain_from_looking, figures.loss_from_looking, figures.accuracy
    if gain is None:
        text += ', as far as can be told without classes'
        changed = '' if figures.changed is None else f': {_percent(figures.changed)} of the answers change'
        return f'{text}{changed} with thetas of other images' if changed else text
    if accuracy is None or not (_counts(gain) or (loss is not None and _counts(_less(loss)))):
        return text
    text += f', and that gives {_points(gain)} of {100 * accuracy.value:.1f} % accuracy'
    return text if loss is None or _counts(gain) else f'{text} (of the loss, {-loss.value:.2g} ± {loss.error:.1g})'


def _exploding(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.infinite > 0:
        what = f'its parameters are not finite for {_percent(f.infinite)} of the images'
    elif f.far > SOME:
        what = f'{_percent(f.far)} of the views lie mostly farther than {FAR:.0f} half-widths from the centre'
    else:
        return None
    return f'exploding: {what}. Lower stn_lr_scale or the learning rate{_bound(stn)}{_fewer(stn)}'


def _frozen(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.moved > STILL or f.between > ALIKE:  # some start where the backbone's features respond
        return None
    if stn.freeze_steps and int(stn.backward_passes) < stn.freeze_steps:
        return (f'frozen: it is still where it started, for stn_freeze_steps={stn.freeze_steps} and there were '
                f'{int(stn.backward_passes)} backward passes. Lower stn_freeze_steps, or train longer')
    if not any(p.requires_grad for p in stn.parameters()):
        return ('frozen: it is still where it started, and its parameters do not require gradients. Call '
                'requires_grad_() on it, and give its parameters to the optimizer')
    return ('frozen: it is still where it started. Were it trained, theta would have moved: are its parameters in the '
            'optimizer, with a learning rate? Then raise stn_lr_scale')


def _black(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.blank <= MOSTLY:
        return None
    return (f'black: of {_percent(f.blank)} of the images it shows one colour alone, and no gradient leads back. '
            f'Train anew with stn_penalty=2{_bound(stn)} or a lower stn_lr_scale')


def _collapsed(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.scale.middle >= SMALL * f.start_scale or _pays(f):
        return None
    rigid = ', or use a family that cannot shrink (translation, rotation)' if stn.transform.ndim == 2 else ''
    return (f"collapsed: views have shrunk to {f.scale.middle:.2f} of the image's side, from {f.start_scale:.2f}. "
            f'Set stn_penalty=2{rigid}, or lower stn_lr_scale')


def _outside(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.outside <= MOSTLY:
        return None
    zooms = f"it zooms out, to {f.scale.middle:.2f} of the image's side" if f.scale.middle > 1.2 else 'it looks away'
    return (f'outside: {_percent(f.outside)} of what it shows lies outside the image: {zooms}. Set '
            f'stn_penalty=2{_bound(stn)}{_zoom(stn)}{_fewer(stn)}{_still(f)}')


def _constant(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.between >= ALIKE:
        return None
    return (f'constant: it does the same for every image (to {f.between:.4f} half-widths): a fixed crop. Train longer, '
            f'raise stn_lr_scale (now {_lr_scale(stn)}), or leave it out: there may be nothing to find')


def _alike(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.overlap is None or f.overlap <= TOGETHER:
        return None
    return (f'alike: of its {f.glimpses} glimpses, at least two look at the same place (they overlap by '
            f'{_percent(f.overlap)}). Set stn_penalty=2, which pushes them apart, a smaller stn_scale, or (not with '
            "stn_join='channels') stn_localization='saliency:<stage>', which starts them apart")


def _chance(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.accuracy is None or f.chance is None or f.accuracy.value > f.chance + ERRORS * f.accuracy.error:
        return None
    return (f'chance: the network is right in {100 * f.accuracy.value:.1f} % of the images, and the most frequent '
            f'class alone is {100 * f.chance:.1f} %: that is not for its transformer. Train it for longer, or at '
            'another learning rate, and ask again')


def _unused(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.gain_from_looking is not None:
        loss = f.loss_from_looking
        if _counts(f.gain_from_looking) or (loss is not None and _counts(_less(loss)) and -loss.value > TRACE):
            return None
        accuracy = f.accuracy.value - f.gain_from_looking.value if f.accuracy else 0.0
        shown = (f'accuracy is {100 * accuracy:.1f} in place of {100 * (accuracy + f.gain_from_looking.value):.1f} % '
                 f'(± {100 * f.gain_from_looking.error:.1f} points)')
    elif f.changed is not None and f.changed <= LITTLE:
        shown = f'{_percent(f.changed)} of the answers change'
    else:
        return None
    return (f'unused: these {f.images} images do not show that the answers use where it looks: with thetas of other '
            f'images, {shown}. If more images (--count) show no more, a fixed crop does as well; else give it more to '
            f'find (a smaller stn_scale, or stn_size), or train the backbone with it for longer{_alike_for_all(f)}')


def _harmful(f: Figures, stn: SpatialTransformer) -> str | None:
    if f.gain is None or not _counts(_less(f.gain)) or -f.gain.value < LITTLE:
        return None
    return (f'harmful: accuracy is {_points(_less(f.gain))} lower than with the transformer at '
            'its start. Lower stn_lr_scale, or start it later (stn_freeze_steps)')


Rule = Callable[[Figures, SpatialTransformer], str | None]

RULES: dict[str, tuple[Rule, set[str]]] = {  # the worst first, each with those that follow from it
    'exploding': (_exploding, {
        'frozen', 'black', 'collapsed', 'outside', 'constant', 'alike', 'chance', 'unused', 'harmful'}),
    'frozen': (_frozen, {'constant', 'alike', 'unused'}),
    'black': (_black, {'collapsed', 'outside', 'constant', 'alike', 'chance', 'unused', 'harmful'}),
    'collapsed': (_collapsed, {'unused', 'harmful'}),
    'outside': (_outside, {'unused', 'harmful'}),
    'constant': (_constant, {'unused'}),
    'alike': (_alike, set()),
    'chance': (_chance, {'unused', 'harmful'}),
    'unused': (_unused, set()),
    'harmful': (_harmful, set()),
}
OF_ALL = {'harmful'}  # also of what does not learn


def _counts(share: Share) -> bool:
    """Whether it is above zero, beyond its error."""
    return share.value > ERRORS * share.error


def _less(share: Share) -> Share:
    return Share(-share.value, share.error)


def _pays(f: Figures) -> bool:
    """Whether looking at each image by itself clearly helps, and what was learnt does."""
    gains = (f.gain_from_looking, f.gain)
    return all(gain is not None and _counts(gain) and gain.value > LITTLE for gain in gains)


def _still(f: Figures) -> str:
    """That looking helps all the same."""
    return f' (as it is, looking gives {_points(f.gain_from_looking)})' if f.gain_from_looking and _pays(f) else ''


def _alike_for_all(f: Figures) -> str:
    """That what it learnt as a crop is of use."""
    return f'. Compared with its start, accuracy is {_points(f.gain)} higher' if f.gain and _counts(f.gain) else ''


def _bound(stn: SpatialTransformer) -> str:
    return ', stn_bound=True' if stn.transform.linear and not stn.bound else ''


def _zoom(stn: SpatialTransformer) -> str:
    can = stn.transform.ndim == 2 and not stn.transform.has_density
    return ', or stn_transform=zoom, which keeps all of the image in view' if can else ''


def _fewer(stn: SpatialTransformer) -> str:
    """A family of fewer parameters, where there is one."""
    fewer = [name for name in SIMPLER if get_transform(name).num_params < stn.transform.num_params]
    return f', or fewer parameters (stn_transform={fewer[0]})' if fewer and stn.transform.ndim == 2 else ''


def _lr_scale(stn: SpatialTransformer) -> str:
    return f"{getattr(getattr(stn.localization, 'regression', None), 'lr_scale', 'unknown')}"


def _percent(share: float) -> str:
    return f'{100 * share:.0f} %'


def _points(share: Share) -> str:
    return f'{100 * share.value:.1f} ± {100 * share.error:.1f} points'
