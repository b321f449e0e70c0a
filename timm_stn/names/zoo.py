"""Our own networks and their trained weights: in the source checkout or wheel, the Hub's cache, or on the Hub."""
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg, register_model, resolve_pretrained_cfg
from torch import nn

from .provenance import OF_WEIGHTS, TESTED
from .registry import whole_network_cfg
from .untrusted import config_location
from .weights import WEIGHTS, MissingWeights

__all__ = ['EXAMPLES', 'HUB_ORG', 'card_folder', 'hub_id', 'is_published', 'set_of', 'weights_of', 'zoo_names']

HUB_ORG = 'timm-stn'  # default Hub organisation of these networks; the variable TIMM_STN_HUB_ORG overrides it
EXAMPLES = 'examples.png'  # in a card's folder: held-out digits, as scripts/release/make_examples.py writes them
NO_WEIGHTS = '{name} has no trained weights yet: {folder} does not hold any{where}. To train it: {recipe}.'


class Own(NamedTuple):
    """A network with its own weights."""
    base: str  # architecture of the backbone
    input_size: tuple[int, int, int]
    arguments: dict[str, Any]
    cfg: dict[str, Any]
    recipe: str  # how to train it
    sha256: str | None = None  # of its published weights; the Hub is asked for no others
    task: str | None = None  # the set of `timm_stn.data.TASKS` that it is trained for


