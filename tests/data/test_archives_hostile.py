"""Archives that are cut off, damaged, or made to harm: one line that names the file, and nothing written."""
import gzip
import io
import shutil
import stat
import tarfile
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_archives import (
    cub_files,
    gtsrb_files,
    picture,
    small_cub,
    small_gtsrb,
    tree,
    write_svhn,
    write_tgz,
    write_zip,
)

from timm_stn.data.archives import WrongSource, homes, streams, unpack_cub, unpack_gtsrb, unpack_svhn
from timm_stn.data.archives import members as reading

IMAGE = 'CUB_200_2011/images/001.Random_a_Bird/Random_a_Bird_0001_0.jpg'
BOMB = reading.LARGEST + 1


def tar_member(name, kind=tarfile.REGTYPE, link=''):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def refused(tmp_path, archive, message, unpack=unpack_cub):
    """It is, in one line, and nothing is written but in a folder of no results."""
    before = tree(tmp_path)
    with pytest.raises(WrongSource, match=message) as error:
        unpack(archive if isinstance(archive, list) else [archive], tmp_path / 'out' / 'deep', subset=True)
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize('name', [
    '../evil.jpg', 'CUB_200_2011/images/../../../evil.jpg', '/tmp/evil.jpg', 'C:/evil.jpg', 'C:evil.jpg',
    'CUB_200_2011\\images\\evil.jpg', '..', 'CUB_200_2011/images/001.Random_a_Bird/..'])
@pytest.mark.parametrize('kind', ['tgz', 'zip'])
def test_names_that_lead_out(tmp_path, name, kind):
    files, _ = cub_files()
    {'tgz': write_tgz, 'zip': write_zip}[kind](tmp_path / 'cub', {**files, name: picture((9, 9))})
    refused(tmp_path, tmp_path / 'cub', 'is no path within a folder')


@pytest.mark.parametrize('name', [
    'CUB_200_2011/images/001.Random_a_Bird/new\nline.jpg', 'CUB_200_2011/images/a/b/c.jpg', 'CUB_200_2011/images/a.jpg',
    'CUB_200_2011/images/001.Random_a_Bird/.hidden.jpg', 'CUB_200_2011/images/.git/a.jpg', 'train/a.jpg', '.cub.json',
    'CUB_200_2011/images/001.Random_a_Bird/ü\udcff.jpg', 'CUB_200_2011/images/a:b/c.jpg'])
def test_what_is_not_wanted_is_not_written(tmp_path, name):
    files, _ = cub_files()
    for which in (files, {name: picture((9, 9)), **files}):
        write_tgz(tmp_path / 'cub', which)
        unpack_cub([tmp_path / 'cub'], tmp_path / f'{len(which)}', subset=True)
    assert tree(tmp_path / f'{len(files)}') == tree(tmp_path / f'{len(files) + 1}')


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    files, _ = cub_files()
    secret = tmp_path / 'secret.jpg'
    secret.write_bytes(files.pop(IMAGE))
    write_tgz(tmp_path / 'cub', files, [(tar_member(IMAGE, kind, str(secret)), None)])
    refused(tmp_path, tmp_path / 'cub', 'Random_a_Bird_0001_0.jpg. is a link or a device, and must be a file')
    files['CUB_200_2011/images.txt'] = b''
    write_tgz(tmp_path / 'cub', files, [(tar_member('CUB_200_2011/classes.txt', kind, str(secret)), None)])
    refused(tmp_path, tmp_path / 'cub', 'is there twice|is a link or a device')


