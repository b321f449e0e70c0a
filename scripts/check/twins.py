"""Pytest plugin: every test of timm that creates a model by name runs unchanged (`plain`), then for the twin (`stn`).

In the second run, names that a test passes to timm are replaced by their twins: `create_model('resnet18')` creates
`stn_resnet18`. The test's own decisions by name, module or class (filters, sizes, exemptions) stay those of the plain
architecture, for any version of timm.
"""
import builtins
import json
import os
import signal
import sys
from functools import partial, wraps
from pathlib import Path
from types import CodeType, FunctionType

import pytest
import timm
import torch

import timm_stn  # registers the twins
from timm_stn.network import model
from timm_stn.network.features import StnFeatures

CREATES = 'create_model'
TAKE_NAMES = (CREATES, 'get_pretrained_cfg', 'get_pretrained_cfg_value')
PREFIX = 'backbone.'
LISTS = ('list_models', 'list_pretrained')
SHORT = 64  # tests over more architectures than this run over the selection


def pytest_addoption(parser):
    group = parser.getgroup('twins')
    group.addoption('--twin-models', default='', help='architectures that tests over many names run for, by comma')
    group.addoption('--twin-stages', default='', help='stn_stages of the twins, by comma')
    group.addoption('--twin-timeout', type=int, default=300, help='seconds that a test may take')
    group.addoption('--twin-results', default=os.devnull, help='file for the outcomes')


@pytest.fixture(autouse=True, params=['plain', 'stn'])
def twin(request, monkeypatch):
    """Run a test unchanged, or with model names replaced by those of their twins."""
    torch.manual_seed(0)
    if request.param == 'stn':
        stages = [s for s in request.config.getoption('--twin-stages').split(',') if s]
        use_twins(monkeypatch, request.module, dict(stn_stages=stages) if stages else {})


def use_twins(patch, module, arguments):
    """Replace names in timm and in a test module by their twins, created with `arguments`."""
    inside = []  # names that are passed on from within timm or timm_stn are what they say

    def twinned(fn):
        @wraps(fn)
        def call(model_name, *args, **kwargs):
            name = model_name if inside else twin_name(model_name)
            if name != model_name and fn.__name__ == CREATES:
                kwargs = {**arguments, **kwargs}
            inside.append(name)
            try:
                return fn(name, *args, **kwargs)
            finally:
                inside.pop()
        return call

    theirs = [m for name, m in sys.modules.items() if name.partition('.')[0] == 'timm']
    for name in TAKE_NAMES:
        original = getattr(timm.models, name)
        for place in [*theirs, module]:
            if place.__dict__.get(name) is original:
                patch.setattr(place, name, twinned(original))
    if hasattr(module, 'save_for_hf'):  # twins read only safetensors from folders: docs/loading.md
        patch.setattr(module, 'save_for_hf', partial(timm.models.save_for_hf, safe_serialization=True))
    patch.setattr(module, 'isinstance', isinstance_of_base, raising=False)
    patch.setattr(model, '__getattr__', filter_of_base, raising=False)


def twin_name(name):
    """`stn_` + name if there is such a model; else the name itself (local-dir:..., models of tests)."""
    twin = f'stn_{name}'
    return twin if timm.is_model(twin.partition('.')[0]) else name


def isinstance_of_base(thing, classes):
    net = getattr(thing, 'model', thing) if builtins.isinstance(thing, StnFeatures) else thing
    if builtins.isinstance(net, timm_stn.SpatialTransformerNetwork) and builtins.isinstance(net.backbone, classes):
        return True
    return builtins.isinstance(thing, classes)


def filter_of_base(name):
    """Expose `checkpoint_filter_fn` and the like, which tests look up in the module of a network's class."""
    def call(state_dict, net):
        filter_fn = getattr(sys.modules[type(net.backbone).__module__], name)
        part = {k[len(PREFIX):]: v for k, v in state_dict.items() if k.startswith(PREFIX)}
        own = {k: v for k, v in state_dict.items() if not k.startswith(PREFIX)}
        return {**own, **{PREFIX + k: v for k, v in filter_fn(part, net.backbone).items()}}

    if not name.startswith('checkpoint_filter_fn'):
        raise AttributeError(name)
    return call


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """During collection, timm lists only the selected models; short lists stay whole."""
    selected = set(session.config.getoption('--twin-models').split(','))
    collecting = ['']  # tests that imported the functions below keep them

    def only_selected(fn):
        @wraps(fn)
        def call(*args, **kwargs):
            names = [name for name in fn(*args, **kwargs) if not (collecting and name.startswith('stn_'))]
            short = len({name.partition('.')[0] for name in names}) <= SHORT
            return names if short or not collecting else [name for name in names if name.partition('.')[0] in selected]
        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in LISTS:
            for place in (timm, timm.models):
                patch.setattr(place, name, only_selected(getattr(place, name)))
        try:
            return (yield)
        finally:
            collecting.clear()


def pytest_collection_modifyitems(config, items):
    """Keep tests that create models by name and have no outcome in the file yet."""
    path = config.getoption('--twin-results')
    lines = Path(path).read_text().splitlines() if os.path.isfile(path) else []
    done = {tuple(json.loads(line)[:2]) for line in lines}
    keep = [
        item for item in items
        if 'twin' in getattr(item, 'fixturenames', ()) and creates_models(item) and case_of(item) not in done
    ]
    kept = set(keep)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = keep


def case_of(item):
    """The key of an outcome in the report: (test with its parameters, plain or stn)."""
    kind = item.callspec.params['twin']
    return item.nodeid.replace(f'[{kind}]', '').replace(f'[{kind}-', '['), kind


def creates_models(item):
    """Whether the code of a test, or of functions it calls in its module, mentions `create_model`."""
    seen, pending = set(), [item.function]
    while pending:
        fn = pending.pop()
        names = set(code_names(getattr(fn, '__wrapped__', fn).__code__))
        if CREATES in names:
            return True
        called = (getattr(item.module, name, None) for name in names - seen)
        pending += [c for c in called if builtins.isinstance(c, FunctionType)]
        seen |= names
    return False


def code_names(code):
    yield from code.co_names
    for const in code.co_consts:
        if builtins.isinstance(const, CodeType):
            yield from code_names(const)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    def stop(signum, frame):
        pytest.fail(f'not done after {limit} seconds')

    limit = item.config.getoption('--twin-timeout')
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        return (yield)
    finally:
        signal.alarm(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Write one JSON line per outcome, so that a crash loses nothing: [case, plain or stn, outcome, message]."""
    report = yield
    if report.when == 'call' or not report.passed:
        message = call.excinfo.exconly().splitlines()[0] if call.excinfo else ''
        with open(item.config.getoption('--twin-results'), 'a') as file:
            file.write(json.dumps([*case_of(item), report.outcome, message]) + '\n')
    return report
