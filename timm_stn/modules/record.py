"""What a transformer was made with, beside its weights: settings without parameters change what the weights mean.

A network of another scale, padding or family may have parameters of the same shapes, take the weights without a word,
and answer worse. So a transformer has a buffer that names its settings, and compares them when weights are loaded.

What people do to checkpoints must not spoil it, nor it them: timm's loaders, safetensors and moving averages keep
nothing but tensors. So the text is a tensor, of always the same shape, and of octal digits: floating-point types down
to float8 hold them exactly, also after a mean over checkpoints, or over time in bfloat16, and so do integers.
"""
import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..geometry.grid import has_values
from .casts import as_count, is_lost
from .gradients import COUNT
from .localization import Localization
from .regression import SCALE
from .settings import FIELDS, RATE

__all__ = [
    'RECORD', 'Doubts', 'adapt', 'describe', 'explain', 'misfit', 'read_record', 'record', 'settings_of',
    'without_records']

RECORD = 'made_with'  # name of the buffer
LETTERS, DIGITS = 512, 3  # at most, and for each
ROUNDED = 1 / 8  # at most so much of a number, by any floating-point type
OF_TRANSFORMER = [name for name, field in FIELDS.items() if not field.metadata['free']]
MEANT = (*OF_TRANSFORMER, 'glimpses', 'whole', 'target')  # other entries tell how to load weights


def settings_of(stn: Any) -> dict[str, Any]:
    """What a transformer is made with, as JSON stores it."""
    localization = stn.localization if isinstance(stn.localization, Localization) else None  # one's own tells nothing
    least, most = stn.scales
    found = {name: getattr(stn, name, getattr(stn.sampling, name, None)) for name in OF_TRANSFORMER}
    found.update(
        transform=stn.transform.name, scale=least if least == most else [least, most], glimpses=stn.glimpses,
        localization=getattr(localization, 'kind', None), localization_size=getattr(localization, 'size', None),
        lr_scale=getattr(getattr(localization, 'regression', None), 'lr_scale', None))
    if found['localization'] is None:  # somebody's own
        del found['localization']
    found.update(stn.of_network)
    return {name: _lists(v) for name, v in found.items()}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def record(settings: Mapping[str, Any], device: Any = None) -> Tensor:
    """Settings as digits, (LETTERS * DIGITS,) in float32; the longest are left out where there is no room."""
    kept = dict(settings)
    while len(text := json.dumps(kept, separators=(',', ':'))) > LETTERS:
        del kept[max(kept, key=lambda name: len(json.dumps(kept[name])))]
    digits = ''.join(f'{ord(letter):0{DIGITS}o}' for letter in text.ljust(LETTERS))
    return torch.tensor([float(digit) for digit in digits], dtype=torch.float32, device=device)


def describe(stn: Any, argument: str = '', **of_network: Any) -> None:
    """Write down what a transformer is made with.

    Args:
        stn: The transformer.
        argument: What the names of its settings begin with, as arguments of the network around it.
        **of_network: What that network knows of them; with none, what it is made with is written down anew.
    """
    stn.argument, stn.of_network = argument or stn.argument, of_network or stn.of_network
    with torch.no_grad():
        stn.made_with.copy_(record(settings_of(stn), 'cpu'))


