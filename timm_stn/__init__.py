"""Spatial Transformers (Jaderberg et al. 2015) for every timm backbone: importing registers ``stn_<arch>`` names.

``timm.create_model('stn_resnet18')`` makes a :class:`SpatialTransformerNetwork`. Public, too, and loaded when used:

    wrap                 an existing timm model with transformers in it
    SpatialTransformer   the transformer alone, a module
    warp, unwarp         images or features through theta, and back
    map_points           points through theta
    sample               pixels at given coordinates
    canonicalize         images in the pose in which a classifier is most certain
    base_name            timm's own name of a parameter
    register_twin        the stn_ name of an architecture of your own
    diagnose             what is wrong with the transformers of a trained network
    push_to_hub          a trained network to the Hugging Face Hub
    timm_stn.data        the paper's data sets, and others

All else may move.
"""
from . import _ending as _ending  # first, since what follows takes seconds
import importlib
from typing import TYPE_CHECKING, Any

from . import _renamed as _renamed
from . import nets as nets
from .names import registry as _registry
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import data as data
    from .geometry.functional import map_points, unwarp, warp
    from .geometry.sampler import sample
    from .modules.orbit import canonicalize
    from .modules.spatial_transformer import SpatialTransformer
    from .names.build import wrap
    from .names.registry import register_twin
    from .network.keys import base_name
    from .network.model import SpatialTransformerNetwork
    from .publish.push import push_to_hub
    from .view.diagnosis import diagnose

__all__ = [
    'SpatialTransformer', 'SpatialTransformerNetwork', '__version__', 'base_name', 'canonicalize', 'diagnose',
    'map_points', 'push_to_hub', 'register_twin', 'sample', 'unwarp', 'warp', 'wrap',
]

_PLACES = dict(
    SpatialTransformer='modules.spatial_transformer', SpatialTransformerNetwork='network.model',
    base_name='network.keys', canonicalize='modules.orbit', diagnose='view.diagnosis',
    map_points='geometry.functional',
    push_to_hub='publish.push', register_twin='names.registry', sample='geometry.sampler',
    unwarp='geometry.functional', warp='geometry.functional', wrap='names.build',
)

_registry.register_twins()

from .names import zoo as _zoo  # noqa: E402, F401  (names of its own come after the twins)


if not TYPE_CHECKING:  # type checkers shall find wrong names
    def __getattr__(name: str) -> Any:
        if name == 'data' or name in _renamed.RENAMED:
            return importlib.import_module(f'.{name}', __name__)
        if name not in _PLACES:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        found = globals()[name] = getattr(importlib.import_module(f'.{_PLACES[name]}', __name__), name)
        return found


def __dir__() -> list[str]:
    return sorted([*__all__, 'data'])
