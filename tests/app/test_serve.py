"""The page as it is served: refusals, requests at once, no other host, port and files afterwards."""
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from app_browser import any_port
from makers import needs_weights
from PIL import Image

from timm_stn.app import page, serve
from timm_stn.app.limits import AT_ONCE, MOST_BYTES
from timm_stn.app.serve import free_port, running
from timm_stn.app.shelf import Shelf, load_network

gradio_client = pytest.importorskip('gradio_client', reason='needs gradio')
pytest.importorskip('gradio')

RTS, SIGNS = 'stn_mnist_cnn_rts', 'stn_gtsrb'
pytestmark = needs_weights(SIGNS)
HERE = '127.0.0.1'


@pytest.fixture
def asked(monkeypatch):
    """Hosts that this process looks up, or connects to."""
    hosts, lookup, connect = [], socket.getaddrinfo, socket.socket.connect

    def note(host):
        hosts.append(host.decode() if isinstance(host, bytes) else str(host))

    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, *a, **k: note(host) or lookup(host, *a, **k))
    monkeypatch.setattr(socket.socket, 'connect', lambda self, to: note(to[0]) or connect(self, to))
    return hosts


@pytest.fixture(scope='module')
def url():
    with running(Shelf([RTS, SIGNS]), HERE, any_port()) as address:
        yield address


@pytest.fixture
def client(url):
    return gradio_client.Client(url, verbose=False, analytics_enabled=False)


def look(client, name, path, turn=0, **kwargs):
    file = gradio_client.handle_file(str(path)) if path else None
    return client.predict(name, file, kwargs.get('drawing', ''), kwargs.get('source', 'picture'), turn, 1, 0, 0, 0,
                          api_name='/look')


def test_it_answers(client, photos):
    pictures, ranking = look(client, SIGNS, photos / 'a.png')
    assert pictures.count('<img') == 2 and ranking.count('<tr>') == 10


@pytest.mark.parametrize('name', [RTS, SIGNS])
def test_what_is_no_image_is_refused_and_the_page_goes_on(client, photos, tmp_path, name):
    (tmp_path / 'a.png').write_text('not a picture')
    pictures, ranking = look(client, name, tmp_path / 'a.png')
    assert 'This file cannot be used: not an image of these formats' in pictures and ranking == ''
    Image.new('1', (5001, 4000)).save(tmp_path / 'b.png')
    assert 'an image of more than 20,000,000 pixels' in look(client, name, tmp_path / 'b.png')[0]
    assert '<img' in look(client, name, photos / 'a.png')[0]


def test_a_large_file_is_refused(client, tmp_path):
    with (tmp_path / 'a.png').open('wb') as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(Exception, match='413|too large|exceeds'):
        look(client, SIGNS, tmp_path / 'a.png')


def test_wrong_values_are_refused(client, photos):
    for name, turn in (('stn_resnet50', 0), (RTS, 1000)):
        with pytest.raises(gradio_client.exceptions.AppError):
            look(client, name, photos / 'a.png', turn)


def test_a_failure_is_told_and_the_page_goes_on(client, photos, monkeypatch):
    def fail(*args):
        raise RuntimeError('the weights are upside down')
    with monkeypatch.context() as broken:
        broken.setattr(page, 'answers', fail)
        with pytest.raises(gradio_client.exceptions.AppError, match='upside down'):
            look(client, SIGNS, photos / 'a.png')
    assert '<img' in look(client, SIGNS, photos / 'a.png')[0]


def test_a_network_that_cannot_be_loaded_is_not_answered_by_another(photos):
    def load(name):
        raise OSError('no network')

    with running(Shelf([RTS, SIGNS], load=lambda name: load(name) if name == SIGNS else load_network(name)), HERE,
                 any_port()) as address:
        client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
        assert '<img' in look(client, RTS, photos / 'a.png')[0]
        pictures, ranking = look(client, SIGNS, photos / 'a.png')
    assert 'stn_gtsrb cannot be loaded: OSError: no network' in pictures and ranking == ''


