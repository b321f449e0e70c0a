"""Where weights come from: checkout or wheel, the Hub's cache, the Hub; names, revisions, organisations, offline."""
import hashlib
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from makers import save_for_hf
from safetensors.torch import load_file, save, save_file

from timm_stn.names import zoo
from timm_stn.names.weights import WEIGHTS
from timm_stn.network.arguments import DEFAULTS

NAME, NONE = 'stn_mnist_cnn_tc', 'stn_resnet50_cub'
TINY = dict(channels=(1, 2), stn_localization='linear', stn_localization_size=4)


def fill_cache(cache, repo, model, commit='a' * 40, ref='main', **kwargs):
    """A repository in a cache folder, as huggingface_hub lays it out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / 'snapshots' / commit
    save_for_hf(model, snapshot, **kwargs)
    (folder / 'refs').mkdir(exist_ok=True)
    (folder / 'refs' / ref).write_text(commit)
    return snapshot


def trained(name='stn_mnist_cnn_rts', seed=1, **kwargs):
    """A network whose parameters are all random, so that nothing of another start could pass for it."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.fixture
def unplugged(monkeypatch):
    """Whatever would reach the network raises, below every library."""
    def refuse(*args, **kwargs):
        raise AssertionError(f'network: {args}')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    for name in ('connect', 'connect_ex', 'sendto'):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)


@pytest.fixture
def offline(unplugged, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)


@pytest.fixture
def asked(unplugged, monkeypatch):
    """A Hub that has nothing; gives what it was asked for. Set ``asked.error``, or ``asked.give`` for a file."""
    class Asked(list):
        error, give = RepositoryNotFoundError, None
    calls = Asked()

    def download(repo_id, filename, revision=None, cache_dir=None, **kwargs):
        calls.append((repo_id, filename, revision, cache_dir))
        if calls.give is not None:
            return str(calls.give)
        raise calls.error('the Hub says no', **no_response(calls.error))
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    monkeypatch.setattr(huggingface_hub, 'file_exists', lambda repo, name, revision=None: name == 'pytorch_model.bin')
    return calls


def no_response(kind):
    if issubclass(kind, huggingface_hub.errors.HfHubHTTPError):
        return dict(response=SimpleNamespace(headers={}, status_code=404, request=None))
    return {}


# the order of looking: checkout or wheel, the cache, the Hub

@pytest.mark.parametrize('name', zoo.zoo_names())
def test_weights_in_the_checkout_come_first_and_nothing_else_is_asked(name, unplugged, tmp_path):
    file = zoo.card_folder(name) / WEIGHTS
    if not file.is_file():
        pytest.skip('weights are on the Hub only')
    fill_cache(tmp_path, zoo.hub_id(name), trained(name))
    model = timm.create_model(name, pretrained=True, cache_dir=tmp_path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in load_file(file).items())


def publish_as_own(monkeypatch, saved, name=NAME):
    """Let the package hold the hash of these weights."""
    digest = hashlib.sha256(save(saved.state_dict())).hexdigest()
    monkeypatch.setitem(zoo._ZOO, name, zoo._ZOO[name]._replace(sha256=digest))


@pytest.fixture
def without_weights(monkeypatch, tmp_path):
    """As in a wheel whose cards have no weights: a network that is published, but not here."""
    folder = tmp_path / 'cards' / NAME
    folder.mkdir(parents=True)
    (folder / 'config.json').write_bytes((zoo.card_folder(NAME) / 'config.json').read_bytes())
    monkeypatch.setattr(zoo, 'card_folder', lambda name: tmp_path / 'cards' / name)
    with pytest.warns(UserWarning, match='Overwriting'):
        zoo._register(NAME)
    yield
    monkeypatch.undo()
    with pytest.warns(UserWarning, match='Overwriting'):
        zoo._register(NAME)


def test_then_the_cache_without_asking_the_hub(without_weights, unplugged, tmp_path, monkeypatch):
    saved = trained(NAME)
    publish_as_own(monkeypatch, saved)
    fill_cache(tmp_path, zoo.hub_id(NAME), saved)
    assert timm.is_model_pretrained(NAME) and timm.get_pretrained_cfg(NAME).hf_hub_id == zoo.hub_id(NAME)
    assert same(timm.create_model(NAME, pretrained=True, cache_dir=tmp_path), saved)
    assert same(timm.create_model(NAME, pretrained=True, cache_dir=str(tmp_path)), saved)


