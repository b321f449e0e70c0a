"""torch.fx: its tracers, whichever, record calls of what they cannot trace into, checks of shapes and of values."""
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import fx, nn

__all__ = ['Recorded', 'recorded_call', 'recorded_method', 'symbol_in']

P = ParamSpec('P')
T = TypeVar('T')


class Recorded(nn.Module):
    """A module with recorded methods."""

    @property
    def itself(self) -> 'Recorded':
        """The module, by a name: where it is the root of what is traced, it has no other."""
        return self


def recorded_call(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a function: given symbols, it is recorded as one node of the graph."""
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        symbol = symbol_in((args, kwargs))
        if symbol is None:
            return function(*args, **kwargs)
        return symbol.tracer.create_proxy('call_function', call, args, kwargs)
    return call


def recorded_method(method: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a method of a :class:`Recorded`, also of ``forward``: given symbols, the call is recorded."""
    name = method.__name__

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        symbol = symbol_in((args, kwargs))
        if symbol is None:
            return method(*args, **kwargs)
        tracer: Any = symbol.tracer
        path = tracer.path_of_module(args[0]) or 'itself'
        if name == 'forward':
            return tracer.create_proxy('call_module', path, args[1:], kwargs)
        module = tracer.create_proxy('get_attr', path, (), {})
        return tracer.create_proxy('call_method', name, (module, *args[1:]), kwargs)
    return call


def symbol_in(tree: object) -> fx.Proxy | None:
    """The first of a tracer's symbols in nests of tuples, lists and dicts, if there is one."""
    if isinstance(tree, fx.Proxy):
        return tree
    if isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            found = symbol_in(part)
            if found is not None:
                return found
    return None
