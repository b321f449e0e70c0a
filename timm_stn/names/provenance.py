"""Fields of a pretrained cfg that speak of certain weights. Other weights of the architecture do not inherit them."""
from collections.abc import Mapping
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg

__all__ = ['OF_WEIGHTS', 'TESTED', 'inherited']

TESTED = ('test_input_size', 'test_pool_size', 'test_crop_pct')  # the best sizes for them to be tested at
OF_WEIGHTS = (  # what they are, where they are from, and who may use them
    'tag', 'license', 'description', 'origin_url', 'paper_name', 'paper_ids', 'notes', 'label_names',
    'label_descriptions', 'label_offset')


def inherited(cfg: Mapping[str, Any]) -> list[str]:
    """Fields of a network's cfg that speak of weights, and are as registered: nobody has set them for this network."""
    name = '.'.join(part for part in (cfg.get('architecture'), cfg.get('tag')) if part)
    registered = get_pretrained_cfg(name) or get_pretrained_cfg(name.partition('.')[0]) or PretrainedCfg()
    return [field for field in OF_WEIGHTS if cfg.get(field) == getattr(registered, field, None)]
