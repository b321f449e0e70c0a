"""Networks that the page offers: which there are, and those that are loaded, each once."""
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from ..names.weights import WEIGHTS
from ..names.zoo import weights_of, zoo_names
from ..view.classes import classes_of
from ..view.sheet import data_config
from .inputs import digit_pieces, takes_digits

__all__ = ['Loading', 'Network', 'Shelf', 'load_network', 'names_at_hand']

MOST_LOADED = 4
WAIT = 2.0  # seconds, for a network that another request is loading


class Loading(Exception):
    """Another request is loading the network."""


class Network:
    """A network in eval mode, with what its inputs and answers are. Who runs it holds its ``lock``.

    Raises:
        ValueError: It has no transformer or no classifier, or takes neither 1 nor 3 channels.
    """

    def __init__(self, model: Any, name: str) -> None:
        if not getattr(model, 'spatial_transformers', dict)():
            raise ValueError(f'{name} has no spatial transformer')
        if not model.num_classes:
            raise ValueError(f'{name} has no classifier (num_classes=0)')
        self.model, self.name = model.eval(), name
        self.config = data_config(model)
        architecture = model.pretrained_cfg.get('architecture') or name  # which a folder or a Hub repository tells
        self.digits = takes_digits(architecture) and self.config['input_size'][0] == 1
        self.classes = classes_of(model).names
        self.pieces: Tensor | None = digit_pieces() if self.digits else None  # of clutter; None: cut from the image
        self.lock = threading.Lock()


def load_network(name: str, device: str = 'cpu') -> Network:
    """A network of a registered name, with its trained weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(timm.create_model(name, pretrained=True).to(device), name)


class Shelf:
    """Networks by name, loaded when they are asked for; the last few stay.

    Args:
        names: Those that may be asked for.
        given: One that is loaded already, and stays.
        load: How to load one.
    """

    def __init__(
            self,
            names: list[str],
            given: Network | None = None,
            load: Callable[[str], Network] = load_network,
    ) -> None:
        self.given, self._load = given, load
        self.names = list(dict.fromkeys([*([given.name] if given else []), *names]))
        self._lock = threading.Lock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()

    def get(self, name: str) -> Network:
        """The network of a name.

        Raises:
            Loading: Another request is loading it, and goes on to after a while.
            ValueError: The name is not among ``names``.
        """
        if name not in self.names:
            raise ValueError(f'there is no model {name!r} here')
        if self.given and name == self.given.name:
            return self.given
        with self._lock:
            slot = self._slots.setdefault(name, _Slot())
            self._slots.move_to_end(name)
            while len(self._slots) > MOST_LOADED:
                self._slots.popitem(last=False)
        if not slot.lock.acquire(timeout=WAIT):  # so that those who wait hold up nobody else for long
            raise Loading(f'{name} is being loaded')
        try:
            if slot.network is None:
                slot.network = self._load(name)
            return slot.network
        finally:
            slot.lock.release()

    def takes_digits(self, name: str) -> bool:
        """Whether a network is for digits, which is known before it is loaded."""
        return self.given.digits if self.given and name == self.given.name else takes_digits(name)


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.network: Network | None = None


def names_at_hand() -> list[str]:
    """Networks with trained transformers first, then ``stn_`` names whose weights are on this computer.

    Left out are those that take neither 1 nor 3 channels.
    """
    own = [name for name in zoo_names() if weights_of(name) and timm.get_pretrained_cfg(name).input_size[0] in (1, 3)]
    others = [name for name in timm.list_models('stn_*', pretrained=True) if name not in zoo_names()]
    return own + [name for name in others if _is_here(timm.get_pretrained_cfg(name))]


def _is_here(cfg: Any) -> bool:
    if cfg.file:
        return Path(cfg.file).expanduser().is_file()
    repo = cfg.hf_hub_id
    return bool(repo) and isinstance(try_to_load_from_cache(repo, cfg.hf_hub_filename or WEIGHTS), str)
