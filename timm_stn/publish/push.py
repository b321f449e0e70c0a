"""Push to the Hugging Face Hub: write and test, send in one commit, download and test again."""
import copy
import filecmp
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from ..geometry.layout import size_that_enters
from ..names.brief import listed, short
from ..names.hub_token import token_fault
from ..names.provenance import inherited
from ..names.weights import WEIGHTS
from ..names.zoo import card_folder
from ..version import __version__
from ..view.dependence import witnessing
from ..view.draw import save_picture
from ..view.sheet import sheet_of
from . import silence
from .card import write_card
from .errors import PushError, explained, hint
from .half import rounded
from .run_record import Run, read_run
from .save import CONFIG, save_network
from .scratch import scratch_folder

__all__ = ['PushError', 'Pushed', 'push_to_hub']

CARD, PICTURE = 'README.md', 'look.png'
SHOWN = 6  # images of a run in the card's picture
PICKLES = ('.bin', '.pt', '.pth', '.tar', '.pkl', '.pickle', '.ckpt')


class Pushed(NamedTuple):
    """The result of a push."""
    repo: str
    url: str
    commit: str | None  # the revision with all files; None for a dry run
    sent: list[str]  # files that were committed; for a dry run, all files
    same: list[str]  # files that the repository had already
    kept_card: bool  # the repository had another card, which was kept
    card: str
    advice: list[str] = []  # lines on the images of the card's picture, and on stages whose theta is the same for all


def push_to_hub(
        model: str | Path | nn.Module,
        repo: str,
        *,
        revision: str | None = None,
        private: bool = False,
        message: str | None = None,
        card: str | Path | None = None,
        replace_card: bool = False,
        images: Iterable[str | Path] | None = None,
        license: str | None = None,
        half: bool = False,
        token: str | None = None,
        dry_run: bool = False,
) -> Pushed:
    """Publish a network as a repository of the Hugging Face Hub, which ``timm.create_model('hf-hub:...')`` loads.

    Weights are written as safetensors, never as a pickle. The written files are loaded again before anything is sent,
    and once more from a fresh download of the new revision. Both must give the same logits, bit for bit. All files go
    into one commit, which the Hub refuses if the branch has moved meanwhile.

    Args:
        model: A timm model, with or without transformers; a checkpoint of timm's ``train.py`` (its EMA weights are used
            if it has them); a registered name; or a folder with the files of a repository.
        repo: ``ORG/NAME``; created if it is missing.
        revision: Branch to push to, created from ``main`` if it is missing. Default: ``main``.
        private: Create the repository as a private one.
        message: Message of the commit.
        card: A README.md to use. Default: a card written from the checkpoint and from ``args.yaml`` and
            ``summary.csv`` in its folder.
        replace_card: Replace an existing README.md of the repository; otherwise it is kept.
        images: Files for the card's picture of where the network looks. Default: some validation images of the run, if
            they still exist. They become public with the repository; [] draws none.
        license: License of the weights, a name of the Hub, for card and config. Default: that of the pretrained weights
            which the model was made with, or which its training started from; ``unknown`` without such.
        half: Write weights in half precision, a file of half the size; loaded, they are float32 again. The model itself
            is not changed.
        token: Default: the token that huggingface_hub finds.
        dry_run: Write and test the files, send nothing.

    Raises:
        PushError: The Hub refused the push or was not reached, or the downloaded files differ from those sent.
        TypeError: ``model`` is no timm model.
        ValueError: ``model``, or another argument, cannot be used; the message says why.
    """
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo):
        raise ValueError(f'repo must be ORG/NAME, as acme/stn_birds, got {repo!r}.')
    if revision and re.fullmatch(r'[0-9a-f]{40}', revision):
        raise ValueError(f'revision must be the name of a branch, got the commit {revision!r}.')
    fault = None if dry_run and token is None else token_fault(token)  # the HTTP library's error would show it
    if fault is not None:
        raise ValueError(fault)
    pictures = None if images is None else [Path(p) for p in images]
    for path in (*([Path(card)] if card else []), *(pictures or [])):
        if not path.is_file():
            raise ValueError(f'card and images must be files; there is no {str(path)!r}.')
    with scratch_folder() as beside, explained(repo, token):
        folder, run = _source(model)
        advice: list[str] = []
        if half and folder is not None:
            raise ValueError(f'half: the files of a folder are pushed as they are, and {str(model)!r} is one.')
        if folder is None:
            folder, at = beside, repo if revision in (None, 'main') else f'{repo}@{revision}'
            x, logits, advice = _write(run, folder, at, pictures, license, half, card is None)
        else:
            x, logits = _try(f'local-dir:{folder}')
        files = _files(folder)
        if card is not None:
            files[CARD] = Path(card)
        text = _checked_card(files.get(CARD))
        if dry_run:
            return Pushed(repo, _url(HfApi(), repo, revision), None, list(files), [], False, text, advice)
        api = HfApi(token=token, library_name='timm_stn', library_version=__version__)
        message = message or f'Push with timm_stn {__version__}'
        with silence.bounded():
            pushed = _commit(api, repo, revision, files, private, replace_card, message)
        cache = beside / 'hub'
        _try(f'hf-hub:{pushed.repo}@{_download(pushed, files, token, cache)}', x, logits, cache)
        return pushed._replace(card=text, advice=advice)


