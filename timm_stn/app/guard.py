"""Stands before the server: requests that are too large, or that would have it fetch something, go no further.

An ASGI middleware. Uploads are streamed, and limited by Gradio itself.
"""
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .canvas import MOST_CHARACTERS

__all__ = ['MOST_JSON', 'Guard']

MOST_JSON = 2 * MOST_CHARACTERS  # bytes of a request with values: a drawing, and the rest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An application behind a look at the JSON that it is sent."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http' or scope['method'] != 'POST' or _is_upload(scope):
            await self.app(scope, receive, send)
            return
        body, more = b'', True
        while more:
            message = await receive()
            body, more = body + message.get('body', b''), message.get('more_body', False)
            if len(body) > MOST_JSON:
                await _refuse(send, 413, f'a request has at most {MOST_JSON:,} bytes')
                return
        if _names_a_url(body):
            await _refuse(send, 400, 'files are uploaded: nothing is fetched from elsewhere')
            return
        sent = [{'type': 'http.request', 'body': body, 'more_body': False}]

        async def again() -> Message:
            return sent.pop() if sent else await receive()

        await self.app(scope, again, send)


def _is_upload(scope: Message) -> bool:
    kind: bytes = dict(scope['headers']).get(b'content-type', b'')
    return kind.startswith(b'multipart/form-data')


def _names_a_url(body: bytes) -> bool:
    """Whether a file in the values, a mapping with ``path``, is one of elsewhere, which Gradio would download."""
    try:
        return _has_url(json.loads(body)) if body else False
    except (ValueError, RecursionError):
        return False  # and Gradio refuses it


def _has_url(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_url, value))
    if isinstance(value, dict):
        return '://' in str(value.get('path', '')) or any(map(_has_url, value.values()))
    return False


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({'detail': why}).encode()
    headers = [(b'content-type', b'application/json'), (b'content-length', str(len(body)).encode())]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})
