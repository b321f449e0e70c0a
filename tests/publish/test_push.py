"""Push to the Hub and back: huggingface_hub's client, as it is installed, against the server of hub_server.py."""
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hub_server import Blob
from huggingface_hub.errors import RepositoryNotFoundError
from makers import environment_of
from pushing import REPO, WRITE, digits, load, logits, network, refused
from safetensors.torch import load_file

import timm_stn
from timm_stn import cli
from timm_stn.names.zoo import card_folder
from timm_stn.publish.push import PushError

CARDS = sorted(file.parent for file in card_folder('stn_mnist_cnn_rts').parent.glob('*/model.safetensors'))


# --- there and back ---

def test_round_trip_to_a_fresh_process(hub, tmp_path):
    model = network()
    pushed = timm_stn.push_to_hub(model, REPO)
    assert pushed.url == f'{hub.url}/{REPO}' and pushed.commit == hub.repos[REPO].branches['main']
    assert sorted(hub.files(REPO)) == ['README.md', 'config.json', 'model.safetensors']
    code = f'''if True:
        import torch, timm, timm_stn
        model = timm.create_model('hf-hub:{REPO}@{pushed.commit}', pretrained=True).eval()
        with torch.inference_mode():
            torch.save(model(torch.load('x.pt')), 'logits.pt')'''
    torch.save(digits(model), tmp_path / 'x.pt')
    env = dict(environment_of(hub, tmp_path / 'home', WRITE), PYTHONPATH=str(Path(timm_stn.__file__).parents[1]))
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, check=True, timeout=400)
    assert torch.equal(torch.load(tmp_path / 'logits.pt'), logits(model))


def test_all_cards_and_nothing_twice(hub, capsys):
    assert cli.main(['push', '--all', '--repo', 'acme']) == 0
    assert capsys.readouterr().out.count('checked in commit') == len(CARDS) >= 2
    for folder in CARDS:
        expected = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert hub.files(f'acme/{folder.name}') == expected
        assert torch.equal(logits(load(f'acme/{folder.name}')), logits(timm.create_model(folder.name, pretrained=True)))
    heads = [dict(repo.branches) for repo in hub.repos.values()]
    hub.requests.clear()
    assert cli.main(['push', '--all', '--repo', 'acme']) == 0
    assert capsys.readouterr().out.count('nothing sent') == len(CARDS)
    assert heads == [repo.branches for repo in hub.repos.values()]
    assert not [path for method, path in hub.requests if method == 'PUT' or '/commit/' in path or '/preupload/' in path]
    repo = hub.repos[f'acme/{CARDS[0].name}']
    repo.commit('main', 'spoilt', {**repo.commits[repo.branches['main']].tree, 'config.json': Blob(b'{}', False)})
    assert cli.main(['push', '--all', '--repo', 'acme']) == 0
    assert 'config.json sent' in capsys.readouterr().out
    assert hub.files(repo.name)['config.json'] == (CARDS[0] / 'config.json').read_bytes()


def test_nothing_twice_where_the_server_lists_no_hashes(hub):
    hub.lists_hashes = False
    names = ['README.md', 'config.json', 'model.safetensors']
    first = timm_stn.push_to_hub(network(), REPO)
    assert first.sent == names and first.same == []
    again = timm_stn.push_to_hub(network(), REPO)
    assert again.sent == [] and sorted(again.same) == names and again.commit == first.commit
    other = timm_stn.push_to_hub(network(1), REPO)
    assert other.sent == ['model.safetensors'] and other.same == ['README.md', 'config.json']
    assert torch.equal(logits(load(REPO)), logits(network(1)))


def test_what_the_client_leaves_out_is_not_called_sent(hub, monkeypatch):
    """A server whose every hash is another than the Hub's: the client itself compares what it is about to send."""
    first = timm_stn.push_to_hub(network(), REPO)
    monkeypatch.setattr('timm_stn.publish.push._hashes', lambda path: ('', ''))
    again = timm_stn.push_to_hub(network(), REPO, replace_card=True)
    assert again.commit == first.commit and again.sent == [] and len(again.same) == 3