def read_record(digits: object) -> dict[str, Any]:
    """The settings of a record in any dtype; {} where it is none, or cannot be read any more."""
    if not isinstance(digits, Tensor) or digits.is_meta or not has_values(digits) or digits.numel() != LETTERS * DIGITS:
        return {}
    numbers = digits.detach().to('cpu', torch.float32).round().nan_to_num(8).clamp(0, 8).int().tolist()
    try:
        codes = [int(''.join(map(str, numbers[i:i + DIGITS])), 8) for i in range(0, len(numbers), DIGITS)]
        found = json.loads(''.join(map(chr, codes)))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def without_records(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the records: older checkpoints have none."""
    return {k: v for k, v in state_dict.items() if k.rpartition('.')[2] != RECORD}


def adapt(stn: Any, state_dict: dict[str, Any], prefix: str, errors: list[str]) -> None:
    """Before a state dict is loaded into a transformer: adds what older ones lack, and tells what does not fit.

    Args:
        stn: The transformer.
        state_dict: With its keys; changed in place.
        prefix: That its keys begin with.
        errors: Of loading; see :func:`explain`.

    Warns:
        UserWarning: The weights are of a transformer with other settings; it names these, and the arguments to pass.
    """
    theirs, ours = read_record(state_dict.get(prefix + RECORD)), settings_of(stn)
    other = _other_settings(stn, prefix, theirs, ours)
    if _fits(stn, state_dict, prefix):
        _warn(other)
    else:  # what torch makes of it is known after the layers have loaded
        stn.doubts = Doubts(errors, len(errors), other, misfit(stn, state_dict, prefix))
    _keep_scale(state_dict, f'{prefix}localization.regression.{SCALE}', theirs.get('lr_scale'))
    placed = [v.device for v in state_dict.values() if isinstance(v, Tensor) and not v.is_meta]
    state_dict[prefix + RECORD] = record(ours, placed[0] if placed else 'cpu')
    count, own = state_dict.pop(prefix + COUNT, None), stn._buffers.get(COUNT)
    if own is not None:
        absent = torch.zeros_like(own, device='cpu') if own.is_meta else own
        state_dict[prefix + COUNT] = absent if count is None else as_count(count, lost=2 ** 53)


class Doubts(NamedTuple):
    """What to say of weights of other shapes: ``why`` they do not fit if loading fails, else ``other`` settings."""
    errors: list[str]  # of loading
    before: int  # so many of them are of what loaded before
    other: list[str]
    why: list[str]


def explain(stn: Any) -> None:
    """After a state dict was loaded into a transformer and its layers: say what is to be said of other shapes."""
    doubts, stn.doubts = stn.doubts, None
    if doubts is None:
        return
    if len(doubts.errors) > doubts.before:
        doubts.errors.extend(doubts.why)
    else:  # a localization network of one's own has made them fit
        _warn(doubts.other)


def _warn(texts: list[str]) -> None:
    for text in texts:
        warnings.warn(text, stacklevel=3)


def misfit(stn: Any, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
    """Why weights are of other shapes than a transformer's: what it is made with, what its localization network sees.

    Sentences; none where the shapes are the same, or nothing is known.
    """
    if _fits(stn, state_dict, prefix):
        return []
    theirs, ours = read_record(state_dict.get(prefix + RECORD)), settings_of(stn)
    return _other_settings(stn, prefix, theirs, ours) + _other_size(stn, state_dict, prefix, theirs, ours)


def _fits(stn: Any, state_dict: Mapping[str, Any], prefix: str) -> bool:
    return all(theirs == ours for theirs, ours in _shapes(stn, state_dict, prefix[:-1]))


def _shapes(module: Any, state_dict: Mapping[str, Any], name: str) -> list[tuple[Any, Any]]:
    """Of the parameters that both a state dict and a module of this name have: the two shapes."""
    parameters = [(state_dict.get(key), own) for key, own in module.named_parameters(name) if not is_lazy(own)]
    return [(value.shape, own.shape) for value, own in parameters if isinstance(value, Tensor)]


Settings = Mapping[str, Any]


def _other_settings(stn: Any, prefix: str, theirs: Settings, ours: Settings) -> list[str]:
    known = [k for k in MEANT if k in theirs and k in ours]
    other = {k: theirs[k] for k in known if theirs[k] != ours[k] and repr(theirs[k]) != repr(ours[k])}  # NaN is NaN
    if not other:
        return []
    mine = _text({k: ours[k] for k in other})
    return [f'the weights {prefix}* are of a transformer with {_text(other)}; here it has {mine}. To use them as they '
            f'were trained, pass {_text(other, stn.argument)}{_where(stn)}.']


def _other_size(
        stn: Any, state_dict: Mapping[str, Any], prefix: str, theirs: Settings, ours: Settings) -> list[str]:
    name, kind = f'{prefix}localization', ours.get('localization')
    sides, own = theirs.get('localization_size'), ours['localization_size']
    as_here = all(a[1:] == b[1:] for a, b in _shapes(stn.localization, state_dict, name))
    if own is None or sides == own or as_here or theirs.get('localization', kind) != kind:
        return []
    if sides is None:
        return [f'{name} sees {_sides(own)} here. If the weights are of a network for images of another size, pass '
                f'what {name}.size is there: {stn.argument}localization_size=(height, width){_where(stn)}.']
    return [f'{name} saw {_sides(sides)} when the weights were trained, and sees {_sides(own)} here: pass '
            f'{_text({"localization_size": sides}, stn.argument)}{_where(stn)}.']


def _text(settings: Mapping[str, Any], before: str = '') -> str:
    return ', '.join(f'{before}{name}={value!r}' for name, value in settings.items())


def _where(stn: Any) -> str:
    return '' if stn.argument or not stn.of_network else f' for stage {stn.stage!r} in stn_stages'


def _sides(size: Any) -> str:
    return ' x '.join(map(str, size))


def _keep_scale(state_dict: dict[str, Any], key: str, lr_scale: Any) -> None:
    """The lr_scale of weights from the record, where a cast of all tensors has lost or rounded that beside them."""
    saved = state_dict.get(key)
    if isinstance(saved, Tensor) and saved.is_floating_point() and not saved.is_meta and RATE.accepts(lr_scale):
        nano = round(lr_scale * 1e9)
        if is_lost(saved) or (saved.numel() == 1 and abs(float(saved) - nano) <= ROUNDED * nano):
            state_dict[key] = torch.full_like(saved, nano, dtype=torch.int64)