def test_then_the_hub(without_weights, asked, tmp_path, monkeypatch):
    saved = trained(NAME)
    publish_as_own(monkeypatch, saved)
    save_for_hf(saved, tmp_path / 'hub')
    asked.give = tmp_path / 'hub' / WEIGHTS
    assert same(timm.create_model(NAME, pretrained=True, cache_dir=tmp_path), saved)
    assert asked == [(zoo.hub_id(NAME), WEIGHTS, None, tmp_path)]


def test_the_default_cache_is_the_hubs(without_weights, unplugged, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.file_download.constants, 'HF_HUB_CACHE', str(tmp_path))
    saved = trained(NAME)
    publish_as_own(monkeypatch, saved)
    fill_cache(tmp_path, zoo.hub_id(NAME), saved)
    assert same(timm.create_model(NAME, pretrained=True), saved)


@pytest.mark.parametrize('organisation', ['', 'somebody'])
def test_other_weights_under_a_name_of_ours_are_refused(without_weights, asked, tmp_path, monkeypatch, organisation):
    """Whoever registers the organisation, or whatever lies in the cache: these are the package's, or none."""
    monkeypatch.setenv('TIMM_STN_HUB_ORG', organisation)
    theirs, cache = trained(NAME), tmp_path / 'cache'
    snapshot = fill_cache(cache, zoo.hub_id(NAME), theirs)
    asked.give = snapshot / WEIGHTS
    words = f'hf-hub:{zoo.hub_id(NAME)}/{WEIGHTS} is not the file that this version .* SHA-256 is .*hf-hub:'
    for kwargs in ({}, dict(num_classes=3), dict(features_only=True)):
        with pytest.raises(RuntimeError, match=words):
            timm.create_model(NAME, pretrained=True, cache_dir=cache, **kwargs)
    overlay = dict(file=None, hf_hub_id='someone/theirs')  # asked for by its own name, it is the user's choice
    assert same(timm.create_model(NAME, pretrained=True, cache_dir=cache, pretrained_cfg_overlay=overlay), theirs)


def test_old_weights_in_the_cache_are_replaced(without_weights, asked, tmp_path, monkeypatch):
    saved, cache = trained(NAME, seed=2), tmp_path / 'cache'
    publish_as_own(monkeypatch, saved)
    fill_cache(cache, zoo.hub_id(NAME), trained(NAME))
    save_for_hf(saved, tmp_path / 'hub')
    asked.give = tmp_path / 'hub' / WEIGHTS
    assert same(timm.create_model(NAME, pretrained=True, cache_dir=cache), saved) and len(asked) == 1


def test_a_config_does_not_say_which_hash_is_right(tmp_path):
    if not hasattr(timm.models, 'get_model_args'):
        pytest.skip('this timm does not tell apart what a config and what a user says')
    save_for_hf(trained(**TINY), tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    config['model_args']['pretrained_sha256'] = '0' * 64
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(TypeError, match='pretrained_sha256 is no argument of a network'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


def test_the_organisation_is_in_one_place_and_in_the_environment(without_weights, asked, tmp_path, monkeypatch):
    monkeypatch.setenv('TIMM_STN_HUB_ORG', 'somebody')
    with pytest.raises(RuntimeError, match=f'hf-hub:somebody/{NAME}'):
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path)
    monkeypatch.setenv('TIMM_STN_HUB_ORG', '')
    monkeypatch.setattr(zoo, 'HUB_ORG', 'another')
    with pytest.raises(RuntimeError, match=f'hf-hub:another/{NAME}'):
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path)
    assert [repo for repo, *_ in asked] == [f'somebody/{NAME}', f'another/{NAME}']


# names without weights

