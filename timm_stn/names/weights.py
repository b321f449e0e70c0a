"""Finds, reads and checks weights.

From Hub repositories and folders (``hf-hub:``, ``local-dir:``, the networks of `timm_stn.names.zoo`), only safetensors
are read. A file or URL from the user may be any checkpoint of timm's, and is read without unpickling code.
"""
import argparse
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, load_state_dict
from torch import Tensor
from torch.hub import load_state_dict_from_url

from ..version import __version__
from .brief import short
from .hub_token import token_fault

__all__ = [
    'WEIGHTS', 'MissingWeights', 'StateDict', 'check_kinds', 'location_of', 'naming', 'options_allowed', 'place_of',
    'read_weights']

WEIGHTS = 'model.safetensors'
TENSORS = 2 ** 15  # accepted in a file; timm's largest networks have some thousands
HEADER = 2 ** 23  # bytes of a safetensors header: 256 for each of as many tensors
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
CONVERT = (
    'Only safetensors are read from the Hub and from folders. To convert a file that you trust: `model = '
    'timm.create_model(NAME, checkpoint_path=FILE); timm.models.save_for_hf(model, FOLDER, safe_serialization=True)`.')
FOREIGN = (
    '{where} is not the file that this version of timm_stn was published with, and is not loaded: somebody else may '
    'have put it there. Its SHA-256 is {found}, not {sha256}. Update timm_stn; or, if you trust that repository, load '
    "it by its own name: timm.create_model('hf-hub:{repo}', pretrained=True). It is in the cache as {cached}.")
StateDict = dict[str, Tensor]


class MissingWeights(RuntimeError):
    """A folder or a Hub repository holds no weights."""


def location_of(cfg: PretrainedCfg) -> str:
    """The folder, Hub repository, file or URL of a cfg's weights, as errors name it."""
    if cfg.state_dict:
        return 'the state_dict in pretrained_cfg'
    if cfg.source == 'hf-hub' or (cfg.source != 'local-dir' and not cfg.file and not _reads_url(cfg)):
        return f'hf-hub:{cfg.hf_hub_id}'
    return str(cfg.url if _reads_url(cfg) else cfg.file)


def place_of(cfg: PretrainedCfg) -> str:
    """The file of a cfg's weights."""
    location = location_of(cfg)
    if cfg.source == 'local-dir' and not cfg.state_dict:
        return str(Path(location) / WEIGHTS)
    return f'{location}/{cfg.hf_hub_filename or WEIGHTS}' if location == f'hf-hub:{cfg.hf_hub_id}' else location


def read_weights(
        cfg: PretrainedCfg,
        base: str,
        cache_dir: Any = None,
        sha256: str | None = None,
) -> StateDict | None:
    """The state dict that a cfg points to; None for the backbone's own weights, which timm reads itself.

    Args:
        cfg: Pretrained cfg of the network.
        base: Architecture of its backbone.
        cache_dir: Where downloads are kept.
        sha256: Hash of the only file that is accepted from the Hub. Default: any.

    Raises:
        MissingWeights: The folder or the repository holds no safetensors.
        RuntimeError: The weights cannot be reached or read, or a tensor is not valid.
    """
    read = _reader(cfg, base, cache_dir, sha256)
    if read is None:
        return None
    state_dict = read()
    if not cfg.state_dict:
        _check_tensors(state_dict, place_of(cfg))
    return state_dict


def _reader(
        cfg: PretrainedCfg,
        base: str,
        cache_dir: Any,
        sha256: str | None,
) -> Callable[[], StateDict] | None:
    if cfg.state_dict:
        return lambda: dict(cfg.state_dict or {})
    if cfg.source == 'local-dir':
        return lambda: _read_folder(Path(str(cfg.file)))
    if cfg.source == 'hf-hub':
        return lambda: _read_hub(cfg, cache_dir, sha256)
    registered = get_arch_pretrained_cfgs(base).values()
    if cfg.file and not cfg.custom_load:
        return lambda: _read_file(Path(str(cfg.file)).expanduser())
    if _reads_url(cfg) and cfg.url not in {c.url for c in registered}:
        return lambda: load_state_dict_from_url(  # type: ignore[no-untyped-call]
            cfg.url, model_dir=cache_dir, map_location='cpu', weights_only=True)
    if cfg.hf_hub_id and cfg.hf_hub_id not in {c.hf_hub_id for c in registered} and not cfg.file and not cfg.url:
        return lambda: _read_hub(cfg, cache_dir, sha256)
    return None


