"""A Hub on the loopback interface, over HTTP, as huggingface_hub speaks to one.

Two servers: the Hub, and the storage that it sends large files to and from by signed addresses, which like the real
one refuses a request with an Authorization header. Repositories live in memory, as commits of trees of blobs. What the
protocol does not allow is refused, and a request for something that is not here is kept in ``Hub.unknown``.
"""
import base64
import hashlib
import json
import re
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LICENSES = {'apache-2.0', 'mit', 'bsd-3-clause', 'cc-by-4.0', 'cc-by-nc-4.0', 'other', 'unknown'}
LARGE = ('.safetensors', '.bin', '.png', '.pth.tar')  # as .gitattributes says; whatever is binary and large, too
PART = 500_000  # bytes of a part of an upload
REPO = r'(?P<repo>[\w.-]+/[\w.-]+)'
ROUTES: list[tuple[str, re.Pattern, str]] = []


class Blob(NamedTuple):
    content: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        content = self.content
        if self.lfs:
            facts = f'oid sha256:{self.sha256}', f'size {len(content)}', ''
            content = '\n'.join(('version https://git-lfs.github.com/spec/v1', *facts)).encode()
        return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


class Commit(NamedTuple):
    parent: str | None
    message: str
    tree: dict[str, Blob]


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    accepted: set[str] = field(default_factory=set)  # users who have accepted the conditions of a gated repository
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, tree: dict[str, Blob]) -> str:
        parent = self.branches.get(branch)
        facts = [parent, message, sorted((path, blob.git_oid) for path, blob in tree.items()), len(self.commits)]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[sha] = Commit(parent, message, tree)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        refs = {**self.tags, **self.branches}
        return refs.get(revision, revision if revision in self.commits else None)