def test_a_name_that_was_never_published_is_not_listed_as_pretrained():
    assert not zoo.is_published(NONE) and not timm.is_model_pretrained(NONE)
    assert timm.get_pretrained_cfg(NONE).hf_hub_id is None
    listed = set(timm.list_models('stn_*', pretrained=True)) & set(zoo.zoo_names())
    assert listed == {n for n in zoo.zoo_names() if zoo.is_published(n)}


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=3), dict(features_only=True)])
def test_without_published_weights_it_says_at_once_how_to_train_it(unplugged, kwargs):
    with pytest.raises(RuntimeError, match=r'no trained weights yet.*scripts/train_cub\.sh') as error:
        timm.create_model(NONE, pretrained=True, **kwargs)
    assert str(zoo.card_folder(NONE)) in str(error.value)


def test_where_the_hub_has_lost_them_it_says_how_to_train_it(without_weights, asked, tmp_path):
    with pytest.raises(RuntimeError, match='no such repository.*To train it: .*train_task.py') as error:
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path)
    assert str(zoo.card_folder(NAME)) in str(error.value) and asked == [(zoo.hub_id(NAME), WEIGHTS, None, tmp_path)]


def test_as_timms_scripts_ask_for_it(unplugged):
    cfg = timm.get_pretrained_cfg(NONE).to_dict()
    with pytest.raises(RuntimeError, match='no trained weights yet'):
        timm.create_model(NONE, pretrained=True, pretrained_cfg=cfg)


def test_the_weights_of_a_user_come_before_the_hubs(unplugged, tmp_path):
    saved = trained()
    torch.save(saved.state_dict(), tmp_path / 'mine.pth')
    for overlay in (dict(file=str(tmp_path / 'mine.pth')), dict(file=None, state_dict=saved.state_dict())):
        model = timm.create_model('stn_mnist_cnn_rts', pretrained=True, pretrained_cfg_overlay=overlay)
        assert same(model, saved)


@pytest.mark.parametrize('kind,words', [
    (RevisionNotFoundError, "no revision 'v2'"),
    (RemoteEntryNotFoundError, 'has no model.safetensors, but pytorch_model.bin. Only safetensors.*save_for_hf'),
    (RepositoryNotFoundError, 'no such repository'),
    (GatedRepoError, 'access to the repository has not been granted'),
    (LocalEntryNotFoundError, 'not in the cache'),
    (OSError, 'cannot be downloaded: OSError: the Hub says no'),
])
def test_what_the_hub_refuses_is_said_with_the_repository(asked, tmp_path, kind, words):
    asked.error = kind
    overlay = dict(file=None, hf_hub_id='someone/theirs@v2')
    with pytest.raises(RuntimeError, match=f'hf-hub:someone/theirs@v2.*{words}'):
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path, pretrained_cfg_overlay=overlay)
    assert asked == [('someone/theirs', WEIGHTS, 'v2', tmp_path)]


def test_offline_without_a_cache_says_so(offline, without_weights, tmp_path):
    with pytest.raises(RuntimeError, match=f'{NAME}/model.safetensors is not in the cache.*HF_HUB_OFFLINE is set'):
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path)


@pytest.mark.parametrize('token', ['hf_ümlaut', 'hf_a b', 'hf_\udcff'])
def test_a_token_that_cannot_be_sent_is_said(without_weights, tmp_path, monkeypatch, token):
    monkeypatch.setenv('HF_TOKEN', token)
    with pytest.raises(RuntimeError, match='HF_TOKEN must be one word of ASCII') as error:
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path)
    assert 'mlaut' not in str(error.value)


def test_a_token_that_cannot_be_sent_for_the_backbones_weights(tmp_path, monkeypatch):
    def ask(*args, **kwargs):
        'hf_ümlaut'.encode('ascii')
    monkeypatch.setenv('HF_TOKEN', 'hf_ümlaut')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    for name in ('hf_hub_download', 'load_state_dict_from_hf'):
        monkeypatch.setattr(f'timm.models._hub.{name}', ask)
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', ask)
    with pytest.raises(RuntimeError, match='HF_TOKEN must be one word of ASCII'):
        timm.create_model('stn_resnet10t', pretrained=True, cache_dir=tmp_path)


# hf-hub: and local-dir:

