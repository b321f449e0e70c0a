"""The card that is written of a run, and those of others, which are kept."""
import re

import timm
import yaml
from huggingface_hub import ModelCard
from pushing import REPO, network, refused

import timm_stn
from timm_stn import cli
from timm_stn.names.zoo import card_folder
from timm_stn.publish.card import write_card
from timm_stn.publish.run_record import Run


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


def test_what_a_card_says_of_a_run():
    """Its numbers as fractions for the Hub and in per cent for readers; its data by name; nothing of the machine."""
    model = timm.create_model(
        'stn_test_resnet', num_classes=6, stn_transform='similarity', stn_stages=('input', 2), stn_size=(96, 80))
    args = dict(model='stn_test_resnet', data_dir='/home/ann/secret/birds', val_split='val', lr=0.1, epochs=3,
                output='/home/ann/out', workers=4, pretrained_path='/home/ann/w.pth', opt=None)
    run = Run(model, args, 2, dict(loss=0.5, top1=87.5, top5=100.0), averaged=True)
    text = write_card(model, 'acme/net@wide', run, 'mit', 'look.png')
    card = ModelCard(text)
    assert (card.data.license, card.data.model_name, card.data.library_name) == ('mit', 'net', 'timm')
    results = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert results == {'accuracy': 0.875, 'top_5_accuracy': 1.0}
    assert {(r.dataset_name, r.dataset_split) for r in card.data.eval_results} == {('birds', 'val')}
    rows = [line for line in text.splitlines() if line.startswith('|')]
    assert '| loss | 0.5 |' in rows and '| Top-1 accuracy, % | 87.5 |' in rows
    assert '| `input` | similarity | 96 x 80 | 1 |' in rows and '| `2` | similarity | as it came | 1 |' in rows
    assert 'It is the last epoch of the training.' in text and 'may have selected' not in text
    earlier = write_card(model, 'acme/net', Run(model, args, 1, dict(top1=87.5)))
    cooled = write_card(model, 'acme/net', Run(model, {**args, 'cooldown_epochs': 5}, 2, dict(top1=87.5)))
    for text_of in (earlier, cooled):
        assert 'The same split may have selected the epoch.' in text_of and 'the last epoch' not in text_of
    assert 'the moving average of the weights after epoch 2' in text and "'hf-hub:acme/net@wide'" in text
    assert f'{sum(p.numel() for p in model.parameters()):,} parameters' in text and '](look.png)' in text
    recipe = yaml.safe_load(re.search(r'```yaml\n(.*?)```', text, re.DOTALL).group(1))
    assert recipe == dict(lr=0.1, epochs=3, val_split='val', pretrained_path='w.pth') and '/home' not in text


def test_a_card_of_what_is_not_known_leaves_it_out():
    """Of five classes the best five are all; a plain model looks nowhere; no run, no recipe."""
    model = timm.create_model('test_resnet', num_classes=5)
    text = write_card(model, 'acme/net', Run(model, {}, 1, dict(top1=60.0, top5=100.0)))
    assert [r.metric_type for r in ModelCard(text).data.eval_results] == ['accuracy']
    text = write_card(model, 'acme/net', Run(model))
    assert ModelCard(text).data.eval_results is None
    headings = [line for line in text.splitlines() if line.startswith('#')]
    assert headings == ['# net', '## Use', '## Licence'] and 'Top-5' not in text
