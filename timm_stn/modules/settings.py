"""What a spatial transformer is made with. Each argument's default, meaning, type and limit is here, and only here."""
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from ..geometry.sampler import MODES, PADDING_MODES
from ..geometry.sizes import Kind, are_numbers, is_count, is_number, plain
from ..geometry.transforms import get_transform, transform_names

__all__ = [
    'ANY', 'BOOL', 'FIELDS', 'POSITIVE_INTEGER', 'RATE', 'SHARE', 'TransformerSettings', 'argument', 'check_jitter',
    'check_kind', 'check_settings', 'one_of']


def one_of(*values: Any) -> Kind:
    return Kind(lambda value: any(value is v or value == v for v in values), f'one of {values}')


ANY = Kind(lambda value: True, 'anything')  # checked where it is used, by what it names
POSITIVE_INTEGER = Kind(is_count, 'a positive integer')
BOOL = one_of(False, True)
SHARE = Kind(lambda v: is_number(v) and 0 <= v <= 1, 'a number from 0 to 1')
RATE = Kind(lambda v: is_number(v) and 1e-9 <= v <= 1e9, 'a number from 1e-9 to 1e9')


def argument(
        default: Any,
        kind: Kind,
        meaning: str,
        most: float | None = None,
        shown: str = '',
        free: bool = False,
) -> Any:
    """A field of a dataclass of arguments.

    Args:
        default: Its default.
        kind: What it may be.
        meaning: What it does, for the table of arguments.
        most: The largest number that a network's config may ask for, so that it cannot exhaust memory or time.
        shown: The default, in the table. Default: as Python writes it.
        free: Trained weights mean the same with another value.
    """
    return field(default=default, metadata=dict(kind=kind, meaning=meaning, most=most, shown=shown, free=free))


def scales_of(scale: Any) -> tuple[float, float]:
    """Least and largest base scale of glimpses, from one number or two.

    Raises:
        ValueError: ``scale`` is neither.
    """
    scale = plain(scale)
    pair = scale if isinstance(scale, (list, tuple)) else (scale, scale)
    if len(pair) != 2 or any(isinstance(s, bool) or not is_number(s) for s in pair) or not 0 < pair[0] <= pair[1]:
        raise ValueError(f'scale must be a positive number, or two, least and largest, got {scale!r}.')
    return float(pair[0]), float(pair[1])


@dataclass(frozen=True)
class TransformerSettings:
    """Of one transformer in a network: the ``stn_`` arguments that a stage may have of its own, without prefix.

    Raises:
        ValueError: A value is not accepted.
    """
    transform: str = argument(
        'affine', ANY,
        ', '.join(f'`{name}`' for name in transform_names() if get_transform(name).ndim == 2)
        + '; `tps:5x5`, `zoom:7x7` for other lattices; `a+b`')
    scale: float | Sequence[float] = argument(
        1.0, ANY,
        'size of a glimpse as a share of the image, before anything is learned: 0.5 starts with half its width and '
        'height; with `saliency:<stage>` also two numbers, least and largest', most=1e6)
    bound: bool | str = argument(
        'auto', one_of(True, False, 'auto')._replace(accepted="True, False or 'auto'"),
        'keep glimpses inside the image, by a smooth bound: True, False, `auto` (True where the base scale is below 1)')
    localization: str = argument(
        'auto', ANY,
        '`auto`: `saliency:<stage>` for glimpses of the image (base scale below 1) and to `zoom`, else `conv`; or one '
        'of the localization networks below')
    localization_size: int | Sequence[int] | None = argument(
        None, ANY,
        'side(s) of the anti-aliased shrink that the localization network sees; for `shared:`, `saliency:` and '
        '`orbit:` the size that the backbone sees', most=1024, shown='by network', free=True)
    iterations: int = argument(
        1, POSITIVE_INTEGER,
        'refine theta K times, with `saliency:<stage>` from a start found anew each time; pixels are sampled once',
        most=64)
    mode: str = argument('bilinear', one_of(*MODES), '`bilinear`, `bicubic`, `nearest`')
    padding_mode: str = argument(
        'border', one_of(*PADDING_MODES),
        '`border`, `zeros` (the mean colour, after normalisation), `reflection`, `fill`')
    fill: float | Sequence[float] | None = argument(
        None, Kind(lambda v: v is None or are_numbers(v), 'a number, or several, one for each channel'),
        'value(s) for `fill`: one, or one per channel, in normalised space')
    antialias: bool = argument(False, BOOL, 'low-pass filter where the transform shrinks the image')
    lr_scale: float = argument(
        10.0, RATE,
        'learning rate of theta relative to the rest of the network, the same under every optimizer; also scales the '
        'bound on each step of theta; may change between runs', free=True)
    penalty: float = argument(
        0.0, Kind(lambda v: is_number(v) and v >= 0, 'a number, 0 or more'),
        "in training, pulls glimpses back into the image and apart, at most this many times as strongly as the loss's "
        'own gradient usually moves theta; see [training](docs/training.md)', free=True)
    jitter: float = argument(
        0.0, SHARE,
        'in training, glimpses start at random places near where they would: moved along each axis by at most this '
        'share of their half-width, and enlarged or shrunk by a factor of at most 1 plus this share', free=True)
    freeze_steps: int = argument(
        0, Kind(lambda v: v == 0 or is_count(v), 'an integer, 0 or more'),
        'number of first backward passes in which the transformers get zero gradients; counted in the checkpoint',
        most=2 ** 53, free=True)

    def __post_init__(self) -> None:
        scales_of(self.scale)
        check_settings(**vars(self))
        check_jitter(self.jitter, self.scales[0])

    @property
    def scales(self) -> tuple[float, float]:
        """Least and largest base scale of glimpses."""
        return scales_of(self.scale)


FIELDS: dict[str, Field] = {f.name: f for f in fields(TransformerSettings)}


def check_settings(**given: Any) -> None:
    """Check the types of arguments of a transformer.

    Raises:
        ValueError: A value is not accepted; the message names argument, value and what is accepted.
    """
    for name, value in given.items():
        check_kind(name, value, FIELDS[name].metadata['kind'])


def check_jitter(jitter: float, scale: float) -> None:
    if jitter and scale >= 1:
        raise ValueError(f'jitter must be 0 where scale is not below 1: it is for glimpses; got {jitter!r}, {scale!r}.')


def check_kind(name: str, value: Any, kind: Kind) -> None:
    if not kind.accepts(value):
        raise ValueError(f'{name} must be {kind.accepted}, got {value!r}.')