def _reads_url(cfg: PretrainedCfg) -> bool:
    """Whether timm would download a checkpoint in its own format from a URL."""
    chosen = cfg.source == 'url' if cfg.source else not (cfg.file or cfg.hf_hub_id)
    return bool(cfg.url) and chosen and not cfg.custom_load


def _read_folder(folder: Path) -> StateDict:
    file = folder / WEIGHTS
    if not file.is_file():
        others = sorted(f.name for f in folder.glob('*') if f.suffix in ('.bin', '.pth', '.pt', '.tar', '.safetensors'))
        raise MissingWeights(f"{folder} has no {WEIGHTS}{_but(others)}. {CONVERT}")
    return _read_safetensors(file, str(file))


def _read_hub(cfg: PretrainedCfg, cache_dir: Any, sha256: str | None) -> StateDict:
    """From the cache if it holds the repository's revision, and the file of that hash; else from the Hub."""
    where, name = place_of(cfg), cfg.hf_hub_filename or WEIGHTS
    if not name.endswith('.safetensors'):
        raise ValueError(f'hf_hub_filename must name a .safetensors file, got {name!r} of {cfg.hf_hub_id}. {CONVERT}')
    repo, _, revision = str(cfg.hf_hub_id).partition('@')
    cache_dir = Path(cache_dir).expanduser() if cache_dir else None
    file = huggingface_hub.try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision or None)
    if not isinstance(file, str) or (sha256 and sha256 != _sha256(file)):
        file = _download(repo, name, revision or None, cache_dir, where)
    if sha256 and sha256 != (found := _sha256(file)):
        raise RuntimeError(FOREIGN.format(where=where, found=found, sha256=sha256, repo=cfg.hf_hub_id, cached=file))
    return _read_safetensors(Path(file), where)


def _sha256(file: str) -> str:
    digest = hashlib.sha256()
    with open(file, 'rb') as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _download(repo: str, name: str, revision: str | None, cache_dir: Path | None, where: str) -> str:
    if (fault := token_fault()) is not None:
        raise RuntimeError(f'{where} is not asked for: {fault}')
    try:
        return huggingface_hub.hf_hub_download(
            repo, name, revision=revision, cache_dir=cache_dir, library_name='timm_stn', library_version=__version__)
    except GatedRepoError as error:
        raise RuntimeError(f'{where}: access to the repository has not been granted. {error}') from error
    except RepositoryNotFoundError as error:
        raise MissingWeights(f'{where}: there is no such repository on the Hub, or it is private') from error
    except RevisionNotFoundError as error:
        raise MissingWeights(f'{where}: the repository has no revision {revision!r}') from error
    except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError
        cause = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else _text(error)
        raise RuntimeError(f"{where} is not in the cache, and the Hub is not asked or not reached: {cause}") from error
    except EntryNotFoundError as error:
        others = [n for n in ('pytorch_model.bin',) if _exists(repo, n, revision)]
        raise MissingWeights(f'{where}: the repository has no {name}{_but(others)}. {CONVERT}') from error
    except Exception as error:  # many types: of the Hub, httpx, the file system
        raise RuntimeError(f'{where} cannot be downloaded: {_text(error)}') from error


def _exists(repo: str, name: str, revision: str | None) -> bool:
    try:
        return bool(huggingface_hub.file_exists(repo, name, revision=revision))
    except Exception:  # used only for the message of another error
        return False


def _but(others: list[str]) -> str:
    return short(f", but {', '.join(others)}") if others else ''


