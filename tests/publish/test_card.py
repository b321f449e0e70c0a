"""The card that is written of a run, and those of others, which are kept."""
from pushing import REPO, network, refused

import timm_stn
from timm_stn import cli
from timm_stn.names.zoo import card_folder


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