def test_as_many_are_worked_on_as_is_said(client, photos, monkeypatch):
    """Whatever it is that they ask for."""
    free, running_now = threading.Event(), []

    def slow(network, pixels):
        running_now.append(1)
        assert free.wait(30)
        raise RuntimeError('over')

    monkeypatch.setattr(page, 'answers', slow)
    file = gradio_client.handle_file(str(photos / 'a.png'))
    jobs = [client.submit(RTS, file, '', 'picture', 0, 1, 0, 0, 0, api_name='/look') for _ in range(2 * AT_ONCE)]
    time.sleep(2)
    free.set()
    assert len(running_now) == AT_ONCE
    for job in jobs:
        with pytest.raises(gradio_client.exceptions.AppError, match='over'):
            job.result(timeout=30)


def test_a_slow_request_holds_up_no_other(client, photos, monkeypatch):
    free, answers = threading.Event(), page.answers

    def slow(network, pixels):
        if network.name == RTS:
            assert free.wait(30)
        return answers(network, pixels)

    monkeypatch.setattr(page, 'answers', slow)
    file = gradio_client.handle_file(str(photos / 'a.png'))
    waiting = [client.submit(RTS, file, '', 'picture', 0, 1, 0, 0, 0, api_name='/look') for _ in range(AT_ONCE - 1)]
    try:
        start = time.monotonic()
        assert '<img' in look(client, SIGNS, photos / 'a.png')[0]
        assert time.monotonic() - start < 10 and not any(job.done() for job in waiting)
    finally:
        free.set()
    assert all('<img' in job.result(timeout=30)[0] for job in waiting)


def test_requests_at_once_get_their_own_answers(client, photos):
    turns = range(0, 90, 10)
    file = gradio_client.handle_file(str(photos / 'a.png'))
    jobs = [client.submit(SIGNS, file, '', 'picture', turn, 1, 0, 0, 0, api_name='/look') for turn in turns]
    together = [job.result(timeout=60) for job in jobs]
    assert together == [look(client, SIGNS, photos / 'a.png', turn) for turn in turns]
    assert len({pictures for pictures, _ in together}) == len(turns)


def test_no_other_host_is_asked(asked):
    """While it starts, while the page is opened and while it answers (Gradio's client asks huggingface.co)."""
    with running(Shelf([RTS]), HERE, any_port()) as address:
        page, style = (read(address + path) for path in ('', 'theme.css'))
        example = {'path': re.search(r'/[^"\s]*timm-stn-app-[^/"]+/digit-1.png', page)[0],
                   'meta': {'_type': 'gradio.FileData'}}
        call = f'{address}gradio_api/call/look'
        event = json.loads(read(call, {'data': [RTS, example, '', 'picture', 0, 1, 0, 0, 0]}))['event_id']
        assert 'event: complete' in read(f'{call}/{event}')
        elsewhere = {**example, 'path': 'http://example.com/x.png'}
        for where in (call, f'{address}gradio_api/queue/join'):
            with pytest.raises(urllib.error.HTTPError, match='400'):
                read(where, {'data': [RTS, elsewhere, '', 'picture', 0, 1, 0, 0, 0]})
    assert asked and set(asked) <= {HERE, 'localhost'}
    assert 'font-face' not in style and 'googleapis' not in page + style


def read(address, content=None):
    """What a server says, of JSON that it is sent."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def test_port_and_files_are_free_afterwards(photos):
    port = any_port()
    with running(Shelf([SIGNS]), HERE, port) as address:
        assert address == f'http://{HERE}:{port}/'
        other = gradio_client.Client(address, verbose=False, analytics_enabled=False)
        look(other, SIGNS, photos / 'a.png')
        folder = Path(re.search(r'(/[^"\s]*timm-stn-app-[^/"]+)/', read(address))[1])
        assert folder.is_dir()
        with pytest.raises(OSError):
            free_port(HERE, port)
    assert free_port(HERE, port) == port and not folder.exists()


def test_the_next_port_is_taken_where_the_first_is_not_free(monkeypatch):
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError):
            free_port(HERE, port)
        monkeypatch.setattr(serve, 'PORT', port)
        assert port < free_port(HERE) < port + serve.PORTS
        monkeypatch.setattr(serve, 'PORTS', 1)
        with pytest.raises(OSError, match='all ports'):
            free_port(HERE)
    assert free_port(HERE) == port