@pytest.fixture(params=['hf-hub', 'local-dir'])
def publish(request, tmp_path, offline):
    """Saves a network and gives the name to load it by and the arguments to load it with; there is no network."""
    def save(model, **kwargs):
        if request.param == 'hf-hub':
            fill_cache(tmp_path, 'someone/their-stn', model, **kwargs)
            return 'hf-hub:someone/their-stn', dict(cache_dir=tmp_path)
        save_for_hf(model, tmp_path / 'theirs', **kwargs)
        return f"local-dir:{tmp_path / 'theirs'}", {}
    return save


ALL = dict(
    stn_stages=[['input', {'transform': 'similarity'}], [1, {'transform': 'translation', 'padding_mode': 'zeros'}]],
    stn_transform='attention', stn_glimpses=2, stn_towers='separate', stn_join='mean', stn_whole=True, stn_scale=0.5,
    stn_bound=True, stn_size=32, stn_localization='fc', stn_localization_size=[8, 8], stn_iterations=2,
    stn_mode='bicubic', stn_padding_mode='reflection', stn_antialias=True, stn_lr_scale=0.5, stn_penalty=0.25,
    stn_freeze_steps=3, stn_jitter=0.25, stn_stream_drop=0.5)


def test_a_config_restores_every_argument_and_the_logits_are_bit_equal(publish):
    assert ALL.keys() | {'stn_target', 'stn_fill'} == DEFAULTS.keys()
    for arguments in (ALL, dict(stn_stages=[2], stn_target='input'), dict(stn_padding_mode='fill', stn_fill=0.5)):
        saved = trained('stn_test_resnet', num_classes=5, img_size=64 if 'stn_size' in arguments else None, **arguments)
        name, extra = publish(saved)
        model = timm.create_model(name, pretrained=True, **extra).eval()
        assert model.arguments.json == saved.arguments.json and same(model, saved)
        x = torch.rand(2, 3, 64, 64)
        assert torch.equal(model(x), saved(x))


def test_a_revision_is_taken_from_the_cache(offline, tmp_path):
    old, new = (trained(seed=seed, **TINY) for seed in (1, 2))
    fill_cache(tmp_path, 'someone/their-stn', old, commit='b' * 40, ref='v1')
    fill_cache(tmp_path, 'someone/their-stn', new)
    for suffix, saved in (('@v1', old), ('', new), ('@' + 'b' * 40, old), ('@main', new)):
        model = timm.create_model('hf-hub:someone/their-stn' + suffix, pretrained=True, cache_dir=tmp_path)
        assert same(model, saved), suffix
    with pytest.raises(Exception, match='v3|cache'):
        timm.create_model('hf-hub:someone/their-stn@v3', pretrained=True, cache_dir=tmp_path)


def test_a_state_dict_of_a_user_comes_before_what_lies_beside_the_config(publish):
    name, extra = publish(trained(**TINY))
    mine = trained(seed=2, **TINY)
    overlay = dict(state_dict=mine.state_dict())
    assert same(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **extra), mine)


@pytest.mark.parametrize('change', [
    dict(num_classes=3), dict(in_chans=3), dict(num_classes=0), dict(num_classes=3, in_chans=2)])
def test_other_classes_and_channels(publish, change):
    if 'in_chans' in change and not hasattr(timm.models, 'get_model_args'):
        pytest.skip('this timm adapts weights of three channels only')
    saved = trained(channels=(1, 2))
    name, extra = publish(saved)
    model = timm.create_model(name, pretrained=True, **extra, **change).eval()
    out = model(torch.rand(2, change.get('in_chans', 1), 42, 42))
    assert out.shape[0] == 2 and model.num_classes == change.get('num_classes', 10)
    assert torch.equal(model.backbone.layer2.conv.weight, saved.backbone.layer2.conv.weight)
    if 'in_chans' not in change:
        assert torch.equal(model.stn.localization.regression.weight, saved.stn.localization.regression.weight)


@pytest.mark.parametrize('name', ['stn_resnet18', 'stn_resnet18.a1_in1k'])
def test_no_weights_are_downloaded_that_the_checkpoint_replaces(publish, name):
    saved = trained(name, stn_localization='timm:mobilenetv3_small_100', stn_localization_size=32, num_classes=4)
    where, extra = publish(saved)
    assert timm.is_model_pretrained('resnet18') and timm.is_model_pretrained('mobilenetv3_small_100')
    assert same(timm.create_model(where, pretrained=True, **extra), saved)
    timm.create_model(where, pretrained=False, **extra)


