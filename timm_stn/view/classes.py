"""Names of a network's classes, and the class that the folder of an image stands for."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset

__all__ = ['Classes', 'classes_of']


class Classes(NamedTuple):
    """What the outputs of a classifier mean: ``names`` to show, by class; ``of_folder``: classes by name of folder."""
    names: list[str]
    of_folder: dict[str, int]


def classes_of(model: Any, folders: Sequence[str] = (), given: Sequence[str] = ()) -> Classes:
    """The classes of a network.

    Names are those ``given``; else those of the model's cfg (``label_names``, ``label_descriptions``); else those of
    the folders, if there are as many as classes: timm's scripts number them in natural order; else ImageNet's, if
    their number is that of the classes; else numbers.

    Args:
        model: A timm model.
        folders: Names of the folders of the images, in natural order.
        given: Names by class.
    """
    count = model.num_classes
    ordered = list(folders) if len(folders) == count > 1 else []
    labels, texts = _of_cfg(model.pretrained_cfg, count)
    subset = None if labels else infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        if not ordered or set(ordered) & set(info.label_names()):
            labels = dict(enumerate(info.label_names()))
            texts = {c: info.index_to_description(c).partition(',')[0] for c in labels}
    numbered = dict(enumerate(ordered))
    given_names = dict(enumerate(given[:count]))
    names = given_names or texts or numbered
    means = next((known for known in (given_names, labels) if set(known.values()) & set(folders)), numbered)
    return Classes([names.get(c, str(c)) for c in range(count)], {name: c for c, name in means.items()})


def _of_cfg(cfg: Any, count: int) -> tuple[dict[int, str], dict[int, str]]:
    """Label names of a cfg and what describes them, by class; ({}, {}) if there are none, or another number of them."""
    names, texts = cfg.get('label_names') or {}, cfg.get('label_descriptions') or {}
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names)) if len(names) == count else {}
    labels = {int(c): str(name) for c, name in names.items() if str(c).isdecimal() and int(c) < count}
    return labels, {c: str(texts.get(name, name)) for c, name in labels.items()}