def test_a_network_without_pretrained_weights_has_no_licence_of_theirs(hub):
    """Neither in its card nor in its config, which say the same."""
    fresh, pretrained = network(), timm.create_model('stn_mnist_cnn_tc', pretrained=True)
    for model, given, licence in ((fresh, None, None), (fresh, 'mit', 'mit'), (pretrained, None, 'apache-2.0')):
        pushed = timm_stn.push_to_hub(model, REPO, license=given, replace_card=True)
        cfg = json.loads(hub.files(REPO)['config.json'])['pretrained_cfg']
        assert cfg.get('license') == licence and f'license: {licence or "unknown"}\n' in pushed.card
        assert ('paper_ids' in cfg) == (model is pretrained)
    assert fresh.pretrained_cfg['license'] == 'apache-2.0'


def test_registered_names(hub, capsys):
    assert cli.main(['push', 'stn_mnist_cnn_rts', '--repo', REPO]) == 0
    assert f'{hub.url}/{REPO}: README.md, config.json, examples.png, model.safetensors sent' in capsys.readouterr().out
    assert torch.equal(logits(load(REPO)), logits(timm.create_model('stn_mnist_cnn_rts', pretrained=True)))
    assert 'stn_resnet50_cub has no trained weights' in refused(capsys, 'stn_resnet50_cub', '--repo', REPO)
    assert "got 'stn_resnt50'" in refused(capsys, 'stn_resnt50', '--repo', REPO)


def test_weights_that_are_not_here(monkeypatch, capsys):
    def create_model(name, pretrained):
        raise ConnectionError('no way')

    monkeypatch.setattr(timm, 'create_model', create_model)
    for more in ((), ('--dry-run',)):
        message = refused(capsys, 'stn_resnet18', '--repo', REPO, *more)
        assert message.endswith('of stn_resnet18 could not be loaded: ConnectionError: no way')


def test_what_it_leaves_as_it_was(hub):
    model = network(stn_freeze_steps=3).to(memory_format=torch.channels_last).half()
    model.train()
    model.stn.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    timm_stn.push_to_hub(model, REPO)
    assert torch.equal(torch.rand(4), expected)
    assert model.training and not model.stn.training and model.stn.localization.body[0].weight.dtype == torch.half
    after = load(REPO).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) and torch.equal(after[key].to(value.dtype), value)


def test_a_branch(hub, capsys):
    timm_stn.push_to_hub(network(0), REPO)
    first = hub.repos[REPO].branches['main']
    for seed in (1, 2):
        pushed = timm_stn.push_to_hub(network(seed), REPO, revision='wide/er', message='Wider')
        assert hub.repos[REPO].branches == {'main': first, 'wide/er': pushed.commit}
        assert pushed.url.endswith('/tree/wide/er') and hub.repos[REPO].commits[pushed.commit].message == 'Wider'
    assert torch.equal(logits(load(f'{REPO}@{pushed.commit}')), logits(network(2)))
    assert torch.equal(logits(load(REPO)), logits(network(0)))
    hub.repos[REPO].tags['v1'] = first
    assert "'v1' of acme/net is a tag" in refused(capsys, 'stn_mnist_cnn_tc', '--repo', REPO, '--revision', 'v1')
    assert 'must be the name of a branch' in refused(capsys, 'stn_mnist_cnn_tc', '--repo', REPO, '--revision', first)
    assert "Invalid branch name" in refused(capsys, 'stn_mnist_cnn_tc', '--repo', REPO, '--revision', 'refs/x')


def test_private(hub, capsys, monkeypatch):
    timm_stn.push_to_hub(network(), REPO, private=True)
    assert hub.repos[REPO].private and torch.equal(logits(load(REPO)), logits(network()))
    hub.create('acme/open')
    message = refused(capsys, 'stn_mnist_cnn_tc', '--repo', 'acme/open', '--private')
    assert 'is there already and public; nothing was sent' in message and f'{hub.url}/acme/open/settings' in message
    assert not hub.files('acme/open')
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(RepositoryNotFoundError):
        load(REPO, cache_dir=hub.key)
    pushed = timm_stn.push_to_hub(network(1), REPO, token=WRITE)  # which the check of the download needs, too
    assert pushed.commit == hub.repos[REPO].branches['main']