def test_a_folder_that_a_link_of_the_archive_stands_for(tmp_path):
    """A file below it goes to the folder of its name, not to where the link leads."""
    files, photographs = cub_files()
    (tmp_path / 'target').mkdir()
    link = tar_member('CUB_200_2011/images/001.Random_a_Bird', tarfile.SYMTYPE, str(tmp_path / 'target'))
    with tarfile.open(tmp_path / 'cub', 'w:gz') as tar:
        tar.addfile(link)
        for name, content in files.items():
            member = tar_member(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    unpack_cub([tmp_path / 'cub'], tmp_path / 'out', subset=True)
    assert not any((tmp_path / 'target').iterdir())
    assert (tmp_path / 'out' / 'train' / photographs[0].path).read_bytes() == photographs[0].content


def test_links_in_a_zip(tmp_path):
    files, _ = cub_files()
    files.pop(IMAGE)
    link = zipfile.ZipInfo(IMAGE)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    write_zip(tmp_path / 'cub', files, [(link, b'/etc/passwd')])
    refused(tmp_path, tmp_path / 'cub', 'is a link or a device')


@pytest.mark.parametrize('kind', ['tgz', 'zip'])
def test_bombs_of_zeros(tmp_path, kind):
    """Refused by what the archive says, before any of it is unpacked."""
    files, _ = cub_files()
    files[IMAGE] = bytes(BOMB)
    {'tgz': write_tgz, 'zip': write_zip}[kind](tmp_path / 'cub', files)
    assert (tmp_path / 'cub').stat().st_size < BOMB / 100
    files.clear()
    tracemalloc.start()
    refused(tmp_path, tmp_path / 'cub', 'would have 67,108,865 bytes, and 67,108,864 is the most that is accepted')
    assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    tracemalloc.stop()


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_members_unpack_without_a_limit(tmp_path, method):
    """zipfile unpacks all that a block of bzip2 or LZMA holds at once, whatever size the archive says."""
    files, _ = cub_files()
    size = 2 ** 24 + 12_345
    with zipfile.ZipFile(tmp_path / 'cub', 'w', method) as archive:
        for name, content in {**files, 'CUB_200_2011/images.txt': bytes(size)}.items():
            archive.writestr(name, content)
    content = (tmp_path / 'cub').read_bytes()
    assert content.count(size.to_bytes(4, 'little')) == 2
    (tmp_path / 'cub').write_bytes(content.replace(size.to_bytes(4, 'little'), (1000).to_bytes(4, 'little')))
    tracemalloc.start()
    refused(tmp_path, tmp_path / 'cub', f"'attributes.txt' is packed by method {method} .*; takes 0 .* and 8 ")
    assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    tracemalloc.stop()


def test_a_list_that_is_a_bomb(tmp_path):
    files, _ = cub_files()
    files['CUB_200_2011/images.txt'] = bytes(2 ** 22 + 1)
    write_tgz(tmp_path / 'cub', files)
    refused(tmp_path, tmp_path / 'cub', 'images.txt. would have 4,194,305 bytes')


def test_bombs_beside_what_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, 'TOTAL', 2 ** 22)
    files, _ = cub_files()
    write_tgz(tmp_path / 'cub', {'CUB_200_2011/zeros': bytes(2 ** 23), **files})
    refused(tmp_path, tmp_path / 'cub', 'it unpacks to more than')
    write_tgz(tmp_path / 'cub', files)
    with (tmp_path / 'cub').open('ab') as file:
        file.write(gzip.compress(bytes(2 ** 23)))  # behind the end
    refused(tmp_path, tmp_path / 'cub', 'it unpacks to more than')