def test_generic_names_read_the_backbones_own_weights_from_the_hubs_cache(offline, tmp_path):
    plain = trained('resnet10t')
    fill_cache(tmp_path, timm.get_pretrained_cfg('resnet10t').hf_hub_id, plain)
    for name in ('stn_resnet10t', 'stn_resnet10t.c3_in1k'):
        model = timm.create_model(name, pretrained=True, cache_dir=tmp_path)
        assert same(model.backbone, plain)
        assert not model.stn.localization.regression.weight.any()
    assert timm.create_model('stn_resnet10t', pretrained=True, cache_dir=tmp_path, num_classes=7).num_classes == 7


def test_a_plain_checkpoint_under_a_hub_config(publish):
    saved = trained('stn_test_resnet', num_classes=5)
    plain = {k.removeprefix('backbone.'): v for k, v in saved.state_dict().items() if k.startswith('backbone.')}
    name, extra = publish(saved)
    folder = next(extra['cache_dir'].glob('*/snapshots/*')) if extra else Path(name.removeprefix('local-dir:'))
    save_file(plain, folder / WEIGHTS)
    model = timm.create_model(name, pretrained=True, **extra)
    assert all(torch.equal(v, plain[k]) for k, v in model.backbone.state_dict().items())


def test_a_hub_config_is_checked_and_named(offline, tmp_path):
    snapshot = fill_cache(tmp_path, 'someone/their-stn', trained(**TINY))
    config = json.loads((snapshot / 'config.json').read_text())
    for place, key, value, words in (
            ('pretrained_cfg', 'url', 'http://127.0.0.1/x.pth', 'pretrained_cfg.url must not be set'),
            ('pretrained_cfg', 'file', '/etc/passwd', 'pretrained_cfg.file must not be set'),
            ('pretrained_cfg', 'hf_hub_filename', 'x.bin', 'pretrained_cfg.hf_hub_filename must not be set'),
            ('model_args', 'stn_glimpses', 10 ** 9, 'model_args: stn_glimpses must be at most 64'),
            ('model_args', 'stn_nothing', 1, "model_args: unknown argument 'stn_nothing'")):
        changed = {**config, place: {**config[place], key: value}}
        (snapshot / 'config.json').write_text(json.dumps(changed))
        known = hasattr(timm.models, 'get_model_args')  # which part of a config it is that arguments come from
        words = f'/config.json: {words}' if known or place != 'model_args' else key
        with pytest.raises((ValueError, TypeError), match=f'hf-hub:someone/their-stn@main.*{words}'):
            timm.create_model('hf-hub:someone/their-stn@main', pretrained=True, cache_dir=tmp_path)
    (snapshot / 'config.json').write_text(json.dumps(config))
    rotten = {k: v * torch.nan if v.is_floating_point() else v for k, v in load_file(snapshot / WEIGHTS).items()}
    save_file(rotten, snapshot / WEIGHTS)
    with pytest.raises(RuntimeError, match=f'hf-hub:someone/their-stn/{WEIGHTS}: .* has numbers that are not finite'):
        timm.create_model('hf-hub:someone/their-stn', pretrained=True, cache_dir=tmp_path)


def test_a_hub_repository_of_pickles_is_refused(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    asked.error = RemoteEntryNotFoundError
    snapshot = fill_cache(tmp_path, 'someone/their-stn', trained(**TINY))
    torch.save(load_file(snapshot / WEIGHTS), snapshot / 'pytorch_model.bin')
    (snapshot / WEIGHTS).unlink()
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: pytest.fail('unpickled'))
    with pytest.raises(RuntimeError, match='hf-hub:someone/their-stn/.* but pytorch_model.bin. Only safetensors'):
        timm.create_model('hf-hub:someone/their-stn', pretrained=True, cache_dir=tmp_path)


def test_published_is_what_has_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'card_folder', lambda name: tmp_path / name)
    assert not zoo.is_published(NAME)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / 'config.json').write_text(json.dumps({}))
    assert zoo.is_published(NAME)