# the files to push


def _files(folder: Path) -> dict[str, Path]:
    """All files that are not hidden, by their names in the repository."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob('*')) if path.is_file()}
    return {name.as_posix(): path for name, path in found.items() if not any(p.startswith('.') for p in name.parts)}


def _source(model: str | Path | nn.Module) -> tuple[Path | None, Run]:
    """(folder, empty run) for a folder that can be pushed unchanged, else (None, network with its training run)."""
    if isinstance(model, nn.Module):
        return None, Run(getattr(model, '_orig_mod', model))
    path = Path(model)
    name = str(model)
    own = card_folder(name) if path.name == name else path
    if not path.exists() and timm.is_model(name.partition('.')[0]) and not (own / WEIGHTS).is_file():
        if not timm.is_model_pretrained(name):
            raise ValueError(f'model: {name} has no trained weights; name a checkpoint, or give a trained model.')
        try:
            return None, Run(timm.create_model(name, pretrained=True))
        except (OSError, HfHubHTTPError) as error:
            raise ValueError(f'model: the trained weights of {name} could not be loaded: '
                             f'{type(error).__name__}: {short(error)}') from error
    folder = path if path.is_dir() else own
    if path.is_file():
        return None, read_run(path)
    if not folder.is_dir():
        raise ValueError(f'model must be a checkpoint, a folder, a registered name or a timm model, got {name!r}.')
    missing = [file for file in (WEIGHTS, CONFIG) if not (folder / file).is_file()]
    pickles = [name for name, file in _files(folder).items() if file.suffix in PICKLES]
    if missing or pickles:
        raise ValueError(f'model: a folder to push has {WEIGHTS} and {CONFIG} and no pickles; {str(folder)!r} lacks '
                         f'{missing} and has {listed(pickles)}. For a run of train.py, name its checkpoint.')
    return folder, Run(None)


def _write(
        run: Run,
        folder: Path,
        at: str,
        images: list[Path] | None,
        license: str | None,
        half: bool,
        with_card: bool,
) -> tuple[Tensor, Tensor, list[str]]:
    """Write the repository's files to a folder; returns an input, the network's logits for it, and advice."""
    if not getattr(run.model, 'pretrained_cfg', None):
        raise TypeError(f'model must be a timm model, with a pretrained_cfg, got {type(run.model).__name__}.')
    model: Any = copy.deepcopy(run.model).cpu().float().to(memory_format=torch.contiguous_format).eval()
    if not getattr(model, 'cfg_is_of_weights', True):
        model.pretrained_cfg.update(dict.fromkeys(inherited(model.pretrained_cfg)))
    model.pretrained_cfg.update(dict(label_names=names) if (names := run.class_names()) else {})
    model.pretrained_cfg.update(dict(license=license) if license else {})
    save_network(rounded(model) if half else model, folder, half)
    x, logits = _answer(model)
    _try(f'local-dir:{folder}', x, logits)
    advice: list[str] = []
    if with_card:
        advice = _draw(model, run.images(SHOWN) if images is None else images, images is None, folder / PICTURE)
        text = write_card(model, at, run, license, PICTURE if (folder / PICTURE).is_file() else None, half)
        (folder / CARD).write_text(text, encoding='utf-8')
    return x, logits, advice


def _draw(model: Any, paths: list[Path], optional: bool, target: Path) -> list[str]:
    """Draw where a network with transformers looks; returns lines on the images, and advice.

    ``optional``: SHOWN of the images that can be read are enough, and there need be no picture.
    """
    if not paths or not hasattr(model, 'spatial_transformers') or not model.num_classes:
        return []
    lines: list[str] = []
    with witnessing() as witness:
        try:
            name = model.pretrained_cfg['architecture']
            picture, lines = sheet_of(model, paths, name, SHOWN if optional else None)
            save_picture(picture, target)
        except (ValueError, OSError) as error:  # no image that can be read, or a network that takes no images
            if not optional:
                raise ValueError(f'images: {error}') from error
    return lines + witness.advice()


def _answer(model: Any, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if x is None:
        x = torch.rand(2, *size_that_enters(model), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        logits = model(x)
    if not logits.isfinite().all():
        raise ValueError('model: its logits are not finite numbers; such weights are not pushed.')
    return x, logits


def _try(source: str, x: Tensor | None = None, logits: Tensor | None = None, cache: Path | None = None) -> Any:
    """Load a network from a folder or a revision, and compare its logits; returns input and logits."""
    with torch.random.fork_rng(devices=[]):
        try:
            model = timm.create_model(source, pretrained=True, cache_dir=cache).eval()
        except (RuntimeError, TypeError) as error:
            raise ValueError(f'model: its {CONFIG} does not build it again: {short(error)}') from error
    found = _answer(model, x)
    if logits is not None and not torch.equal(found[1], logits):
        what = 'its config does not record all arguments and changes' if cache is None else 'do not use that revision'
        raise PushError(f'{source} gives other logits than the model to be pushed: {what}.')
    return found


def _checked_card(path: Path | None) -> str:
    text = path.read_text(encoding='utf-8') if path else ''
    try:
        ModelCard(text)
    except Exception as error:  # an error of the YAML parser, or a ValueError
        raise ValueError(f'card: the metadata at the top of {path} cannot be read: {error}') from error
    return text


# the Hub


def _commit(
        api: HfApi,
        repo: str,
        revision: str | None,
        files: dict[str, Path],
        private: bool,
        replace_card: bool,
        message: str,
) -> Pushed:
    """Commit all new or changed files on top of the revision that was compared with; refused if it has moved."""
    repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
    branch = revision or 'main'
    if revision:
        refs = api.list_repo_refs(repo)
        if revision in [tag.name for tag in refs.tags]:
            raise PushError(f'revision {revision!r} of {repo} is a tag, which does not move: name a branch.')
        if revision not in [b.name for b in refs.branches]:
            api.create_branch(repo, branch=revision, exist_ok=True)
    head = api.model_info(repo, revision=branch, files_metadata=True, timeout=silence.SILENCE)
    if private and head.private is False:
        raise PushError(f'private: {repo} is there already and public; nothing was sent. Make it private at '
                        f'{api.endpoint}/{repo}/settings, or omit private.')
    there = {s.rfilename: s.lfs['sha256'] if s.lfs else s.blob_id for s in head.siblings or []}
    for name in [name for name in files if name in there and there[name] is None]:  # a server that does not list them
        url = hf_hub_url(repo, name, revision=head.sha, endpoint=api.endpoint)
        there[name] = get_hf_file_metadata(url, token=api.token).etag
    same = [name for name, path in files.items() if there.get(name) in _hashes(path)]
    kept_card = CARD in there and CARD in files and CARD not in same and not replace_card
    sent = [name for name in files if name not in same and not (kept_card and name == CARD)]
    commit = head.sha
    if sent:
        commit = api.create_commit(
            repo, [CommitOperationAdd(name, str(files[name])) for name in sent], commit_message=message,
            revision=branch, parent_commit=head.sha).oid
    if commit == head.sha:  # also where the client has found that all of it is there
        same, sent = same + sent, []
    return Pushed(repo, _url(api, repo, revision), commit, sent, same, kept_card, '')


def _hashes(path: Path) -> tuple[str, str]:
    """The two hashes by which the Hub names contents: git's hash (small files) and sha256 (large files)."""
    git, large = hashlib.sha1(b'blob %d\0' % path.stat().st_size), hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            git.update(chunk)
            large.update(chunk)
    return git.hexdigest(), large.hexdigest()


def _url(api: HfApi, repo: str, revision: str | None) -> str:
    return f'{api.endpoint}/{repo}' + (f'/tree/{revision}' if revision and revision != 'main' else '')


def _download(pushed: Pushed, files: dict[str, Path], token: str | None, cache: Path) -> str:
    """Download the pushed files into a fresh cache and compare them byte for byte; returns the commit."""
    try:
        for name in [*pushed.sent, *pushed.same]:
            path = hf_hub_download(pushed.repo, name, revision=pushed.commit, token=token, cache_dir=cache)
            if not filecmp.cmp(path, files[name], shallow=False):
                raise PushError(f'{name} at {pushed.url}, commit {pushed.commit}, is not what was sent: push it again.')
    except (HfHubHTTPError, OSError) as error:
        raise PushError(f'{pushed.repo} has it all in commit {pushed.commit}, but it could not be downloaded for '
                        f'comparison: {hint(error, pushed.repo)}') from error
    return str(pushed.commit)
