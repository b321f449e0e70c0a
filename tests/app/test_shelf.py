"""Networks that are offered, and loaded once."""
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm

from timm_stn.app import shelf as shelves
from timm_stn.app.shelf import MOST_LOADED, Network, Shelf, load_network, names_at_hand
from timm_stn.names.zoo import card_folder, zoo_names


def test_trained_networks_come_first(monkeypatch):
    monkeypatch.setattr(shelves, 'try_to_load_from_cache',
                        lambda repo, file: f'/cache/{file}' if repo == 'timm/resnet18.a1_in1k' else None)
    names = names_at_hand()
    own = [name for name in names if name in zoo_names()]
    assert names == [*own, 'stn_resnet18.a1_in1k'] and 'stn_mnist_cnn_rts' in own
    assert 'stn_mnist_add' not in own, 'it takes two channels'
    assert 'stn_resnet50_cub' not in own, 'it has no weights'


def test_it_is_loaded_once_by_many_at_once():
    loads = []

    def load(name):
        loads.append(name)
        time.sleep(0.05)
        return f'network {name}'

    shelf = Shelf(['a', 'b'], load=load)
    with ThreadPoolExecutor(8) as pool:  # the load is shorter than they wait
        found = list(pool.map(shelf.get, ['a', 'b'] * 8))
    assert sorted(loads) == ['a', 'b'] and set(found) == {'network a', 'network b'}


def test_who_waits_for_a_load_waits_a_moment(monkeypatch):
    monkeypatch.setattr(shelves, 'WAIT', 0.05)
    slow = threading.Event()
    shelf = Shelf(['slow'], load=lambda name: slow.wait(20) and name)
    first = threading.Thread(target=shelf.get, args=['slow'])
    first.start()
    time.sleep(0.2)
    with pytest.raises(shelves.Loading):
        shelf.get('slow')
    slow.set()
    first.join()
    assert shelf.get('slow') == 'slow'


def test_loading_one_does_not_hold_up_another():
    slow = threading.Event()
    shelf = Shelf(['slow', 'quick'], load=lambda name: slow.wait(20) if name == 'slow' else name)
    waiting = threading.Thread(target=shelf.get, args=['slow'])
    waiting.start()
    try:
        assert shelf.get('quick') == 'quick' and waiting.is_alive()
    finally:
        slow.set()
        waiting.join()


def test_a_failure_is_not_kept():
    answers = iter([OSError('no network'), 'network'])

    def load(name):
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    shelf = Shelf(['a'], load=load)
    with pytest.raises(OSError):
        shelf.get('a')
    assert shelf.get('a') == 'network'


def test_few_stay_loaded():
    loads = []
    names = [str(k) for k in range(MOST_LOADED + 1)]
    shelf = Shelf(names, load=lambda name: loads.append(name) or object())
    for name in names:
        shelf.get(name)
    shelf.get(names[-1])
    assert loads == names
    shelf.get(names[0])
    assert loads == [*names, names[0]]


def test_only_what_is_offered():
    with pytest.raises(ValueError, match="no model 'resnet200' here"):
        Shelf(['a'], load=lambda name: name).get('resnet200')


def test_a_given_network_comes_first_and_stays():
    given = Network(timm.create_model('stn_test_vit', img_size=64), 'stn_test_vit')
    shelf = Shelf(['a', 'stn_test_vit'], given, load=lambda name: name)
    assert shelf.names == ['stn_test_vit', 'a'] and shelf.get('stn_test_vit') is given


def test_a_network_of_a_folder_takes_digits_too():
    name = f'local-dir:{card_folder("stn_mnist_cnn_rts")}'
    assert load_network(name).digits


def test_digits_have_digits_for_clutter():
    network = load_network('stn_mnist_cnn_rts')
    assert network.digits and network.pieces.shape == (64, 1, 28, 28) and network.classes == list('0123456789')
    assert not network.model.training and network.config['mean'] == (0.0,)


@pytest.mark.parametrize('name,arguments,why', [
    ('test_vit', {}, 'has no spatial transformer'), ('stn_test_vit', dict(num_classes=0), 'has no classifier'),
    ('stn_test_vit', dict(in_chans=2), '1 or 3 channels'),
])
def test_what_cannot_be_shown_is_refused(name, arguments, why):
    with pytest.raises(ValueError, match=why):
        Network(timm.create_model(name, **arguments), name)
