"""Faults of Hub, line and disk, while pushing and downloading: what is said, and that nothing is left half done."""
import os
import resource
import signal
import threading
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hub_server import Blob
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pushing import READ, REPO, WRITE, WRONG, load, logits, network, refused

import timm_stn
from timm_stn import cli
from timm_stn.names.zoo import card_folder
from timm_stn.publish.push import PushError


@pytest.mark.parametrize('token,message', [
    (None, 'you are not logged in: log in with `hf auth login`, or set HF_TOKEN'),
    (WRONG, 'the Hub does not know your token: log in'),
    (READ, "your token may not write to 'acme'"),
])
@pytest.mark.parametrize('there', [False, True])
def test_tokens(hub, capsys, monkeypatch, token, message, there):
    if there:
        hub.create(REPO)
    monkeypatch.delenv('HF_TOKEN') if token is None else monkeypatch.setenv('HF_TOKEN', token)
    error = refused(capsys, 'stn_mnist_cnn_tc', '--repo', REPO)
    assert message in error and 'https://huggingface.co/settings/tokens' in error
    assert not token or token not in error
    assert not there or hub.files(REPO) == {}


def test_a_token_is_read_as_the_client_does_and_never_shown(hub, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv('HF_TOKEN')
    (tmp_path / 'token').write_text(WRITE + '\n')
    assert cli.main(['push', 'stn_mnist_cnn_tc', '--repo', REPO]) == 0
    output = capsys.readouterr()
    assert WRITE not in output.out + output.err
    for token in ('hf_With\nABreak', 'hf_Withé', ''):
        with pytest.raises(ValueError, match='token must be one word') as caught:
            timm_stn.push_to_hub(network(), REPO, token=token)
        assert 'hf_With' not in str(caught.value)


@pytest.mark.parametrize('token', ['hf_Umläut', 'hf_With space', 'hf_\u200bhidden', 'hf_\udcff'])
def test_a_token_of_the_environment_that_cannot_be_sent(hub, capsys, monkeypatch, token):
    monkeypatch.setenv('HF_TOKEN', token)
    message = refused(capsys, 'stn_mnist_cnn_tc', '--repo', REPO)
    assert 'HF_TOKEN must be one word of ASCII characters' in message and token not in message
    monkeypatch.delenv('HF_TOKEN')
    Path(huggingface_hub.constants.HF_TOKEN_PATH).write_bytes(token.encode('utf-8', 'surrogateescape'))
    assert 'that `hf auth login` has left in ' in refused(capsys, 'stn_mnist_cnn_tc', '--repo', REPO)
    assert not hub.requests
    assert cli.main(['push', 'stn_mnist_cnn_tc', '--repo', REPO, '--dry-run']) == 0


def test_a_long_answer_of_a_server_is_cut(hub):
    hub.fail('POST', '/repos/create', times=9, status=418, text='no ' * 100_000)
    with pytest.raises(PushError, match=r'the Hub refused it \(status 418\).* characters') as caught:
        timm_stn.push_to_hub(network(), REPO)
    assert len(str(caught.value)) < 3000


STEPS = dict(
    create=('POST', '/repos/create'), info=('GET', '/revision/main'), card=('POST', '/validate-yaml'),
    preupload=('POST', '/preupload/'), batch=('POST', '/objects/batch'), upload=('PUT', '/upload/'),
    verify=('POST', '/objects/verify'), commit=('POST', '/commit/'))


FAULTS = dict(error=dict(status=503), cut=dict(cut=100))


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('step', STEPS)
def test_a_push_that_fails_leaves_the_repository_whole(hub, step, fault):
    hub.create(REPO, {'config.json': b'{}', 'notes.txt': b'mine'})
    before, head = hub.files(REPO), hub.repos[REPO].branches['main']
    how = hub.fail(*STEPS[step], times=99, **FAULTS[fault])
    with pytest.raises((PushError, ValueError)) as caught:
        timm_stn.push_to_hub(network(), REPO)
    assert how.times < 99 and REPO in str(caught.value) and 'push again' in str(caught.value)
    assert hub.files(REPO) == before and hub.repos[REPO].branches == {'main': head}
    how.times = 0
    timm_stn.push_to_hub(network(), REPO)
    assert hub.files(REPO)['notes.txt'] == b'mine' and torch.equal(logits(load(REPO)), logits(network()))


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('name', ['stn_mnist_cnn_tc', 'stn_mnist_cnn_rts'])  # in one piece, in parts
def test_an_upload_that_fails_once_goes_on(hub, name, fault):
    how = hub.fail('PUT', '/upload/', times=2, **FAULTS[fault])
    timm_stn.push_to_hub(name, REPO)
    expected = (card_folder(name) / 'model.safetensors').read_bytes()
    assert how.times == 0 and hub.files(REPO)['model.safetensors'] == expected


def test_an_answer_that_is_lost(hub):
    """The commit is made, and nobody is told: pushed again, there is nothing left to send."""
    hub.fail('POST', '/commit/', lost=True)
    with pytest.raises(PushError, match='unless only the reply was lost: push again'):
        timm_stn.push_to_hub(network(), REPO)
    head = hub.repos[REPO].branches['main']
    pushed = timm_stn.push_to_hub(network(), REPO)
    assert pushed.commit == head and pushed.sent == [] and len(pushed.same) == 3


def test_a_check_that_fails_says_that_it_is_committed(hub):
    hub.fail('GET', '/objects/', times=99, status=500)
    with pytest.raises(PushError, match='has it all in commit [0-9a-f]{40}, but it could not be downloaded'):
        timm_stn.push_to_hub(network(), REPO)


def test_interrupted(hub):
    hub.create(REPO)
    hub.fail('PUT', '/upload/', before=lambda: os.kill(os.getpid(), signal.SIGINT), cut=100)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            timm_stn.push_to_hub(network(), REPO)
    finally:
        signal.signal(signal.SIGINT, before)
    assert hub.files(REPO) == {}
    timm_stn.push_to_hub(network(), REPO)
    assert torch.equal(logits(load(REPO)), logits(network()))


def test_somebody_else_was_faster(hub):
    timm_stn.push_to_hub(network(0), REPO)
    repo = hub.repos[REPO]
    theirs = {**repo.commits[repo.branches['main']].tree, 'theirs.txt': Blob(b'theirs', False)}
    hub.fail('POST', '/commit/', before=lambda: repo.commit('main', 'theirs', theirs))
    with pytest.raises(PushError, match='somebody else has pushed meanwhile, and this was not committed'):
        timm_stn.push_to_hub(network(1), REPO)
    assert torch.equal(logits(load(REPO)), logits(network(0)))
    timm_stn.push_to_hub(network(1), REPO)
    assert hub.files(REPO)['theirs.txt'] == b'theirs' and torch.equal(logits(load(REPO)), logits(network(1)))


def test_two_pushes_at_once(hub):
    """Both have looked at the same commit before either makes its own: one gets through, whole."""
    timm_stn.push_to_hub(network(0), REPO)
    meet, results, models = threading.Barrier(2, timeout=120), {}, [network(1), network(2)]

    def push(i):
        try:
            results[i] = timm_stn.push_to_hub(models[i], REPO)
        except PushError as error:
            results[i] = str(error)

    hub.fail('POST', '/commit/', times=2, before=meet.wait)
    threads = [threading.Thread(target=push, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost, = (i for i, result in results.items() if isinstance(result, str))
    assert 'somebody else has pushed meanwhile' in results[lost] and len(hub.repos[REPO].commits) == 3
    assert torch.equal(logits(load(REPO)), logits(models[1 - lost]))
    timm_stn.push_to_hub(models[lost], REPO)
    assert torch.equal(logits(load(REPO)), logits(models[lost]))


class Limit:
    """No file may grow beyond ``size`` bytes."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_disk_full_while_pushing(hub):
    with Limit(200_000), pytest.raises(PushError, match='no room on the disk: free some in .*, or set TMPDIR'):
        timm_stn.push_to_hub(network(), REPO)
    assert not hub.requests
    timm_stn.push_to_hub(network(), REPO)


def whole(cache):
    """No partial file in the cache, and every link of it leads to a file."""
    paths = list(Path(cache).rglob('*'))
    assert not [p for p in paths if p.name.endswith('.incomplete')]
    assert all(p.exists() for p in paths)
    return [p.name for p in paths if 'snapshots' in p.parts and not p.is_dir()]


@pytest.fixture
def published(hub):
    files = {path.name: path.read_bytes() for path in card_folder('stn_mnist_cnn_rts').iterdir()}
    hub.create(REPO, files)
    hub.create('acme/gated', files, gated=True)
    return hub


def test_download_refused(published, monkeypatch, tmp_path):
    with pytest.raises(RepositoryNotFoundError, match='acme/nothing'):
        load('acme/nothing')
    with pytest.raises(RevisionNotFoundError, match='Revision Not Found for url: .*/acme/net/resolve/v9'):
        load(f'{REPO}@v9')
    monkeypatch.setenv('HF_TOKEN', READ)
    with pytest.raises(GatedRepoError, match='acme/gated to ask for access'):
        load('acme/gated')
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(GatedRepoError, match='acme/gated'):
        load('acme/gated')
    monkeypatch.setenv('HF_TOKEN', WRONG)
    with pytest.raises(HfHubHTTPError, match='Invalid credentials') as caught:
        load(REPO)
    assert WRONG not in str(caught.value)
    assert not whole(tmp_path / 'cache')
    published.repos['acme/gated'].accepted.add('bob')
    monkeypatch.setenv('HF_TOKEN', READ)
    assert load('acme/gated').num_classes == 10


@pytest.mark.parametrize('method,path,how,error', [
    ('HEAD', '/resolve/main/model', dict(status=503), 'is not in the cache, and the Hub is not asked or not reached'),
    ('GET', '/objects/', dict(status=503), 'cannot be downloaded: HfHubHTTPError.*503'),
    ('GET', '/objects/', dict(cut=0), 'cannot be downloaded: RemoteProtocolError.*without sending complete'),
])
def test_a_download_that_fails_leaves_the_cache_whole(published, tmp_path, method, path, how, error):
    fault = published.fail(method, path, times=99, **how)
    with pytest.raises(RuntimeError, match=f'hf-hub:{REPO}/model.safetensors {error}'):
        load(REPO)
    assert fault.times < 99 and whole(tmp_path / 'cache') == ['config.json']
    fault.times = 0
    assert torch.equal(logits(load(REPO)), logits(timm.create_model('stn_mnist_cnn_rts', pretrained=True)))
    assert sorted(whole(tmp_path / 'cache')) == ['config.json', 'model.safetensors']


def test_a_download_that_is_cut_goes_on_where_it_was(published, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'DOWNLOAD_CHUNK_SIZE', 100_000)  # what is kept: whole chunks
    fault = published.fail('GET', '/objects/', cut=750_000)
    assert torch.equal(logits(load(REPO)), logits(timm.create_model('stn_mnist_cnn_rts', pretrained=True)))
    assert fault.times == 0 and published.ranges == ['bytes=700000-']


def test_disk_full_while_downloading(published, tmp_path):
    with Limit(200_000), pytest.raises(RuntimeError, match='cannot be downloaded: OSError: .*File too large'):
        load(REPO)
    assert whole(tmp_path / 'cache') == ['config.json']
    assert load(REPO).num_classes == 10
