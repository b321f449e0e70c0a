"""What does not get through to the server."""
import asyncio
import json

import pytest

from timm_stn.app.guard import MOST_JSON, Guard


def asked(chunks, kind=b'application/json', method='POST'):
    """(status, body that the application got) of a request that is sent in chunks."""
    got, said = [], []
    messages = [{'type': 'http.request', 'body': chunk, 'more_body': k + 1 < len(chunks)} for k, chunk in
                enumerate(chunks)]

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            got.append(message['body'])
            more = message['more_body']
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})

    async def receive():
        return messages.pop(0)

    async def send(message):
        said.append(message)

    scope = {'type': 'http', 'method': method, 'headers': [(b'content-type', kind)]}
    asyncio.run(Guard(app)(scope, receive, send))
    return said[0]['status'], b''.join(got)


def test_a_request_comes_through_as_it_is():
    body = json.dumps({'data': ['a', {'path': '/tmp/x.png', 'url': 'http://127.0.0.1:7860/file=/tmp/x.png'}, 'x://y']})
    assert asked([body[:10].encode(), body[10:].encode()]) == (200, body.encode())
    assert asked([b'not json']) == (200, b'not json') and asked([b'']) == (200, b'')


@pytest.mark.parametrize('path', ['http://example.com/x.png', 'https:\\/\\/example.com', 'ftp://a', 'file:///etc/passwd'])
def test_a_file_of_elsewhere_is_refused(path):
    body = f'{{"data": [1, {{"a": [{{"path": "{path}", "meta": {{}}}}]}}]}}'.encode()
    assert asked([body]) == (400, b'')


def test_a_long_request_is_refused_before_it_is_whole():
    assert asked([b'x' * MOST_JSON]) == (200, b'x' * MOST_JSON)
    assert asked([b'x' * MOST_JSON, b'x', b'never asked for']) == (413, b'')


def test_uploads_are_streamed():
    parts = [b'x' * MOST_JSON, b'x']
    assert asked(parts, b'multipart/form-data; boundary=a') == (200, b''.join(parts))
    assert asked([b''], method='GET') == (200, b'')


def test_nested_values_end_nothing():
    status, _ = asked([b'[' * 100_000])
    assert status == 200
