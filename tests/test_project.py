"""What the files around the package say: dependencies, workflows, issue forms, citation, and where links lead.

Files are read; nothing of the package is imported.
"""
import ast
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
REPOSITORY = PROJECT['urls']['Homepage']
DEPENDENCIES = {'timm', 'torch', 'huggingface-hub', 'safetensors'}
PACKAGE_OF = {'PIL': 'pillow', 'yaml': 'pyyaml'}  # modules whose package has another name
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
FORMS = sorted(f for f in (ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*.yml') if f.name != 'config.yml')
TEXTS = sorted(f for pattern in (
    '*.md', 'docs/**/*.md', 'model_cards/*/README.md', '.github/*.md', '.github/ISSUE_TEMPLATE/*.yml')
    for f in ROOT.glob(pattern))


def relative(path):
    return str(path.relative_to(ROOT))


def normal(requirement):
    """The name of a package in a requirement."""
    return re.match(r'[\w.-]+', requirement)[0].lower().replace('_', '-')


# dependencies

def imported(path):
    """Packages of third parties that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.partition('.')[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition('.')[0])
    return {PACKAGE_OF.get(n, normal(n)) for n in found - set(sys.stdlib_module_names) - {'timm_stn'}}


def extras():
    """What the extras for users hold; those of `test` are for nobody else."""
    return {normal(r) for name, rs in PROJECT['optional-dependencies'].items() if name != 'test' for r in rs}


def test_dependencies_are_these_four():
    assert {normal(r) for r in PROJECT['dependencies']} == DEPENDENCIES


@pytest.mark.parametrize('path', sorted((ROOT / 'timm_stn').rglob('*.py')), ids=relative)
def test_imports_are_declared(path):
    undeclared = imported(path) - DEPENDENCIES - extras()
    assert not undeclared, f'neither in dependencies nor in an extra of pyproject.toml: {undeclared}'


def test_what_is_imported_but_only_an_extra_comes_with_timm():
    """Else `import timm_stn.view` would fail after a plain `pip install timm-stn`."""
    there, pending = set(), ['timm', 'huggingface-hub']
    for name in pending:  # grows
        for requirement in metadata.requires(name) or ():
            if 'extra ==' not in requirement and normal(requirement) not in there:
                there.add(normal(requirement))
                pending += [normal(requirement)] if normal(requirement) == 'torchvision' else []
    every = set().union(*map(imported, (ROOT / 'timm_stn').rglob('*.py')))
    late = {'h5py'}  # only where SVHN's files are read, with a message that names the extra
    late.add('triton')  # only on a GPU, where it is there
    late.add('gradio')  # only where a page is made, and the command names the extra
    assert every - DEPENDENCIES - late <= there


def test_it_is_typed():
    assert (ROOT / 'timm_stn' / 'py.typed').is_file() and 'Typing :: Typed' in PROJECT['classifiers']


# what commands leave in a checkout

MADE = ('demo.png', 'look.png', 'runs/birds/last.pth.tar', 'output/train/1/args.yaml', 'pytorch-image-models/train.py',
        'sweep.jsonl', 'sweep.sizes.json', 'docs/architectures.jsonl', '.gpu/out/run.json', '.venv-dist/bin/python',
        'dist/timm_stn.whl', 'build/timm-tests/a.py', 'data/mnist/t10k-labels-idx1-ubyte.gz')


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='no checkout')
def test_git_ignores_what_the_commands_of_makefile_and_texts_leave():
    done = subprocess.run(['git', 'check-ignore', *MADE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == list(MADE)


# workflows, which run the Makefile

def makefile():
    """(targets, variables) of the Makefile, with the names of folders in targets filled in."""
    text = (ROOT / 'Makefile').read_text()
    values = dict(re.findall(r'^(\w+) \??:?= ?(.*)$', text, re.MULTILINE))
    targets = {t for line in re.findall(r'^([^\s#:=][^:=\n]*):(?!=)', text, re.MULTILINE) for t in line.split()}
    filled = {re.sub(r'\$\((\w+)\)', lambda m: values.get(m[1], m[0]), t) for t in targets}
    return filled - {'.PHONY'}, set(values) | set(re.findall(r'\$\((?:if \$\()?([A-Z_]+)\)', text))


def commands(workflow):
    """Words of each command of a workflow, for each row of its matrix."""
    for job in workflow['jobs'].values():
        for row in job.get('strategy', {}).get('matrix', {}).get('include', [{}]):
            for step in job['steps']:
                run = re.sub(r'\$\{\{ matrix\.(\w+) \}\}', lambda m, row=row: row[m[1]], step.get('run', ''))
                yield from (shlex.split(line) for line in run.splitlines())


def load(path):
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize('path', WORKFLOWS, ids=relative)
def test_workflows_call_what_the_makefile_has(path):
    targets, variables = makefile()
    words = list(commands(load(path)))
    assert any(w[0] == 'make' for w in words)
    for command in words:
        for word in command[1:] if command[0] == 'make' else ():
            name, sets, _ = word.partition('=')
            assert name in (variables if sets else targets), f'{" ".join(command)}: the Makefile has no {name}'
        for word in command:
            assert not word.startswith(('tests/', 'scripts/')) or (ROOT / word).is_file(), f'there is no {word}'


@pytest.mark.parametrize('path', WORKFLOWS, ids=relative)
def test_workflows_are_modest(path):
    """They may read; a step is at a major version; none runs for hours, or beside a later one of the same branch."""
    workflow = load(path)
    assert workflow['permissions'] == {'contents': 'read'} and workflow['concurrency']['group']
    assert workflow[True]  # `on`, as YAML 1.1 reads it
    for job in workflow['jobs'].values():
        assert 'permissions' not in job and job['timeout-minutes'] <= 180
        for step in job['steps']:
            assert 'run' in step or re.fullmatch(r'actions/[\w-]+@v\d+', step['uses'])
            assert '${{' not in re.sub(r'\$\{\{ matrix\.\w+ \}\}', '', step.get('run', '')), 'inputs go by env'


def test_the_gpu_waits_for_somebody():
    assert list(load(ROOT / '.github' / 'workflows' / 'gpu.yml')[True]) == ['workflow_dispatch']


def test_classifiers_are_what_is_tested():
    """The oldest Python, and the newest that a classifier names, are in the matrix."""
    rows = load(ROOT / '.github' / 'workflows' / 'test.yml')['jobs']['test']['strategy']['matrix']['include']
    minor = sorted(int(c.rpartition('.')[2]) for c in PROJECT['classifiers'] if ':: Python :: 3.' in c)
    assert minor == list(range(minor[0], minor[-1] + 1)) and PROJECT['requires-python'] == f'>=3.{minor[0]}'
    assert {f'3.{minor[0]}', f'3.{minor[-1]}'} <= {row['python'] for row in rows}


# issue forms

@pytest.mark.parametrize('path', FORMS, ids=relative)
def test_issue_forms(path):
    form = load(path)
    assert form['name'] and form['description'] and set(form) <= {'name', 'description', 'labels', 'body'}
    asked = [item for item in form['body'] if item['type'] != 'markdown']
    assert asked and all(item['type'] in ('textarea', 'input', 'dropdown', 'checkboxes') for item in asked)
    assert all(item['attributes']['label'] for item in asked)
    assert len({item['id'] for item in asked}) == len({item['attributes']['label'] for item in asked}) == len(asked)


def test_forms_ask_for_what_is_needed():
    """Of a bug versions and code; of a training also what was said, and a picture."""
    required = {form.stem: {item['id'] for item in load(form)['body'] if item.get('validations', {}).get('required')}
                for form in FORMS}
    assert required['bug'] == {'doctor', 'code', 'happened', 'expected'}
    assert required['does_not_learn'] == {'said', 'arguments', 'data', 'picture', 'doctor'}
    text = (ROOT / '.github' / 'ISSUE_TEMPLATE' / 'does_not_learn.yml').read_text()
    assert 'timm-stn show' in text and f'{REPOSITORY}/blob/main/docs/training.md' in text
    contact = load(ROOT / '.github' / 'ISSUE_TEMPLATE' / 'config.yml')
    assert all(set(link) == {'name', 'url', 'about'} for link in contact['contact_links'])


# citation

def test_citation_is_of_this_version():
    citation, found = load(ROOT / 'CITATION.cff'), {}
    exec((ROOT / 'timm_stn' / 'version.py').read_text(), found)
    assert str(citation['version']) == found['__version__']
    assert citation['license'] == PROJECT['license'] and citation['repository-code'] == REPOSITORY
    assert citation['title'] == 'timm_stn' and citation['authors'] == [{'name': 'The timm_stn contributors'}]
    assert '1506.02025' in citation['references'][0]['url']


# links

def anchors(path):
    """What GitHub makes of headings."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


def links(path):
    """(file, anchor) that a text leads to in this repository."""
    text = path.read_text()
    found = re.findall(r'\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)', text)
    yield from ((path.parent / file if file else path, anchor) for file, anchor in found)
    absolute = re.findall(rf'{re.escape(REPOSITORY)}/(?:blob|tree)/main/([\w./-]*)(?:#([\w-]+))?', text)
    yield from ((ROOT / file, anchor) for file, anchor in absolute)


@pytest.mark.parametrize('path', [*TEXTS, ROOT / 'pyproject.toml'], ids=relative)
def test_links_lead_somewhere(path):
    for file, anchor in links(path):
        assert file.exists(), f'there is no {file}'
        assert not anchor or anchor in anchors(file), f'{file} has no heading {anchor}'
