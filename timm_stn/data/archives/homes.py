"""The public homes of the data sets, how the files of each are named, and what a source holds of one."""
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from timm_stn.data.archives.members import LARGEST, Member, members
from timm_stn.data.archives.streams import TOTAL
from timm_stn.data.archives.wrong import WrongSource, quoted

__all__ = ['HOMES', 'STRUCT', 'Found', 'Home', 'reread', 'scan']

LONGEST = 2 ** 22  # bytes of a list; the longest of the three sets has 1 MB
LISTS = 2 ** 23  # of all lists together, which are in memory
STRUCT = 2 ** 32  # of SVHN's digitStruct.mat, some kB for each image; it is never in memory
NAME = 200  # bytes of the name of a file or folder; most systems take 255, and a little is added while it is written
MOST = 10 ** 6  # files of a set
FILE = r"[\w+,()'-][\w+,()'. -]*"  # a part of a path that every system takes


class Home(NamedTuple):
    """A data set, where it is published, and the paths of its files, whose group 1 is what they are called here."""
    title: str
    archives: tuple[str, ...]
    url: str
    images: re.Pattern[str]
    lists: re.Pattern[str]

    @property
    def accepted(self) -> str:
        """What to say to those who have something else."""
        return f'takes {", ".join(self.archives)} of {self.url}, or a folder with what was in it'


class Found(NamedTuple):
    """Bytes of each image, and the contents of each list, by path."""
    sizes: dict[str, int]
    lists: dict[str, str]


HOMES = {
    'cub': Home(
        'Caltech-UCSD Birds 200-2011', ('CUB_200_2011.tgz',), 'https://data.caltech.edu/records/65de6-vp158',
        re.compile(rf'(?:CUB_200_2011/)?images/({FILE}/{FILE}\.jpg)'),
        re.compile(r'(?:CUB_200_2011/)?((?:images|train_test_split|image_class_labels|classes|bounding_boxes)\.txt)')),
    'gtsrb': Home(
        'GTSRB', ('GTSRB_Final_Training_Images.zip', 'GTSRB_Final_Test_Images.zip', 'GTSRB_Final_Test_GT.zip'),
        'https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html',
        re.compile(r'(?:GTSRB/)?(Final_Training/Images/000[0-4]\d/\d{5}_\d{5}\.ppm|Final_Test/Images/\d{5}\.ppm)'),
        re.compile(r'(?:GTSRB/)?(?:Final_Test/Images/)?'
                   r'(Final_Training/Images/(000[0-4]\d)/GT-\2\.csv|GT-final_test\.csv)')),
    'svhn': Home(
        'SVHN (format 1)', ('train.tar.gz', 'test.tar.gz', 'extra.tar.gz'), 'http://ufldl.stanford.edu/housenumbers/',
        re.compile(r'((?:train|test|extra)/(?:\d+\.png|digitStruct\.mat))'), re.compile(r'(?!)')),
}
STRANGERS = {  # what is published beside them
    "torchvision's GTSRB-Training_fixed.zip, another split, of 26,640 images": re.compile(
        r'(?:GTSRB/)?Training/\d{5}/.*'),
    'the online test of GTSRB, another split': re.compile(r'(?:GTSRB/)?Online-Test(?:-sort)?/.*'),
}


def scan(sources: Sequence[Path], home: Home) -> Found:
    """What sources hold of a data set. Lists are read, images are not.

    Raises:
        WrongSource: A source is damaged, holds nothing of the set, or another set; a file is there twice, no file, or
            too large.
    """
    sizes: dict[str, int] = {}
    lists: dict[str, str] = {}
    left, lists_left = TOTAL, LISTS
    for source in sources:
        before, others = len(sizes) + len(lists), ''
        for member in members(source, 'checking'):
            if match := home.images.fullmatch(member.name):
                member.check_size(_most(match[1]))
                _check_names(member)
                left = _less(left, member, TOTAL)
                _put(sizes, match[1], member.size, member)
            elif match := home.lists.fullmatch(member.name):
                lists_left = _less(lists_left, member, LISTS)
                _put(lists, match[1], _text(member), member)
            else:
                others = others or _stranger(member.name, home)
                if others and not source.is_dir():  # a folder may hold several sets
                    break
        if (others and not source.is_dir()) or len(sizes) + len(lists) == before:
            raise WrongSource(f'{str(source)!r}: it holds {others or f"nothing of {home.title}"}')
    return Found(sizes, lists)


def reread(sources: Sequence[Path], home: Home, paths: Collection[str]) -> Iterator[tuple[str, Member]]:
    """The images of sources that `scan` has found, in their order.

    Raises:
        WrongSource: They are not what they were.
    """
    left = set(paths)
    for source in sources:
        for member in members(source, 'unpacking'):
            if (match := home.images.fullmatch(member.name)) and match[1] in left:
                left.remove(match[1])
                member.check_size(_most(match[1]))
                yield match[1], member
    if left:
        raise WrongSource(f'{quoted(min(left))}: it was there, and is not any more')


def _most(path: str) -> int:
    return STRUCT if path.endswith('.mat') else LARGEST


def _check_names(member: Member) -> None:
    if (longest := max(len(part.encode()) for part in member.name.split('/'))) > NAME:
        raise WrongSource(f'{member.said} has a name of {longest:,} bytes, and {NAME} is the most that is accepted')


def _less(left: int, member: Member, most: int) -> int:
    """What is left of a limit after a file."""
    if member.size > left:
        raise WrongSource(f'{str(member.source)!r}: refused, for its files of this kind unpack to more than {most:,} '
                          'bytes')
    return left - member.size


def _put(found: dict, path: str, value: int | str, member: Member) -> None:
    if path in found:
        raise WrongSource(f'{str(member.source)!r}: {quoted(path)} is there twice')
    if len(found) == MOST:
        raise WrongSource(f'{str(member.source)!r}: it holds more than {MOST:,} files')
    found[path] = value


def _text(member: Member) -> str:
    try:
        return member.read(LONGEST).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise WrongSource(f'{member.said} is no text: {error}') from error


def _stranger(name: str, home: Home) -> str:
    """What else a file is of; '' if that is not known."""
    known = {other.title: other.images for other in HOMES.values() if other.title != home.title} | STRANGERS
    return next((title for title, pattern in known.items() if pattern.fullmatch(name)), '')