@pytest.mark.parametrize('kind', [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_that_is_a_bomb(tmp_path, kind):
    """tarfile would read all of it at once."""
    header = tar_member('x', kind)
    header.size = 2 ** 17 + 1
    with gzip.open(tmp_path / 'cub', 'wb', compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(2 ** 18))
    refused(tmp_path, tmp_path / 'cub', 'a name or header of more than 131,072 bytes')


@pytest.mark.parametrize('letter', ['q', 'ü'])
@pytest.mark.parametrize('place', ['{}/a.jpg', '001.A/{}.jpg'])
def test_names_that_a_disk_would_not_take(tmp_path, letter, place):
    length = 200 - 4 * ('}.' in place)
    for size in (length, length + 2):
        name = place.format(letter * (size // len(letter.encode())))
        write_tgz(tmp_path / 'cub', {f'CUB_200_2011/images/{name}': b''})
        if size == length:
            assert list(homes.scan([tmp_path / 'cub'], homes.HOMES['cub']).sizes) == [name]
    refused(tmp_path, tmp_path / 'cub', 'has a name of 202 bytes, and 200 is the most that is accepted')


def test_many_lists(tmp_path):
    zips, _ = small_gtsrb(tmp_path)
    tables = {f'GTSRB/Final_Training/Images/0000{c}/GT-0000{c}.csv': bytes(2 ** 22) for c in range(3)}
    write_zip(zips[0], tables)
    refused(tmp_path, zips, 'its files of this kind unpack to more than 8,388,608 bytes', unpack_gtsrb)
    write_zip(zips[0], {'GTSRB/Final_Training/Images/00000/GT-00001.csv': b'', **gtsrb_files()[0][0]})
    unpack_gtsrb(zips, tmp_path / 'out', subset=True)  # no table is called so


@pytest.mark.parametrize('kind', ['tgz', 'zip', 'folder'])
def test_all_files_together(tmp_path, monkeypatch, kind):
    files, photographs = cub_files()
    {'tgz': write_tgz, 'zip': write_zip, 'folder': write_tgz}[kind](tmp_path / 'cub', files)
    source = tmp_path / 'cub'
    if kind == 'folder':
        source = tmp_path / 'by-hand'
        shutil.unpack_archive(tmp_path / 'cub', source, 'gztar')
    size = sum(len(photograph.content) for photograph in photographs)
    monkeypatch.setattr(homes, 'TOTAL', size - 1)
    refused(tmp_path, source, f'its files of this kind unpack to more than {size - 1:,} bytes')
    monkeypatch.setattr(homes, 'TOTAL', size)
    unpack_cub([source], tmp_path / 'out', subset=True)


ODD = '\x1b[31m\x9b\u202e' + 'z' * 100_000  # colours; turns what follows around


def in_list(name, old, new, files=cub_files):
    def made(folder):
        found, _ = files()
        path = f'CUB_200_2011/{name}.txt'
        assert old in found[path]
        write_tgz(folder / 'cub', {**found, path: found[path].replace(old, new.encode(), 1)})
        return [folder / 'cub']
    return made


def beside(name, write=write_tgz):
    def made(folder):
        write(folder / 'cub', {name: picture((9, 9)), **cub_files()[0]})
        return [folder / 'cub']
    return made


def in_table(old, new):
    def made(folder):
        zips, _ = small_gtsrb(folder)
        truth = gtsrb_files()[0][2]['GT-final_test.csv']
        assert old in truth
        write_zip(zips[2], {'GT-final_test.csv': truth.replace(old, new.encode(), 1)})
        return zips
    return made


def in_struct(folder):
    source = write_svhn(folder / 'by-hand' / 'train')
    with h5py.File(source / 'digitStruct.mat', 'r+') as file:
        name = file.create_dataset('odd', data=np.array([ord(c) for c in f'+{ODD}'], np.uint16)[:, None])
        file['digitStruct/name'][1, 0] = name.ref
    return [folder / 'by-hand']


FIRST, PATH = b'1 001.Random_a_Bird', IMAGE.split('/', 2)[2].encode()


@pytest.mark.parametrize(('made', 'unpack'), [
    (in_list('images', PATH, f'001.Random_a_Bird/{ODD}.jpg'), unpack_cub),
    (in_list('images', PATH, f'{ODD}.jpg'), unpack_cub), (in_list('images', PATH, f'a {ODD}'), unpack_cub),
    (in_list('images', b'1 ', '1' * 100_000 + ' '), unpack_cub), (in_list('images', b'1 ', '\u0661 '), unpack_cub),
    (in_list('image_class_labels', b'1 1', f'1 {ODD}'), unpack_cub),
    (in_list('classes', FIRST, f'1 {ODD}'), unpack_cub),
    (in_list('train_test_split', b'1 1', f'1 {ODD}'), unpack_cub),
    (in_list('bounding_boxes', b'1 12.0', f'1 {ODD}'), unpack_cub), (beside(f'../{ODD}'), unpack_cub),
    (beside(f'../{ODD[:99]}', write_zip), unpack_cub),
    (beside(f'CUB_200_2011/images/001.Random_a_Bird/{"z" * 60_000}.jpg', write_zip), unpack_cub),
    (in_table(b'00000.ppm', ODD), unpack_gtsrb), (in_table(b'Filename', ODD), unpack_gtsrb),
    (in_table(b'00000.ppm', f'"{ODD}"'), unpack_gtsrb), (in_struct, unpack_svhn)])
def test_what_an_archive_says_is_shown_in_part_and_printable(tmp_path, made, unpack):
    sources = made(tmp_path)
    with pytest.raises(WrongSource) as error:
        unpack(sources, tmp_path / 'out', subset=True)
    message = str(error.value)
    assert message.isprintable() and len(message) < 600 + len(', '.join(map(str, sources)))


def pax(kind, key, size):
    """A header of other headers, of about `size` bytes, that says `key` of all files or of the next one."""
    record = f'{size} {key}='.encode().ljust(size - 1, b'a') + b'\n'
    header = tar_member('pax', kind)
    header.size = size
    return header.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-size % 512)


@pytest.mark.parametrize('kind', [tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize('together', [False, True])
def test_headers_that_pile_up(tmp_path, kind, together):
    """Of all files, tarfile keeps them to its end; several before a file are read at once."""
    with gzip.open(tmp_path / 'cub', 'wb', compresslevel=1) as file:
        for i in range(400):
            file.write(pax(kind, f'key{i}', 2 ** 16) + (b'' if together else tar_member('x').tobuf()))
        file.write(bytes(1024))
    tracemalloc.start()
    refused(tmp_path, tmp_path / 'cub', 'a name or header of more than' if together else 'holds nothing of')
    assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    tracemalloc.stop()


def test_places_of_a_sparse_file_that_pile_up(tmp_path):
    """A header of GNU's tar goes on as long as it says so."""
    header = bytearray(tar_member('x', tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b'%06o\0 ' % tarfile.calc_chksums(bytes(header))[0]
    more = b'%011o ' % 1 * 42 + b'\1'
    with gzip.open(tmp_path / 'cub', 'wb', compresslevel=1) as file:
        file.write(header)
        for _ in range(2 ** 13):
            file.write(more.ljust(512, b'\0'))
    refused(tmp_path, tmp_path / 'cub', 'a name or header of more than')


def test_an_image_of_too_many_pixels(tmp_path, monkeypatch):
    small_cub(tmp_path / 'cub', side=60)
    for most, error in ((2500, 'Warning'), (1500, 'Error')):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', most)
        refused(tmp_path, tmp_path / 'cub', rf'is no image, or damaged \(DecompressionBomb{error}\)')


def test_a_file_twice(tmp_path):
    files, _ = cub_files()
    member = tar_member(f'./{IMAGE.replace("/images/", "//images/./")}')
    write_tgz(tmp_path / 'cub', files, [(member, picture((9, 9)))])
    refused(tmp_path, tmp_path / 'cub', 'Random_a_Bird_0001_0.jpg. is there twice')
    with pytest.warns(UserWarning, match='Duplicate name'):
        write_zip(tmp_path / 'cub', files, [(IMAGE, picture((9, 9)))])
    refused(tmp_path, tmp_path / 'cub', 'Random_a_Bird_0001_0.jpg. is there twice')


def test_a_zip_with_a_password(tmp_path):
    zips, _ = small_gtsrb(tmp_path)
    content = bytearray(zips[0].read_bytes())
    for magic, flags in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        at = content.find(magic)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(magic, at + 4)
    zips[0].write_bytes(content)
    refused(tmp_path, zips, 'password required', unpack_gtsrb)


def test_what_is_no_archive(tmp_path):
    for content in (b'', b'<html>Not found</html>' * 99, b'PK\x03\x04', b'\x1f\x8b', gzip.compress(b''),
                    gzip.compress(b'<html>' * 999)):
        (tmp_path / 'cub').write_bytes(content)
        refused(tmp_path, tmp_path / 'cub', 'damaged, or no tar or zip archive|it ends early')


@pytest.mark.parametrize('share', [0.02, 0.2, 0.4, 0.6, 0.8, 0.97, 0.9999])
def test_archives_that_end_early(tmp_path, share):
    small_cub(tmp_path / 'cub')
    zips, _ = small_gtsrb(tmp_path)
    for path in (tmp_path / 'cub', zips[0]):
        content = path.read_bytes()
        path.write_bytes(content[:min(int(len(content) * share), len(content) - 1)])
    refused(tmp_path, tmp_path / 'cub', "cub': it ends early: was the download cut off")
    refused(tmp_path, zips, 'Training_Images.zip.: damaged, or no tar or zip archive', unpack_gtsrb)


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """Small sound archives of each kind, and what they become."""
    folder = tmp_path_factory.mktemp('sound')
    files, _ = cub_files(classes=2, each=2, side=16)
    write_tgz(folder / 'tgz', files)
    write_zip(folder / 'zip', files)
    (folder / 'tar').write_bytes(gzip.decompress((folder / 'tgz').read_bytes()))
    unpack_cub([folder / 'tgz'], folder / 'out', subset=True)
    return {kind: (folder / kind).read_bytes() for kind in ('tgz', 'zip')}, tree(folder / 'out')


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_archives_are_told_or_do_not_matter(sound, tmp_path_factory, data):
    """Whatever bytes change, cut or are added: refused in a line, or the result is right."""
    archives, expected = sound
    content = bytearray(archives[data.draw(st.sampled_from(sorted(archives)))])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(max_size=4))
        content[at:at + data.draw(st.integers(0, 4))] = new
    folder = tmp_path_factory.mktemp('damaged')
    (folder / 'cub').write_bytes(content)
    try:
        unpack_cub([folder / 'cub'], folder / 'out', subset=True)
    except WrongSource as error:
        assert '\n' not in str(error)
        assert not (folder / 'out').exists() or not any((folder / 'out').iterdir())
    else:
        assert tree(folder / 'out') == expected