def test_dry_run_sends_nothing(hub, capsys, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    pushed = timm_stn.push_to_hub(network(), REPO, dry_run=True)
    assert pushed.commit is None and pushed.sent == ['README.md', 'config.json', 'model.safetensors']
    assert cli.main(['push', 'stn_mnist_cnn_rts', '--repo', REPO, '--dry-run']) == 0
    assert 'nothing sent (--dry-run)' in capsys.readouterr().out
    assert not hub.requests


def test_half_precision(hub, tmp_path, capsys):
    model = network()
    before = logits(model)
    pushed = timm_stn.push_to_hub(model, REPO, half=True)
    assert torch.equal(logits(model), before) and 'weights in half precision; loaded, they are float32' in pushed.card
    timm.models.save_for_hf(model, tmp_path / 'whole', safe_serialization=True)
    whole = (tmp_path / 'whole' / 'model.safetensors').stat().st_size
    assert len(hub.files(REPO)['model.safetensors']) < 0.6 * whole
    loaded = load(REPO)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not torch.equal(logits(loaded), before) and torch.allclose(logits(loaded), before, atol=0.02)
    folder = card_folder('stn_mnist_cnn_rts')
    with pytest.raises(ValueError, match='half: the files of a folder are pushed as they are'):
        timm_stn.push_to_hub(folder, REPO, half=True)
    assert 'argument --half: with --all' in refused(capsys, '--all', '--repo', 'acme', '--half')


# --- what is not pushed ---

def test_what_does_not_come_back_the_same_is_not_pushed(hub, tmp_path):
    model = network()
    model.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(PushError, match='gives other logits.*its config does not record'):
        timm_stn.push_to_hub(model, REPO)
    model = network()
    model.backbone.fc.bias.data[0] = float('nan')
    with pytest.raises(ValueError, match='not finite'):
        timm_stn.push_to_hub(model, REPO)
    model = network()
    model.pretrained_cfg['architecture'] = 'stn_nothing'
    with pytest.raises(ValueError, match=r'does not build it again: Unknown model \(stn_nothing\)'):
        timm_stn.push_to_hub(model, REPO)
    timm.models.save_for_hf(network(), tmp_path / 'pickled', safe_serialization='both')
    with pytest.raises(ValueError, match='no pickles.*pytorch_model.bin'):
        timm_stn.push_to_hub(tmp_path / 'pickled', REPO)
    assert not hub.requests


def test_a_corrupted_download_is_noticed(hub):
    def corrupt():
        repo = hub.repos[REPO]
        tree = repo.commits[repo.branches['main']].tree
        tree['config.json'] = Blob(tree['config.json'].content.replace(b'"input"', b'"inpuT"'), False)

    hub.fail('HEAD', '/resolve/.*/config.json', before=corrupt)
    with pytest.raises(PushError, match='config.json at .* is not what was sent'):
        timm_stn.push_to_hub(network(), REPO)


def test_the_other_way_by_the_clients_own_tools(hub, tmp_path):
    """What is pushed is a repository like any other: its files, and timm's own push on top of it."""
    pushed = timm_stn.push_to_hub(network(0), REPO)
    path = huggingface_hub.hf_hub_download(REPO, 'model.safetensors', revision=pushed.commit)
    assert set(load_file(path)) == set(network().state_dict())
    assert json.loads(hub.files(REPO)['config.json'])['architecture'] == 'stn_mnist_cnn_tc'
    timm.models.push_to_hf_hub(network(1), REPO, safe_serialization=True)
    assert torch.equal(logits(load(REPO)), logits(network(1)))
    assert b'timm_stn' in hub.files(REPO)['README.md']
