"""Methods that a network has where its backbone has them, for those who ask with ``hasattr``."""
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

__all__ = ['if_backbone_can']


class if_backbone_can:
    """Decorator of a method that answers for the method of the same name of ``self.backbone``."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        update_wrapper(self, method)  # type: ignore[arg-type]

    def __get__(self, net: Any, owner: type | None = None) -> Any:
        if net is not None and not hasattr(net.backbone, self.method.__name__):
            raise AttributeError(f'{type(net.backbone).__name__} has no {self.method.__name__}')
        return self.method.__get__(net, owner)
