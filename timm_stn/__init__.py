"""Spatial Transformers (Jaderberg et al. 2015) for every timm backbone: importing registers ``stn_<arch>`` names."""
from . import nets as nets
from .build import wrap as wrap
from .functional import map_points as map_points
from .functional import unwarp as unwarp
from .functional import warp as warp
from .model import SpatialTransformerNetwork as SpatialTransformerNetwork
from .registry import register_twin as register_twin
from .registry import register_twins as _register_twins
from .sampler import sample as sample
from .spatial_transformer import SpatialTransformer as SpatialTransformer
from .version import __version__ as __version__

_register_twins()

from . import zoo as zoo  # noqa: E402  (names of its own come after the twins)
from .hub import push_to_hub as push_to_hub  # noqa: E402  (reads the names of the zoo)
