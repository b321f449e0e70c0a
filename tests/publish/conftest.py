"""A Hub on the loopback interface."""
import socket
import tempfile
import time

import huggingface_hub
import pytest
from hub_server import Hub, User
from huggingface_hub.utils import close_session
from pushing import READ, WRITE


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process's client speaks to, with waits cut short, and nothing but the loopback within reach."""
    constants, lookup, sleep = huggingface_hub.constants, socket.getaddrinfo, time.sleep

    def only_here(host, *args, **kwargs):
        assert host in ('127.0.0.1', 'localhost'), f'a request to {host}'
        return lookup(host, *args, **kwargs)

    with Hub() as hub:
        hub.users = {WRITE: User('ann', ('ann', 'acme')), READ: User('bob')}
        for name, value in dict(
                ENDPOINT=hub.url, HUGGINGFACE_CO_URL_TEMPLATE=hub.url + '/{repo_id}/resolve/{revision}/{filename}',
                HF_HUB_CACHE=str(tmp_path / 'cache'), HF_TOKEN_PATH=str(tmp_path / 'token'), HF_HUB_DISABLE_XET=True,
                HF_HUB_DISABLE_TELEMETRY=True, HF_HUB_OFFLINE=False, HF_HUB_DISABLE_IMPLICIT_TOKEN=False).items():
            monkeypatch.setattr(constants, name, value)
        for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'http_proxy', 'https_proxy', 'all_proxy'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv('HF_TOKEN', WRITE)
        monkeypatch.delenv('HUGGING_FACE_HUB_TOKEN', raising=False)
        monkeypatch.setattr(socket, 'getaddrinfo', only_here)
        monkeypatch.setattr(time, 'sleep', lambda seconds: sleep(min(seconds, 0.01)))
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
        close_session()
        yield hub
        close_session()
        assert not hub.unknown
    assert not list(tmp_path.glob('timm-stn-push-*'))
