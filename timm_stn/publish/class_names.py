"""Names of the classes that a run of train.py has learned, from its folder of images."""
from typing import Any

from timm.data import create_dataset

__all__ = ['class_names']


def class_names(args: dict[str, Any], num_classes: int) -> list[str]:
    """Names of the folders of training images, in the order of their labels, as timm's own reader gives it.

    Args:
        args: Options of train.py.
        num_classes: Number of the network's classes.

    Returns:
        A name for each class; [] if the data are of another kind, or are not there any more, or have other classes.
    """
    root = args.get('data_dir') or args.get('data')
    if not root or '/' in str(args.get('dataset') or ''):  # that is no folder of images
        return []
    try:
        data = create_dataset(
            '', root=root, split=str(args.get('train_split') or 'train'), class_map=args.get('class_map') or '',
            input_key=args.get('input_key'))
        found = data.reader.class_to_idx
    except Exception:  # of many types: no folder, no images, no file of classes
        return []
    names = {index: name for name, index in found.items() if isinstance(name, str)}
    if len(found) != num_classes or set(names) != set(range(num_classes)):
        return []
    return [names[i].encode('utf-8', 'replace').decode() for i in range(num_classes)]
