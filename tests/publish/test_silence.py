"""A Hub that takes requests and never answers them."""
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub.utils import close_session
from pushing import REPO, load, network

import timm_stn
from timm_stn.publish import silence
from timm_stn.publish.push import PushError

REQUESTS = dict(
    create=('POST', '/repos/create'), info=('GET', '/revision/main'), card=('POST', '/validate-yaml'),
    preupload=('POST', '/preupload/'), batch=('POST', '/objects/batch'), upload=('PUT', '/upload/'),
    verify=('POST', '/objects/verify'), commit=('POST', '/commit/'))


@pytest.mark.parametrize('request_of', REQUESTS)
def test_a_push_does_not_wait_for_ever(hub, monkeypatch, request_of):
    monkeypatch.setattr(silence, 'SILENCE', 0.3)
    how = hub.fail(*REQUESTS[request_of], times=99, silent=True)
    start = time.monotonic()
    with pytest.raises(PushError, match='push to acme/net: the Hub has said nothing for 0.3 s.*push again later'):
        timm_stn.push_to_hub(network(), REPO)
    assert how.times < 99 and time.monotonic() - start < 60
    assert REPO not in hub.repos or hub.files(REPO) == {}
    how.times = 0
    timm_stn.push_to_hub(network(), REPO)
    assert load(REPO).num_classes == 10


def test_one_silence_is_forgiven(hub, monkeypatch):
    monkeypatch.setattr(silence, 'SILENCE', 0.3)
    how = hub.fail('PUT', '/upload/', silent=True)
    assert timm_stn.push_to_hub(network(), REPO).commit and how.times == 0


def test_the_client_is_as_it_was_afterwards(hub):
    close_session()
    before = huggingface_hub.get_session().timeout
    met = threading.Barrier(2, timeout=20)

    def inside():
        with silence.bounded():
            met.wait()
            met.wait()

    other = threading.Thread(target=inside)
    other.start()
    with silence.bounded():
        met.wait()
        assert huggingface_hub.get_session().timeout.read == silence.SILENCE
    assert huggingface_hub.get_session().timeout.read == silence.SILENCE, 'the other is still in there'
    met.wait()
    other.join()
    assert huggingface_hub.get_session().timeout == before
