"""`timm-stn app`: a page in the browser that shows where a network looks, live."""
import argparse
import errno
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ..app.serve import PORT, free_port, serve
from ..app.shelf import Network, Shelf, load_network, names_at_hand
from .common import Refused, attempt, positive, quiet_argument
from .models import check_transformers, described, load_model, model_arguments

__all__ = ['app', 'app_arguments']

LEAST = [6, 31]  # version of Gradio
INSTALL = 'the page needs Gradio: pip install "timm-stn[app]"'


def app_arguments(add: Callable[..., Any]) -> None:
    model_arguments(add)
    add('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0 lets other computers in '
        '(default: %(default)s, this computer only)')
    add('--port', type=positive, help=f'(default: {PORT}, or the next that is free)')
    quiet_argument(add)


def app(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    _check_gradio()
    port = _port(args.host, args.port)
    given = _given(args) if args.model or args.checkpoint else None
    names = names_at_hand()
    if not names and given is None:
        raise Refused('argument --model: no network with trained weights is at hand; name one')
    try:
        serve(Shelf(names, given, partial(load_network, device=args.device)), args.host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # somebody was quicker
            raise
        raise Refused(f'argument --port: {error}') from error
    return 0


def _check_gradio() -> None:
    if importlib.util.find_spec('gradio') is None:
        raise Refused(INSTALL)
    found = importlib.metadata.version('gradio')
    if [int(part) for part in re.findall(r'\d+', found)[:2]] < LEAST:
        raise Refused(f'{INSTALL}, for it is of version {found}, and {".".join(map(str, LEAST))} is needed')


def _given(args: argparse.Namespace) -> Network:
    check_transformers(args.model or '')
    model = load_model(args)
    return attempt(described(args), Network, model, args.model)


def _port(host: str, port: int | None) -> int:
    try:
        return free_port(host, port)
    except OverflowError as error:
        raise Refused(f'argument --port: takes 1 to 65535, got {port}') from error
    except OSError as error:
        argument, value = ('--host', host) if port is None else ('--port', f'{port} of {host}')
        raise Refused(f'argument {argument}: cannot listen on {value}: {error.strerror or error}') from error