def _mnist(
        kind: str,
        size: tuple[int, int, int],
        sha256: str | None = None,
        base: str = 'mnist_cnn',
        classes: int = 10,
        reproduce: str | None = None,
        **arguments: Any,
) -> Own:
    """A network for a set of digits; `reproduce` are the arguments of reproduce.py that train it, if it does."""
    cfg = dict(
        mean=(0.0,) * size[0], std=(1.0,) * size[0], num_classes=classes, interpolation='bilinear', crop_pct=1.0,
        license='apache-2.0', paper_ids='arXiv:1506.02025')
    recipe = f'`python scripts/train/train_task.py --model stn_{base}_{kind.lower()} --set {kind}`'
    if reproduce:
        recipe = f'`python scripts/reproduce.py {reproduce} --data MNIST_FOLDER`'
    arguments = dict(stn_localization_size=size[-1] // 2, stn_lr_scale=10.0) | arguments
    return Own(base, size, arguments, cfg, recipe, sha256, kind)


def _square(kind: str, sha256: str | None) -> Own:
    """A network of Table 1 for a set that stays on 28 x 28."""
    return _mnist(
        kind, (1, 28, 28), sha256, channels=(64, 128), stn_transform='tps', stn_iterations=2,
        reproduce=f'distorted-mnist --distortion {kind} --model st-cnn --transform tps')


_ZOO = dict(
    stn_mnist_cnn_rts=_mnist(
        'RTS', (1, 42, 42), '6d7fd61c9a19398fb06104268544cfe63b2e0a8e696b082368e46a696dbcfaf9',
        stn_size=24, stn_iterations=2, channels=(64, 128)),
    stn_mnist_cnn_tc=_mnist(
        'TC', (1, 60, 60), '2060ee97294dcbc3629d18f337909f6c9bd7b754d0d7caeab26d357271828c73', stn_size=28),
    stn_mnist_cnn_r=_square('R', None),
    stn_mnist_cnn_p=_square('P', None),
    stn_mnist_cnn_e=_square('E', None),
    stn_mnist_add=_mnist(
        'ADD', (2, 42, 42), '39ac7144073d605c61b5604e62c9e11184d7c48f576f0f3a4d8e9897214a9101', 'mnist_fcn', 19,
        'addition --model 2-st-fcn --transform tps',
        hidden=155, stn_size=24, stn_iterations=2, stn_transform='tps', stn_glimpses=2, stn_join='channels',
        stn_localization='conv:channels=32,hidden=64'),
    stn_gtsrb=Own(
        base='signs_cnn',
        input_size=(3, 32, 32),
        arguments=dict(stn_iterations=2),
        cfg=dict(num_classes=43, interpolation='bilinear', crop_pct=1.0, license='apache-2.0'),
        recipe='`python scripts/reproduce.py signs --model input --data GTSRB_FOLDER`',
        sha256='b1e305eed61495d95d63bca51f5aab35a9975af2670eb00c4a909a70a4912ae4',
        task='SIGNS',
    ),
    stn_tf_efficientnet_lite0_cub2010=Own(
        base='tf_efficientnet_lite0',
        input_size=(3, 224, 224),
        arguments=dict(
            stn_transform='translation', stn_scale=[0.5, 1.0], stn_size=192, stn_localization='saliency:3',
            stn_localization_size=112, stn_lr_scale=10.0),
        cfg=dict(num_classes=200, crop_pct=0.875, license='apache-2.0'),
        recipe='`scripts/train/train_birds.sh DATA WEIGHTS OUTPUT zoom192`',
        sha256='4f91605be178b0de8c998be28178aa230d340b6c3a1183c94de326d868d6d0cd',
    ),
    stn_resnet50_cub=Own(  # one network, which looks at the whole image and at two parts of it
        base='resnet50',
        input_size=(3, 448, 448),
        arguments=dict(
            stn_transform='attention', stn_glimpses=2, stn_whole=True, stn_scale=0.5, stn_size=224,
            stn_localization='saliency:3', stn_lr_scale=10.0),
        cfg=dict(num_classes=200, crop_pct=0.95),
        recipe='`scripts/train_cub.sh DATA OUTPUT stn_resnet50_cub`',
    ),
    stn_resnet50_cub_paper=Own(  # the paper's birds network, section 4.3
        base='resnet50',
        input_size=(3, 448, 448),
        arguments=dict(
            stn_transform='translation', stn_glimpses=2, stn_scale=0.5, stn_size=224, stn_towers='separate',
            stn_join='concat', stn_localization='timm:resnet50', stn_localization_size=224, stn_lr_scale=0.01),
        cfg=dict(num_classes=200, crop_pct=0.875),
        recipe='`scripts/train_cub.sh DATA OUTPUT stn_resnet50_cub_paper`',
    ),
)
default_cfgs: dict[str, DefaultCfg] = {}  # read by timm's register_model


def zoo_names() -> list[str]:
    """Names of all networks with their own weights."""
    return list(_ZOO)


def card_folder(name: str) -> Path:
    """Folder of a network's card and weights, in the checkout or in the wheel; the same files as on the Hub."""
    here = Path(__file__).resolve().parents[1]  # the package
    inside = here / 'model_cards' / name
    return inside if inside.is_dir() else here.parent / 'model_cards' / name


def hub_id(name: str) -> str:
    """The Hub repository of a network's card and weights."""
    return f"{os.environ.get('TIMM_STN_HUB_ORG') or HUB_ORG}/{name}"


def is_published(name: str) -> bool:
    """Whether a network has weights, here or on the Hub: then the package has its card with a config.json."""
    return (card_folder(name) / 'config.json').is_file()


def set_of(name: str) -> str | None:
    """The set (of `timm_stn.data.TASKS`) that a network of ours is trained for; None of all other names."""
    own = _ZOO.get(name.partition('.')[0])
    return own.task if own else None


def weights_of(model: str | nn.Module) -> str | None:
    """Location of the trained weights of a registered name or of a model; None if there are none."""
    cfg = timm.get_pretrained_cfg(model) if isinstance(model, str) else getattr(model, 'pretrained_cfg', None)
    cfg = cfg if isinstance(cfg, dict) else vars(cfg) if cfg else {}
    if cfg.get('file'):
        return str(Path(cfg['file']).expanduser())
    if cfg.get('hf_hub_id'):
        return f'Hugging Face Hub, {cfg["hf_hub_id"]}'
    return cfg.get('url') or None


def _cfg(name: str) -> PretrainedCfg:
    base, input_size, _, settings, *_ = _ZOO[name]
    file = card_folder(name) / WEIGHTS
    own = dict(vars(whole_network_cfg(get_pretrained_cfg(base) or PretrainedCfg())))
    here = file.is_file()
    own.update(dict.fromkeys(OF_WEIGHTS + TESTED), label_names=_label_names(name))
    own.update(
        settings, architecture=name, input_size=input_size, url=None, pool_size=None,
        file=str(file) if here else None, hf_hub_id=hub_id(name) if is_published(name) and not here else None)
    return PretrainedCfg(**own)


def _label_names(name: str) -> list[str] | None:
    """The names of the classes, as the config beside the card has them."""
    config = card_folder(name) / 'config.json'
    return json.loads(config.read_text()).get('label_names') if config.is_file() else None


def _from_hub(name: str, cfg: Any, overlay: Any) -> PretrainedCfg | None:
    """The cfg with the network's own Hub repository; None if cfg or overlay name another source of weights."""
    if config_location(cfg) is not None:
        return None
    resolved, registered = resolve_pretrained_cfg(name, cfg, overlay), get_pretrained_cfg(name)
    other = resolved.source or resolved.state_dict or resolved.file or resolved.url
    if other or registered is None or resolved.hf_hub_id != registered.hf_hub_id:
        return None
    return replace(resolved, hf_hub_id=hub_id(name))


def _register(name: str) -> None:
    base, _, settings, _, recipe, *_ = _ZOO[name]

    def no_weights(where: object = '') -> RuntimeError:
        return RuntimeError(NO_WEIGHTS.format(name=name, folder=card_folder(name), where=where, recipe=recipe))

    def entry(
            pretrained: bool = False,
            pretrained_cfg: Any = None,
            pretrained_cfg_overlay: Any = None,
            **kwargs: Any,
    ) -> nn.Module:
        own = _from_hub(name, pretrained_cfg, pretrained_cfg_overlay) if pretrained else None
        if own is not None:
            kwargs['pretrained_sha256'] = _ZOO[name].sha256
            if kwargs['pretrained_sha256'] is None:
                raise no_weights()
            pretrained_cfg, pretrained_cfg_overlay = own, None
        kwargs.setdefault('pretrained_model_args', dict(settings))
        kwargs.update(pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay)
        from .build import build_network  # imported late: it loads all network code
        try:
            return build_network(name, base, pretrained, **{**settings, **kwargs})
        except MissingWeights as error:
            if own is None:
                raise
            raise no_weights(f'; {error}') from error

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    globals()[name] = entry
    cfg = _cfg(name)
    default_cfgs[name] = DefaultCfg(cfgs={'': cfg}, is_pretrained=bool(cfg.has_weights))
    default_cfgs[name].tags.append('')
    register_model(entry)


for _name in _ZOO:
    _register(_name)