@dataclass
class User:
    name: str
    writes: tuple[str, ...] = ()  # namespaces, with a token that may write


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests that match."""
    method: str
    pattern: str
    times: int
    status: int | None = None  # answer with this
    text: str = 'Internal Error - We are working hard to fix this as soon as possible!'  # and that
    cut: int | None = None  # close the connection after so many bytes: of the body that comes in, or else goes out
    lost: bool = False  # do what is asked, and close the connection instead of answering
    silent: bool = False  # keep the connection, and never answer
    before: Callable[[], Any] | None = None  # call this, then go on


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        self.status, self.message, self.code, self.headers = status, message, code, headers


class Hub:
    """``with Hub() as hub``: ``hub.url`` is the endpoint."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []  # that were asked for
        self.unknown: list[str] = []
        self.lists_hashes = True  # of files, where it lists a revision
        self.closed = threading.Event()
        self.key = secrets.token_hex(8)  # signs addresses of the storage
        self.lock = threading.RLock()

    def __enter__(self) -> 'Hub':
        self.servers = [_server(self, storage) for storage in (False, True)]
        self.url, self.storage = (f'http://127.0.0.1:{s.server_address[1]}' for s in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closed.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def create(self, name: str, files: dict[str, bytes] | None = None, **settings: Any) -> Repo:
        repo = self.repos[name] = Repo(name, **settings)
        tree = {'.gitattributes': Blob(b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n', False)}
        tree.update({path: Blob(content, path.endswith(LARGE)) for path, content in (files or {}).items()})
        repo.commit('main', 'initial commit', tree)
        return repo

    def files(self, name: str, revision: str = 'main') -> dict[str, bytes]:
        """Contents of a revision, but for what the Hub itself puts there."""
        repo = self.repos[name]
        tree = repo.commits[repo.resolve(revision) or ''].tree
        return {path: blob.content for path, blob in tree.items() if path != '.gitattributes'}

    def fail(self, method: str, pattern: str, times: int = 1, **how: Any) -> Fault:
        fault = Fault(method, pattern, times, **how)
        self.faults.append(fault)
        return fault

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None


def route(method: str, pattern: str) -> Callable:
    def register(run: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), run.__name__))
        return run
    return register


def _server(hub: Hub, storage: bool) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (Handler,), dict(hub=hub, is_storage=storage)))
    server.daemon_threads = True
    return server


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    is_storage: bool
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.query = {k: v[0] for k, v in parse_qs(address.query).items()}
        self.sent_body = b''
        self.hub.requests.append((self.command, self.path))
        self.flaw = self.hub.fault(self.command, self.path)
        try:
            self._dispatch(address.path)
        except Refusal as refusal:
            self._refuse(refusal)
        except OSError:  # the client has left
            self.close_connection = True
        except Exception as error:  # a request that is not as expected, or a mistake in here
            self.hub.unknown.append(f'{self.command} {self.path}: {error!r}')
            self._refuse(Refusal(400, repr(error)))

    do_HEAD = do_POST = do_PUT = do_GET

    def _dispatch(self, path: str) -> None:
        flaw = self.flaw
        if flaw and flaw.before:
            flaw.before()
        if flaw and flaw.silent:
            self.hub.closed.wait()
            return self._hang_up()
        if flaw and flaw.status:
            self.body()
            raise Refusal(flaw.status, flaw.text)
        if flaw and flaw.cut is not None and self.command in ('POST', 'PUT'):
            self.rfile.read(min(flaw.cut, int(self.headers.get('Content-Length') or flaw.cut)))
            return self._hang_up()
        self.sent_body = self.body()
        for method, pattern, run in ROUTES:
            match = pattern.fullmatch(path)
            if match and method == self.command.replace('HEAD', 'GET') and self.is_storage == run.startswith('storage'):
                return getattr(self, run)(**{k: unquote(v) for k, v in match.groupdict().items() if v})
        self.hub.unknown.append(f'{self.command} {self.path}')
        raise Refusal(404, 'Sorry, there is no such endpoint here.')

    def body(self) -> bytes:
        if self.headers.get('Transfer-Encoding', '').lower() == 'chunked':
            if self.is_storage:
                raise Refusal(411, 'MissingContentLength')
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b''.join(chunks)
        length = int(self.headers.get('Content-Length') or 0)
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionError('the client has left')
        return data

    def json(self) -> dict[str, Any]:
        if not self.headers.get('Content-Type', '').startswith(('application/json', 'application/vnd.git-lfs+json')):
            raise Refusal(415, 'Content-Type must be application/json')
        return json.loads(self.sent_body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, data: Any, status: int = 200, content: bytes | None = None, **headers: Any) -> None:
        content = json.dumps(data).encode() if content is None else content
        flaw = self.flaw
        if flaw and flaw.lost:
            return self._hang_up()
        self.send_response(status)
        headers.setdefault('Content_Type', 'application/json; charset=utf-8')
        headers.update(Content_Length=len(content), X_Request_Id=f'Root={secrets.token_hex(6)}')
        for key, value in headers.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        if self.command == 'HEAD':
            return
        if flaw and flaw.cut is not None:
            self.wfile.write(content[:flaw.cut])
            return self._hang_up()
        self.wfile.write(content)

    def _refuse(self, refusal: Refusal) -> None:
        headers = {**refusal.headers, 'X_Error_Message': refusal.message[:1000]}
        if refusal.code:
            headers['X_Error_Code'] = refusal.code
        self.answer({'error': refusal.message}, refusal.status, **headers)

    # who may do what

    def user(self) -> User | None:
        """Whose token comes with the request; None: nobody's."""
        given = self.headers.get('Authorization')
        if given is None:
            return None
        kind, _, token = given.partition(' ')
        if kind != 'Bearer' or token not in self.hub.users:
            raise Refusal(401, 'Invalid credentials in Authorization header')
        return self.hub.users[token]

    def repo(self, name: str, content: bool = False, write: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get(name)
        namespace = name.partition('/')[0]
        ours = user is not None and namespace in (user.name, *user.writes)
        if repo is None or (repo.private and not ours):
            status = 404 if user else 401  # as the real one: an anonymous question does not tell what exists
            raise Refusal(status, 'Repository not found' if user else 'Invalid username or password.', 'RepoNotFound')
        if content and repo.gated and not ours and (user is None or user.name not in repo.accepted):
            what = f'Access to model {name} is restricted and you are not in the authorized list. Visit '
            what += f'{self.hub.url}/{name} to ask for access.'
            raise Refusal(403 if user else 401, what, 'GatedRepo')
        if write and (user is None or namespace not in user.writes):
            raise Refusal(403 if user else 401, 'Forbidden: you must use a write token to upload to a repository.')
        return repo

    def revision(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return sha

    # the Hub

    @route('GET', '/api/whoami-v2')
    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, 'Invalid username or password.')
        self.answer({'type': 'user', 'name': user.name, 'orgs': [{'name': n} for n in user.writes]})

    @route('POST', '/api/repos/create')
    def create(self) -> None:
        wanted, user = self.json(), self.user()
        if user is None:
            raise Refusal(401, 'Invalid username or password.')
        fields = {'name', 'organization', 'visibility', 'private', 'type'}
        if set(wanted) - fields or wanted.get('type', 'model') != 'model':
            raise Refusal(400, f'unknown fields: {sorted(wanted)}')
        namespace = wanted['organization'] or user.name
        name = f"{namespace}/{wanted['name']}"
        if namespace not in user.writes:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        url = f'{self.hub.url}/{name}'
        with self.hub.lock:
            if name in self.hub.repos:
                return self.answer({'error': 'You already created this model repo', 'url': url}, 409)
            self.hub.create(name, private=wanted.get('visibility') == 'private' or wanted.get('private') is True)
        self.answer({'url': url, 'name': name, 'id': secrets.token_hex(12)})

    @route('POST', '/api/validate-yaml')
    def validate_yaml(self) -> None:
        content = self.json()['content']
        match = re.match(r'---\r?\n(.*?)\r?\n---', content, re.DOTALL)
        if not match:
            return self.answer({'errors': [], 'warnings': [{'message': 'empty or missing yaml metadata in repo card'}]})
        errors = card_errors(match.group(1))
        self.answer({'errors': [{'message': e} for e in errors], 'warnings': []}, 400 if errors else 200)

    @route('GET', f'/api/models/{REPO}(/revision/(?P<revision>[^/]+))?')
    def model_info(self, repo: str, revision: str = 'main') -> None:
        found = self.repo(repo)
        sha = self.revision(found, revision)
        siblings = [self._sibling(path, blob) for path, blob in found.commits[sha].tree.items()]
        self.answer({
            '_id': '0' * 24, 'id': found.name, 'modelId': found.name, 'sha': sha, 'private': found.private,
            'gated': 'auto' if found.gated else False, 'disabled': False, 'tags': [], 'siblings': siblings})

    def _sibling(self, path: str, blob: Blob) -> dict[str, Any]:
        facts: dict[str, Any] = {'rfilename': path}
        if self.hub.lists_hashes and self.query.get('blobs', '').lower() in ('true', '1'):
            facts.update(blobId=blob.git_oid, size=len(blob.content))
            if blob.lfs:
                facts['lfs'] = {'sha256': blob.sha256, 'size': len(blob.content), 'pointerSize': 134}
        return facts

    @route('GET', f'/api/models/{REPO}/refs')
    def refs(self, repo: str) -> None:
        found = self.repo(repo)
        kinds = {'branches': ('heads', found.branches), 'tags': ('tags', found.tags)}
        self.answer({'converts': [], **{
            kind: [{'name': n, 'ref': f'refs/{folder}/{n}', 'targetCommit': sha} for n, sha in refs.items()]
            for kind, (folder, refs) in kinds.items()}})

    @route('POST', f'/api/models/{REPO}/branch/(?P<branch>[^/]+)')
    def branch(self, repo: str, branch: str) -> None:
        found = self.repo(repo, write=True)
        if not re.fullmatch(r'[\w.-]+(/[\w.-]+)*', branch) or branch.startswith('refs/'):
            raise Refusal(400, f'Invalid branch name: {branch}')
        start = self.revision(found, self.json().get('startingPoint', 'main'))
        with self.hub.lock:
            if branch in found.branches:
                raise Refusal(409, 'Reference already exists')
            found.branches[branch] = start
        self.answer({})

    @route('POST', f'/api/models/{REPO}/preupload/(?P<revision>[^/]+)')
    def preupload(self, repo: str, revision: str) -> None:
        found = self.repo(repo, write=True)
        tree = found.commits[self.revision(found, revision)].tree
        files = []
        for file in self.json()['files']:
            path, size, sample = file['path'], file['size'], base64.b64decode(file['sample'], validate=True)
            if len(sample) != min(512, size):
                raise Refusal(400, f'sample of {path} must be its first 512 bytes')
            mode = 'lfs' if path.endswith(LARGE) or size > 10_000_000 else 'regular'
            old = tree.get(path)
            files.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, 'oid': old.etag if old else None})
        self.answer({'files': files, 'commitOid': self.revision(found, revision)})

    @route('POST', f'/{REPO}[.]git/info/lfs/objects/batch')
    def lfs_batch(self, repo: str) -> None:
        self.repo(repo, write=True)
        asked = self.json()
        if self.headers.get('Accept') != 'application/vnd.git-lfs+json' or asked['operation'] != 'upload':
            raise Refusal(422, 'not the LFS batch protocol')
        if asked['hash_algo'] != 'sha256' or not {'basic', 'multipart'} <= set(asked['transfers']):
            raise Refusal(409, 'no transfer that both sides know')
        parts = any(o['size'] > PART for o in asked['objects'])
        objects = [self._upload(repo, **o) for o in asked['objects']]
        kind = 'application/vnd.git-lfs+json'
        self.answer({'transfer': 'multipart' if parts else 'basic', 'objects': objects}, Content_Type=kind)

    def _upload(self, repo: str, oid: str, size: int) -> dict[str, Any]:
        facts: dict[str, Any] = {'oid': oid, 'size': size, 'authenticated': True}
        if oid in self.hub.objects:
            return facts  # without actions: it is here already
        upload: dict[str, Any] = {'href': self._signed(f'upload/{oid}')}
        if size > PART:
            urls = {str(i + 1): self._signed(f'upload/{oid}/{i + 1}') for i in range(-(-size // PART))}
            upload = {'href': f'{self.hub.url}/api/complete_multipart', 'header': {'chunk_size': str(PART), **urls}}
        facts['actions'] = {'upload': upload, 'verify': {'href': f'{self.hub.url}/{repo}.git/info/lfs/objects/verify'}}
        return facts

    def _signed(self, path: str) -> str:
        return f'{self.hub.storage}/{path}?X-Amz-Signature={self.hub.key}'

    @route('POST', '/api/complete_multipart')
    def complete(self) -> None:
        sent = self.json()
        numbers = [p['partNumber'] for p in sent['parts']]
        parts = [self.hub.parts.get((sent['oid'], n)) for n in numbers]
        if numbers != list(range(1, len(numbers) + 1)) or None in parts:
            raise Refusal(400, 'InvalidPart')
        if any(p['etag'] != _md5(part) for p, part in zip(sent['parts'], parts)):
            raise Refusal(400, 'InvalidPart: etag')
        self._keep(sent['oid'], b''.join(parts))
        self.answer({'success': True})

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, 'XAmzContentSHA256Mismatch')
        self.hub.objects[oid] = content

    @route('POST', f'/{REPO}[.]git/info/lfs/objects/verify')
    def lfs_verify(self, repo: str) -> None:
        self.repo(repo, write=True)
        sent = self.json()
        if len(self.hub.objects.get(sent['oid'], b'')) != sent['size']:
            raise Refusal(404, 'Object does not exist on the server')
        self.answer({})

    @route('POST', f'/api/models/{REPO}/commit/(?P<revision>[^/]+)')
    def commit(self, repo: str, revision: str) -> None:
        found = self.repo(repo, write=True)
        if self.headers.get('Content-Type') != 'application/x-ndjson':
            raise Refusal(415, 'Content-Type must be application/x-ndjson')
        lines = [json.loads(line) for line in self.sent_body.splitlines()]
        header = lines[0]['value'] if lines and lines[0]['key'] == 'header' else {}
        if not header.get('summary') or len(lines) < 2:
            raise Refusal(400, 'a commit needs a header with a summary, and something to do')
        with self.hub.lock:
            if revision not in found.branches:
                raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
            if header.get('parentCommit', found.branches[revision]) != found.branches[revision]:
                raise Refusal(412, 'A commit has happened since. Please refresh and try again.')
            tree = dict(found.commits[found.branches[revision]].tree)
            for line in lines[1:]:
                self._apply(tree, line['key'], line['value'])
            sha = found.commit(revision, header['summary'], tree)
        self.answer({
            'success': True, 'commitOid': sha, 'commitUrl': f'{self.hub.url}/{repo}/commit/{sha}', 'hookOutput': ''})

    def _apply(self, tree: dict[str, Blob], kind: str, value: dict[str, Any]) -> None:
        path = value['path']
        if path.startswith('/') or '..' in path.split('/'):
            raise Refusal(400, f'Invalid path: {path}')
        if kind == 'file' and value['encoding'] == 'base64' and not path.endswith(LARGE):
            tree[path] = Blob(base64.b64decode(value['content'], validate=True), False)
        elif kind == 'lfsFile' and value['algo'] == 'sha256':
            content = self.hub.objects.get(value['oid'])
            if content is None or len(content) != value['size']:
                raise Refusal(400, f'LFS pointer of {path} points to a file that does not exist')
            tree[path] = Blob(content, True)
        elif kind == 'deletedFile' and path in tree:
            del tree[path]
        else:
            raise Refusal(400, f'cannot do {kind} of {path}')

    @route('GET', f'/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)')
    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.repo(repo, content=True)
        sha = self.revision(found, revision)
        blob = found.commits[sha].tree.get(path)
        if blob is None:
            raise Refusal(404, 'Entry not found', 'EntryNotFound', X_Repo_Commit=sha)
        headers = dict(X_Repo_Commit=sha, Accept_Ranges='bytes')
        if blob.lfs:
            self.hub.objects[blob.sha256] = blob.content
            return self.answer(
                {}, 302, b'', Location=self._signed(f'objects/{blob.sha256}'), X_Linked_ETag=f'"{blob.etag}"',
                X_Linked_Size=len(blob.content), ETag=f'"{_md5(blob.content)}"', **headers)
        self._send(blob.content, ETag=f'"{blob.etag}"', **headers)

    def _send(self, content: bytes, **headers: Any) -> None:
        """The file, or the part of it that the request's Range names."""
        headers['Content_Type'] = 'application/octet-stream'
        asked = self.headers.get('Range')
        if asked is None:
            return self.answer(None, 200, content, **headers)
        self.hub.ranges.append(asked)
        match = re.fullmatch(r'bytes=(\d+)-(\d*)', asked)
        start = int(match.group(1)) if match else len(content)
        if start >= len(content):
            raise Refusal(416, 'InvalidRange', Content_Range=f'bytes */{len(content)}')
        stop = min(int(match.group(2) or len(content) - 1), len(content) - 1) if match else 0
        headers['Content_Range'] = f'bytes {start}-{stop}/{len(content)}'
        self.answer(None, 206, content[start:stop + 1], **headers)

    # the storage

    def _check_signature(self) -> None:
        if 'Authorization' in self.headers or self.query.get('X-Amz-Signature') != self.hub.key:
            raise Refusal(400, 'Only one auth mechanism allowed, and that is the signature')

    @route('PUT', r'/upload/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?')
    def storage_put(self, oid: str, part: str = '') -> None:
        self._check_signature()
        if part:
            self.hub.parts[oid, int(part)] = self.sent_body
        else:
            self._keep(oid, self.sent_body)
        self.answer(None, 200, b'', ETag=_md5(self.sent_body))

    @route('GET', '/objects/(?P<oid>[0-9a-f]{64})')
    def storage_get(self, oid: str) -> None:
        self._check_signature()
        content = self.hub.objects.get(oid)
        if content is None:
            raise Refusal(404, 'NoSuchKey')
        self._send(content, ETag=f'"{_md5(content)}"', Accept_Ranges='bytes')


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def card_errors(text: str) -> list[str]:
    """What the Hub would refuse in a card's metadata."""
    from huggingface_hub.repocard_data import model_index_to_eval_results  # reads HF_ENDPOINT when it is imported

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f'bad YAML: {error}']
    if not isinstance(data, dict):
        return ['metadata must be a mapping']
    errors = []
    if data.get('license', 'unknown') not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in ('tags', 'datasets'):
        if not isinstance(data.get(key, []), list) or not all(isinstance(t, str) for t in data.get(key, [])):
            errors.append(f'"{key}" must be a list of strings')
    for key in ('library_name', 'pipeline_tag'):
        if not isinstance(data.get(key, ''), str):
            errors.append(f'"{key}" must be a string')
    try:
        model_index_to_eval_results(data.get('model-index') or [{'name': '', 'results': []}])
    except (KeyError, TypeError) as error:
        errors.append(f'"model-index" lacks {error}')
    return errors
