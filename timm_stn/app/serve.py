"""Serves the page until it is interrupted. Nothing is sent anywhere but to who opened it, and no file is left."""
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .guard import Guard
from .limits import MOST_BYTES, guarded_pillow
from .markup import CSS
from .page import build_page, theme
from .shelf import Shelf, names_at_hand

__all__ = ['PORT', 'free_port', 'running', 'serve']

PORT, PORTS = 7860, 100  # the first that is tried, and how many
QUIET = dict(  # as Gradio reads them
    GRADIO_ANALYTICS_ENABLED='False',
    GRADIO_ANALYTICS_MAX_EVENTS='1', GRADIO_ANALYTICS_CACHE_FREQUENCY='1000000000')  # statistics of requests, here


def serve(shelf: Shelf | None = None, host: str = '127.0.0.1', port: int = PORT) -> None:
    """Serve the page, and print where, until Ctrl-C.

    Args:
        shelf: The networks. Default: all that are at hand.
        host: Address to listen on; 0.0.0.0 is all of this computer.
        port: A free one.
    """
    _ends_whole()
    with running(shelf or Shelf(names_at_hand()), host, port) as url:
        print(f'The page is at {url} until you press Ctrl-C', flush=True)
        threading.Event().wait()


def _ends_whole() -> None:
    """SIGTERM, as of a service that is stopped, ends the process as an exception does: uploads are deleted."""
    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


@contextmanager
def running(shelf: Shelf, host: str, port: int) -> Iterator[str]:
    """Within it the page is served; gives its address. Uploads are deleted, and the port is free, afterwards."""
    with TemporaryDirectory(prefix='timm-stn-app-') as folder, _environment(folder, host), guarded_pillow():
        page = build_page(shelf, Path(folder))
        try:
            yield _launch(page, host, port)
        finally:
            page.close(verbose=False)


def _launch(page: Any, host: str, port: int) -> str:
    """Start the server, in a thread of its own. All of Gradio that speaks to others, or keeps what is done, is off."""
    _, url, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, inbrowser=False, share=False,
        show_error=True, theme=theme(), css=CSS, footer_links=[], run_history=False, enable_monitoring=False,
        pwa=False, ssr_mode=False, mcp_server=False, max_file_size=MOST_BYTES,
        app_kwargs={'middleware': [(Guard, (), {})]})
    return str(url)


@contextmanager
def _environment(folder: str, host: str) -> Iterator[None]:
    """Gradio's files go to a folder, and it asks its own server without a proxy."""
    local = ','.join(filter(None, [os.environ.get('no_proxy') or os.environ.get('NO_PROXY'), 'localhost', host]))
    values = {**QUIET, 'GRADIO_TEMP_DIR': folder, 'no_proxy': local, 'NO_PROXY': local}
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def free_port(host: str, port: int | None = None) -> int:
    """A port to listen on: the one that is asked for, or the first that is free from 7860 on.

    Raises:
        OSError: It is taken, all are, or there is no such host here.
    """
    for tried in range(PORT, PORT + PORTS) if port is None else [port]:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, tried))
            return tried
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port is not None:
                raise
    raise OSError(errno.EADDRINUSE, f'all ports from {PORT} to {PORT + PORTS - 1} are in use')
