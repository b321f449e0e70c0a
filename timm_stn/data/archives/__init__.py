"""Published archives of data sets become the folders and tars that the rest of the package, and timm, read."""
from timm_stn.data.archives.cub import unpack_cub
from timm_stn.data.archives.gtsrb import unpack_gtsrb
from timm_stn.data.archives.homes import HOMES
from timm_stn.data.archives.svhn import unpack_svhn
from timm_stn.data.archives.unpacking import InTheWay, Unpacked
from timm_stn.data.archives.wrong import WrongSource

__all__ = ['HOMES', 'InTheWay', 'Unpacked', 'WrongSource', 'unpack_cub', 'unpack_gtsrb', 'unpack_svhn']