def _read_safetensors(file: Path, where: str) -> StateDict:
    try:
        _check_count(file)
        return dict(load_file(file))
    except Exception as error:  # many types: of safetensors, torch, the file system
        raise RuntimeError(f'{where} cannot be read as safetensors: {_text(error)}') from error


def _check_count(file: Path) -> None:
    """Raise if a safetensors file announces more tensors than any network has; each costs time, an empty one too."""
    with file.open('rb') as opened:
        size = int.from_bytes(opened.read(8), 'little')
    if HEADER < size <= file.stat().st_size:  # the library tells of a length that cannot be
        raise RuntimeError(f'its header has {size:,} bytes, and at most {HEADER:,} are accepted')
    with safe_open(file, framework='pt') as opened:  # type: ignore[no-untyped-call]
        count = len(opened.keys())
    if count > TENSORS:
        raise RuntimeError(f'it holds {count:,} tensors, and at most {TENSORS:,} are accepted')


def _read_file(file: Path) -> StateDict:
    """Read a checkpoint named by the user: safetensors, or a file of train.py, without unpickling code."""
    if not file.is_file():
        raise FileNotFoundError(f'pretrained_cfg: there is no file {str(file)!r}.')
    try:
        if file.suffix == '.safetensors':
            _check_count(file)
        with options_allowed():
            return load_state_dict(str(file), weights_only=True)
    except Exception as error:
        raise RuntimeError(f'{file} cannot be read as a checkpoint (weights_only=True): {_text(error)}') from error


def options_allowed() -> AbstractContextManager:
    """Within it, `weights_only=True` accepts the options that train.py stores beside the weights."""
    return torch.serialization.safe_globals([argparse.Namespace])


def _check_tensors(state_dict: Mapping[Any, Any], where: str) -> None:
    """Raise unless all values are tensors of plain dtypes with finite numbers; scalars (bounds) may be infinite."""
    if not state_dict:
        raise RuntimeError(f'{where} holds no tensors.')
    if len(state_dict) > TENSORS:
        raise RuntimeError(f'{where} holds {len(state_dict):,} tensors, and at most {TENSORS:,} are accepted.')
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise RuntimeError(f'{where}: {short(repr(key))} is no tensor with a name, but a {type(value).__name__}.')
        if value.dtype not in FLOATS + INTEGERS:
            accepted = ', '.join(str(d).removeprefix('torch.') for d in FLOATS)
            raise RuntimeError(
                f'{where}: {short(key)} is {_dtype(value)}; accepted are {accepted}, and integers for counts.')
        if value.is_floating_point() and value.numel() and not _is_finite(value):
            raise RuntimeError(f'{where}: {short(key)} has numbers that are not finite (NaN or infinite).')


def _is_finite(value: Tensor) -> bool:
    low, high = (float(v) for v in torch.aminmax(value.detach()))  # NaN if there is any
    return low == low and (value.ndim == 0 or (low > -torch.inf and high < torch.inf))


def check_kinds(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor], where: str) -> None:
    """Raise if a checkpoint has integers for a floating-point tensor of the network."""
    for key, value in state_dict.items():
        own = target.get(key)
        if own is not None and own.is_floating_point() and not value.is_floating_point():
            raise RuntimeError(f'{where}: {key} is {_dtype(value)}, where the network has {_dtype(own)}.')


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix('torch.')


@contextmanager
def naming(location: str | None, what: str = '') -> Iterator[None]:
    """Prefix errors with the location of weights or config, and shorten them. They stay a TypeError, ValueError or
    RuntimeError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UnicodeEncodeError) and (fault := token_fault()):  # timm has asked the Hub
            raise RuntimeError(fault) from error
        if len(str(error)) > len(short(error)):  # as torch lists all keys of a checkpoint
            error.args = (short(error),)
        if location is None or location in str(error):
            raise
        kind = next((k for k in (TypeError, ValueError) if type(error) is k), RuntimeError)
        raise kind(f"{location}: {what}{error if type(error) is kind else _text(error)}") from error


def _text(error: Exception) -> str:
    return short(error) if type(error) is RuntimeError else f'{type(error).__name__}: {short(error)}'
