"""Names of classes, and which class the folder of an image stands for."""
import pytest
from makers import create
from timm.data import ImageNetInfo

from timm_stn.view.classes import classes_of

THREE = ['ant', 'bee', 'cat']
IMAGENET = ImageNetInfo('imagenet-1k')


def model_of(count, **cfg):
    model = create('stn_test_resnet', num_classes=count)
    model.pretrained_cfg.update(cfg)
    return model


@pytest.mark.parametrize(('cfg', 'folders', 'given', 'names', 'of_folder'), [
    ({}, [], [], ['0', '1', '2'], {}),
    ({}, ['x', 'y'], [], ['0', '1', '2'], {}),
    ({}, ['x', 'y', 'z'], [], ['x', 'y', 'z'], {'x': 0, 'y': 1, 'z': 2}),
    (dict(label_names=THREE), [], [], THREE, {}),
    (dict(label_names=THREE), ['bee'], [], THREE, {'ant': 0, 'bee': 1, 'cat': 2}),
    (dict(label_names=THREE[::-1]), THREE, [], THREE[::-1], {'cat': 0, 'bee': 1, 'ant': 2}),  # a class map's order
    (dict(label_names=THREE), ['x', 'y', 'z'], [], THREE, {'x': 0, 'y': 1, 'z': 2}),
    (dict(label_names=THREE), ['x', 'y'], [], THREE, {}),
    (dict(label_names=THREE[:2]), [], [], ['0', '1', '2'], {}),  # of another classifier
    (dict(label_names={'0': 'ant', '2': 'cat', '7': 'eel', 'x': 'y'}), ['cat'], [], ['ant', '1', 'cat'],
     {'ant': 0, 'cat': 2}),
    (dict(label_names=THREE, label_descriptions={'ant': 'an ant'}), ['ant'], [], ['an ant', 'bee', 'cat'],
     {'ant': 0, 'bee': 1, 'cat': 2}),
    (dict(label_names=THREE), ['ant'], ['A', 'B', 'C', 'D'], ['A', 'B', 'C'], {'ant': 0, 'bee': 1, 'cat': 2}),
    ({}, ['B'], ['A', 'B', 'C', 'D'], ['A', 'B', 'C'], {'A': 0, 'B': 1, 'C': 2}),
    ({}, [], ['A'], ['A', '1', '2'], {}),
])
def test_names_and_folders(cfg, folders, given, names, of_folder):
    found = classes_of(model_of(3, **cfg), folders, given)
    assert found.names == names
    assert {folder: found.of_folder.get(folder) for folder in folders} == {f: of_folder.get(f) for f in folders}
    assert not of_folder or found.of_folder == of_folder


def test_imagenet_by_the_number_of_classes():
    model = create('stn_test_resnet')
    described = [IMAGENET.index_to_description(i).split(',')[0] for i in (0, 1)]
    assert classes_of(model).names[:2] == described and len(classes_of(model).names) == 1000
    found = classes_of(model, ['n01443537'])  # goldfish
    assert found.of_folder['n01443537'] == 1 and found.names[1] == 'goldfish'
    others = [f'thing {i}' for i in range(1000)]
    assert classes_of(model, others).names == others, 'a thousand classes of another kind'


def test_one_class_is_not_told_by_its_only_folder():
    assert classes_of(model_of(1), ['photos']) == (['0'], {})
