"""Names with weights of their own, and where those are found: source checkout or wheel, then the Hub."""
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg, register_model
from torch import nn

from .build import WEIGHTS, build_network, whole_network_cfg

__all__ = ['card_folder', 'zoo_names']

NO_WEIGHTS = '{name} has no trained weights yet: {folder} does not hold any. To train it: {recipe}.'


class Own(NamedTuple):
    """A network with weights of its own."""
    base: str  # architecture of the backbone
    input_size: tuple[int, int, int]
    arguments: dict[str, Any]
    cfg: dict[str, Any]
    recipe: str  # how to train it


def _mnist(kind: str, side: int, **arguments: Any) -> Own:
    cfg = dict(mean=(0.0,), std=(1.0,), num_classes=10, interpolation='bilinear', crop_pct=1.0, license='apache-2.0')
    recipe = f'`python scripts/train_mnist.py --model stn_mnist_cnn_{kind.lower()} --set {kind}`'
    arguments.update(stn_localization_size=side // 2, stn_lr_scale=10.0)
    return Own('mnist_cnn', (1, side, side), arguments, cfg, recipe)


_ZOO = dict(
    stn_mnist_cnn_rts=_mnist('RTS', 42, stn_size=24, stn_iterations=2, channels=(64, 128)),
    stn_mnist_cnn_tc=_mnist('TC', 60, stn_size=28),
    stn_resnet50_cub=Own(  # the paper's birds network, section 4.3
        base='resnet50',
        input_size=(3, 448, 448),
        arguments=dict(
            stn_transform='translation', stn_glimpses=2, stn_scale=0.5, stn_size=224, stn_towers='separate',
            stn_localization='timm:resnet50', stn_localization_size=224, stn_lr_scale=0.01),
        cfg=dict(num_classes=200, crop_pct=0.875),
        recipe="timm's `train.py --device-modules timm_stn --model stn_resnet50_cub --initial-checkpoint "
               'RESNET50.safetensors --data-dir CUB_200_2011 --input-size 3 448 448`, where a plain checkpoint of '
               'resnet50 starts both towers',
    ),
)
default_cfgs: dict[str, DefaultCfg] = {}  # read by timm's register_model


def zoo_names() -> list[str]:
    """Names of all networks with weights of their own."""
    return list(_ZOO)


def card_folder(name: str) -> Path:
    """Folder of a network's card and weights, as its Hub repository holds them: in the checkout, or in the wheel."""
    here = Path(__file__).resolve().parent
    inside = here / 'model_cards' / name
    return inside if inside.is_dir() else here.parent / 'model_cards' / name


def _cfg(name: str) -> PretrainedCfg:
    base, input_size, _, settings, _ = _ZOO[name]
    file = card_folder(name) / WEIGHTS
    own = dict(vars(whole_network_cfg(get_pretrained_cfg(base) or PretrainedCfg())))
    own.update(settings, architecture=name, input_size=input_size, url=None, hf_hub_id=None, tag=None, pool_size=None,
               file=str(file) if file.is_file() else None)
    return PretrainedCfg(**own)


def _register(name: str) -> None:
    base, _, settings, _, recipe = _ZOO[name]

    def entry(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        overlay = kwargs.get('pretrained_cfg_overlay') or {}
        if pretrained and not pretrained_cfg and not overlay and not timm.is_model_pretrained(name):
            raise RuntimeError(NO_WEIGHTS.format(name=name, folder=card_folder(name), recipe=recipe))
        kwargs.setdefault('pretrained_model_args', dict(settings))
        return build_network(name, base, pretrained, pretrained_cfg, **{**settings, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    globals()[name] = entry
    cfg = _cfg(name)
    default_cfgs[name] = DefaultCfg(cfgs={'': cfg}, is_pretrained=bool(cfg.has_weights))
    default_cfgs[name].tags.append('')
    register_model(entry)


for _name in _ZOO:
    _register(_name)
