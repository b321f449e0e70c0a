"""Push to the Hub and back: huggingface_hub's client, as it is installed, against the server of hub_server.py."""
import argparse
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import Blob, Hub, User, card_errors
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import close_session
from PIL import Image
from safetensors.torch import load_file

import timm_stn
from timm_stn import cli
from timm_stn.names.zoo import card_folder
from timm_stn.publish.push import PushError
from timm_stn.run import TIMM_SCRIPTS

CARDS = sorted(file.parent for file in card_folder('stn_mnist_cnn_rts').parent.glob('*/model.safetensors'))
WRITE, READ, WRONG = 'hf_WritesToAcme', 'hf_ReadsOnly', 'hf_NobodyKnowsThis'
REPO = 'acme/net'


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


def network(seed=0, **kwargs):
    """A small network whose transformer moves things."""
    torch.manual_seed(seed)
    model = timm.create_model('stn_mnist_cnn_tc', **kwargs)
    model.stn.localization.regression.bias.data += 0.1 * torch.randn(6)
    return model.eval()


def digits(model):
    return torch.rand(2, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.inference_mode():
        return model.eval()(digits(model))


def load(repo, **kwargs):
    return timm.create_model(f'hf-hub:{repo}', pretrained=True, **kwargs)


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(['push', *map(str, argv)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and 'Traceback' not in error
    last = error.splitlines()[-1]  # after what the client says of its retries
    assert last.startswith('timm-stn push: error: ')
    return last


def environment(hub, folder):
    """Of a fresh process: all that points it to this Hub."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')}
    return dict(kept, HF_ENDPOINT=hub.url, HF_HOME=str(folder), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1',
                HF_HUB_DISABLE_PROGRESS_BARS='1', HF_TOKEN=WRITE)


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
    env = dict(environment(hub, tmp_path / 'home'), PYTHONPATH=str(Path(timm_stn.__file__).parents[1]))
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


def test_registered_names(hub, capsys):
    assert cli.main(['push', 'stn_mnist_cnn_rts', '--repo', REPO]) == 0
    assert f'{hub.url}/{REPO}: README.md, config.json, examples.png, model.safetensors sent' in capsys.readouterr().out
    assert torch.equal(logits(load(REPO)), logits(timm.create_model('stn_mnist_cnn_rts', pretrained=True)))
    assert 'stn_resnet50_cub has no trained weights' in refused(capsys, 'stn_resnet50_cub', '--repo', REPO)
    assert "got 'stn_resnt50'" in refused(capsys, 'stn_resnt50', '--repo', REPO)


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


# --- a run of train.py ---

def run_folder(tmp_path, **changed):
    """A checkpoint as train.py writes one, with what lies beside it."""
    folder, data = tmp_path / 'run', tmp_path / 'secret' / 'birds'
    rng = np.random.default_rng(0)
    for label in ('jay', 'owl'):
        (data / 'val' / label).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(data / 'val' / label / 'a.png')
    folder.mkdir()
    args = dict(
        model='stn_test_resnet', num_classes=2, in_chans=None, input_size=None, img_size=96, mean=[0.4, 0.5, 0.6],
        std=None, crop_pct=0.9, interpolation='', gp=None, bn_eps=None, epochs=9, lr=None, data_dir=str(data),
        val_split='val', output=str(tmp_path / 'secret'), initial_checkpoint=str(tmp_path / 'secret' / 'w.pth'),
        eval_metric='top1', model_kwargs={'stn_transform': 'similarity'}, model_ema_force_cpu=False, dataset='')
    args.update(changed)
    models = [timm.create_model(args['model'], num_classes=2, in_chans=3, **args['model_kwargs']) for _ in range(2)]
    for model in models:
        torch.nn.init.normal_(model.stn.localization.regression.bias, std=0.1)
    held = dict(epoch=4, arch=args['model'], args=argparse.Namespace(**args, lr_base=0.1, rank=0, world_size=1),
                optimizer={}, version=2, metric=87.5, state_dict=models[0].state_dict())
    held['state_dict_ema'] = models[1].state_dict()
    torch.save(held, folder / 'last.pth.tar')
    (folder / 'args.yaml').write_text(yaml.safe_dump(args))
    rows = ['epoch,train_loss,eval_loss,eval_top1,eval_top5,lr', '3,1,0.9,80.0,100,0.1', '4,1,0.5,87.5,100.0,0.1']
    (folder / 'summary.csv').write_text('\n'.join(rows) + '\n')
    return folder / 'last.pth.tar', models


def test_checkpoint(hub, tmp_path, capsys):
    path, (_, averaged) = run_folder(tmp_path)
    assert cli.main(['push', str(path), '--repo', REPO, '--license', 'mit']) == 0
    assert '--no-picture' in capsys.readouterr().out
    files = hub.files(REPO)
    assert sorted(files) == ['README.md', 'config.json', 'look.png', 'model.safetensors']
    loaded = load(REPO).eval()
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(loaded(x), averaged.eval()(x)) and loaded.num_classes == 2
    cfg = loaded.pretrained_cfg
    assert (list(cfg['mean']), cfg['crop_pct'], tuple(cfg['input_size'])) == ([0.4, 0.5, 0.6], 0.9, (3, 96, 96))
    text = files['README.md'].decode()
    assert str(tmp_path) not in text and 'secret' not in text and 'w.pth' in text
    assert not card_errors(text.split('---')[1])
    (tmp_path / 'README.md').write_text(text)
    card = ModelCard.load(tmp_path / 'README.md')
    assert (card.data.license, card.data.library_name) == ('mit', 'timm')
    assert card.data.pipeline_tag == 'image-classification' and 'timm-stn' in card.data.tags
    result, = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ('accuracy', 0.875, 'birds')
    assert 'import timm, timm_stn' in text and f"'hf-hub:{REPO}'" in text and '![' in text and '| loss | 0.5 |' in text
    assert Image.open(io.BytesIO(files['look.png'])).width > 300
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL).group(1)
    scope = {}
    exec(code, scope)
    assert scope['transform'](Image.new('RGB', (120, 100))).shape == (3, 96, 96)


def test_checkpoint_without_more(hub, tmp_path):
    """Neither averaged weights nor anything beside it, and another run's summary is not believed."""
    path, (plain, _) = run_folder(tmp_path)
    held = torch.load(path, weights_only=False)
    held.pop('state_dict_ema')
    torch.save(held, path)
    (path.parent / 'args.yaml').unlink()
    (path.parent / 'summary.csv').write_text('epoch,eval_loss,eval_top1\n4,0.1,99.0\n')
    text = timm_stn.push_to_hub(path, REPO, images=[]).card
    assert '| Top-1 accuracy, % | 87.5 |' in text and '99' not in text.partition('## Recipe')[0] and '![' not in text
    assert '`train.py` of the weights after epoch 4' in text and 'secret' not in text
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(load(REPO).eval()(x), plain.eval()(x))
    held['args'].model_ema_force_cpu = True  # then train.py measures the weights that are not pushed
    torch.save({**held, 'state_dict_ema': held['state_dict']}, path)
    assert '87.5' not in timm_stn.push_to_hub(path, REPO, images=[], dry_run=True).card


class Evil:
    def __reduce__(self):
        return os.system, ('touch evil',)


def test_what_is_no_checkpoint(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = run_folder(tmp_path)
    held = torch.load(path, weights_only=False)
    for name, content in (
            ('evil.pth.tar', {**held, 'args': Evil()}), ('bare.pth.tar', held['state_dict']), ('list.pt', [1]),
            ('other.pth.tar', {**held, 'args': argparse.Namespace(model='stn_nothing')})):
        torch.save(content, name)
    Path('text.pt').write_text('not a checkpoint')
    assert 'it lacks state_dict or arch' in refused(capsys, 'list.pt', '--repo', REPO)
    assert 'no checkpoint that can be read safely: it holds posix.system' in refused(
        capsys, 'evil.pth.tar', '--repo', REPO)
    assert not Path('evil').exists()
    assert 'it lacks state_dict or arch' in refused(capsys, 'bare.pth.tar', '--repo', REPO)
    assert 'Unknown model (stn_nothing)' in refused(capsys, 'other.pth.tar', '--repo', REPO)
    assert 'no checkpoint that can be read safely' in refused(capsys, 'text.pt', '--repo', REPO)
    assert 'name its checkpoint' in refused(capsys, path.parent, '--repo', REPO)
    assert 'there is no' in refused(capsys, path, '--repo', REPO, '--images', 'no.png')
    assert 'takes one, or else --all' in refused(capsys, '--repo', REPO)
    assert 'with --all takes ORG alone' in refused(capsys, '--all', '--repo', REPO)
    assert "repo must be ORG/NAME, as acme/stn_birds, got 'acme'" in refused(capsys, path, '--repo', 'acme')
    with pytest.raises(TypeError, match='must be a timm model, with a pretrained_cfg, got Linear'):
        timm_stn.push_to_hub(torch.nn.Linear(1, 1), REPO)
    assert not hub.requests


@pytest.mark.skipif(not os.environ.get(TIMM_SCRIPTS), reason=f'{TIMM_SCRIPTS} does not name a checkout of timm')
def test_a_real_run(hub, tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in ('ant', 'bee'):
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
                image.save(tmp_path / 'data' / split / label / f'{i}.png')
    options = '--model stn_test_resnet --num-classes 2 --epochs 1 --batch-size 4 --workers 0 --model-ema --img-size 96'
    options += ' --data-dir data --device cpu --output out --experiment run --model-kwargs stn_transform=attention'
    command = [sys.executable, '-m', 'timm_stn.run', 'train.py', *options.split()]
    env = dict(environment(hub, tmp_path / 'home'), PYTHONPATH=str(Path(timm_stn.__file__).parents[1]))
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=400, capture_output=True)
    pushed = timm_stn.push_to_hub(tmp_path / 'out' / 'run' / 'model_best.pth.tar', REPO)
    assert pushed.sent == ['README.md', 'config.json', 'model.safetensors']  # data_dir is relative: no picture
    model = load(REPO).eval()
    state = torch.load(tmp_path / 'out' / 'run' / 'last.pth.tar', weights_only=False)['state_dict_ema']
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert 'Top-1 accuracy' in pushed.card and 'stn_transform: attention' in pushed.card


# --- cards ---

def test_a_card_is_kept(hub, tmp_path, capsys):
    hub.create(REPO, {'README.md': b'mine'})
    assert cli.main(['push', 'stn_mnist_cnn_tc', '--repo', REPO]) == 0
    assert 'was kept; --replace-card replaces it' in capsys.readouterr().out
    assert hub.files(REPO)['README.md'] == b'mine' and 'model.safetensors' in hub.files(REPO)
    assert cli.main(['push', 'stn_mnist_cnn_tc', '--repo', REPO, '--replace-card']) == 0
    assert hub.files(REPO)['README.md'] == (card_folder('stn_mnist_cnn_tc') / 'README.md').read_bytes()


def test_a_card_of_ones_own(hub, tmp_path, capsys):
    card = tmp_path / 'card.md'
    card.write_text('---\nlicense: mit\ntags: [timm]\n---\n# Ours\n')
    timm_stn.push_to_hub(network(), REPO, card=card)
    assert hub.files(REPO)['README.md'] == card.read_bytes()
    before = hub.repos[REPO].branches['main']
    for text, message in (
            ('---\nlicense: [\n---\n', 'cannot be read'), ('---\nlicense: mine\n---\n', '"license" must be one of')):
        card.write_text(text)
        argv = ['stn_mnist_cnn_tc', '--repo', REPO, '--card', card, '--replace-card']
        assert message in refused(capsys, *argv)
    assert hub.repos[REPO].branches['main'] == before


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


# --- who may not ---

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


# --- faults of the Hub and of the line, while pushing ---

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
    with pytest.raises(PushError, match='unless only the answer was lost: push again'):
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
    with Limit(200_000), pytest.raises(PushError, match='no room on the disk: make some in .*, or set TMPDIR'):
        timm_stn.push_to_hub(network(), REPO)
    assert not hub.requests
    timm_stn.push_to_hub(network(), REPO)


# --- faults while downloading ---

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


def test_the_other_way_by_the_clients_own_tools(hub, tmp_path):
    """What is pushed is a repository like any other: its files, and timm's own push on top of it."""
    pushed = timm_stn.push_to_hub(network(0), REPO)
    path = huggingface_hub.hf_hub_download(REPO, 'model.safetensors', revision=pushed.commit)
    assert set(load_file(path)) == set(network().state_dict())
    assert json.loads(hub.files(REPO)['config.json'])['architecture'] == 'stn_mnist_cnn_tc'
    timm.models.push_to_hf_hub(network(1), REPO, safe_serialization=True)
    assert torch.equal(logits(load(REPO)), logits(network(1)))
    assert b'timm_stn' in hub.files(REPO)['README.md']
