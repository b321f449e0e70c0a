"""Two processes on the CPU (gloo): equal parameters in both, and the gradients of one process on the joined batch."""
from datetime import timedelta

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from timm_stn import SpatialTransformer
from timm_stn.modules.standardize import Standardize

pytestmark = [
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason='this torch has no gloo'),
]
WORLD, BATCH, STEPS = 2, 4, 3
KNOBS = dict(stn_freeze_steps=1)
VIT = dict(img_size=64)
CASES = {
    'input': ('test_resnet', dict()),
    'knobs': ('test_resnet', dict(stn_stages=('input', 1), **KNOBS)),
    'shared glimpses': ('test_resnet', dict(stn_glimpses=2, stn_scale=0.5, stn_bound=False, **KNOBS)),
    'separate towers': (
        'test_efficientnet_gn', dict(stn_stages=('input', 2), stn_glimpses=2, stn_scale=0.5, stn_towers='separate')),
    'iterations': ('test_resnet', dict(stn_stages=('input', 2), stn_iterations=2, stn_localization='fc', **KNOBS)),
    'theta from features': ('test_resnet', dict(stn_stages=(2,), stn_target='input', **KNOBS)),
    'vit': ('test_vit', dict(stn_stages=('input', 0), **VIT, **KNOBS)),
    'checkpointing': ('test_efficientnet_gn', dict(stn_stages=('input', 1, 3), **KNOBS)),
    'penalty': ('test_resnet', dict(stn_stages=('input', 1), stn_freeze_steps=1, stn_penalty=2.0)),
    'vit, checkpointing': ('test_vit', dict(stn_stages=('input', 0), stn_glimpses=2, stn_scale=0.5, **VIT, **KNOBS)),
}
FAST = ('knobs', 'shared glimpses', 'checkpointing')


def launch(worker, folder, *args):
    """What ``worker(rank, *args)`` returns in each of the processes."""
    mp.spawn(enter, (worker, str(folder), args), WORLD)
    return [torch.load(folder / f'{rank}.pt') for rank in range(WORLD)]


def enter(rank, worker, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    try:
        torch.save(worker(rank, *args), f'{folder}/{rank}.pt')
    finally:
        dist.destroy_process_group()


def create(case, batch_norm=False):
    """A network with transformers off the identity; statistics, of one part of a batch each, are held by default."""
    name, kwargs = CASES[case]
    torch.manual_seed(0)
    model = timm.create_model('stn_' + name, num_classes=10, **kwargs).train()
    model.set_grad_checkpointing('checkpointing' in case)
    generator = torch.Generator().manual_seed(2)
    for n, p in model.named_parameters():
        if 'regression' in n:
            p.data = 0.03 * torch.randn(p.shape, generator=generator)  # times lr_scale
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm | Standardize) and not batch_norm:
            m.eval()
    return model.double()


def batches(rank=None):
    """(images, labels) of each step: of one rank, or of all."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images, labels = torch.rand(BATCH, 3, 64, 64, generator=generator).double(), torch.arange(BATCH)
        part = slice(None) if rank is None else slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
        yield images[part], labels[part]


def train(net, model, data):
    """Steps of SGD; the gradients of each, and the state at the end."""
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.02, momentum=0.9, weight_decay=0.01)
    grads = []
    for images, labels in data:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
    return grads, {n: t.clone() for n, t in model.state_dict().items()}


def ddp(rank, cases, batch_norm=False):
    found = {}
    for case in cases:
        model = create(case, batch_norm)
        if rank:
            for p in model.parameters():
                p.data.add_(1.0)  # DDP starts all from the first process
        net = DistributedDataParallel(model, find_unused_parameters=False)
        found[case] = train(net, model, batches(rank))
    return found


def assert_close(found, expected):
    for name, value in expected.items():
        size = max(1, value.abs().max())
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-9 * size, msg=lambda m, name=name: f'{name}: {m}')


def check_ddp(folder, cases):
    first, second = launch(ddp, folder, cases)
    for case in cases:
        for grads, others in zip(first[case][0], second[case][0]):
            assert all(torch.equal(g, others[n]) for n, g in grads.items()), case
        state, other = first[case][1], second[case][1]
        assert state.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in state.items()), case
        model = create(case)
        grads, expected = train(model, model, batches())
        for step, (found, wanted) in enumerate(zip(first[case][0], grads)):
            assert_close(found, wanted)
            for n, g in found.items():
                if 'regression' in n:
                    assert bool(g.any()) == (step > 0 or 'stn_freeze_steps' not in CASES[case][1]), (case, n, step)
        assert_close(state, expected)
        counts = {int(v) for n, v in state.items() if n.endswith('backward_passes')}
        assert counts == ({STEPS} if 'stn_freeze_steps' in CASES[case][1] else set())


def test_ddp_gives_the_gradients_of_the_joined_batch(tmp_path):
    check_ddp(tmp_path, FAST)


@pytest.mark.slow
def test_ddp_with_every_kind_of_network(tmp_path):
    check_ddp(tmp_path, [case for case in CASES if case not in (*FAST, 'penalty')])


def test_what_is_of_a_process_keeps_processes_together(tmp_path):
    """Batch norms, standardized features and the penalty's scale are of each process's part of the batch."""
    cases = ['knobs', 'penalty']
    first, second = launch(ddp, tmp_path, cases, True)
    for case in cases:
        names = {n for n, _ in create(case).named_parameters()}
        assert all(torch.equal(first[case][1][n], second[case][1][n]) for n in names)
        assert {int(v) for n, v in second[case][1].items() if n.endswith('backward_passes')} == {STEPS}


def resume(rank, folder):
    """A step, a checkpoint by the first process, the other steps in new objects."""
    first, *rest = batches(rank)
    model = create('knobs')
    _, state = train(DistributedDataParallel(model), model, [first])
    if rank == 0:
        torch.save(state, f'{folder}/last.pth')
    dist.barrier()
    model = create('knobs')
    model.load_state_dict(torch.load(f'{folder}/last.pth'))
    return train(DistributedDataParallel(model), model, rest)


@pytest.mark.slow
def test_ddp_goes_on_from_a_checkpoint(tmp_path):
    (grads, state), (_, other) = launch(resume, tmp_path, str(tmp_path))
    assert all(torch.equal(t, other[n]) for n, t in state.items())
    assert {int(v) for n, v in state.items() if n.endswith('backward_passes')} == {STEPS}
    assert all(g['stn.localization.regression.bias'].any() for g in grads), 'its one frozen step was before'


def zero(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer
    model = create('input')
    net = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=1.0, momentum=0.9)
    for images, labels in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return {n: t.clone() for n, t in model.state_dict().items()}


def test_bounded_steps_of_an_optimizer_whose_state_is_sharded(tmp_path):
    """Each process steps a part of the parameters: bounded as if one had stepped all."""
    state, other = launch(zero, tmp_path)
    assert all(torch.equal(t, other[n]) for n, t in state.items())
    model = create('input')
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    for images, labels in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert_close(state, model.state_dict())


def test_conversion_to_synchronised_batch_norm():
    model = create('knobs').eval()
    images, _ = next(batches())
    expected = model(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.modules())
    assert sum(isinstance(m, SpatialTransformer) for m in converted.modules()) == 2
    torch.testing.assert_close(converted(images), expected, rtol=0, atol=0)


def sync_batch_norm(rank):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(create('knobs', batch_norm=True))
    try:
        return train(DistributedDataParallel(model), model, batches(rank))
    except ValueError as error:
        return str(error)


@pytest.mark.slow
def test_synchronised_batch_norm_gives_the_gradients_of_the_joined_batch(tmp_path):
    found, other = launch(sync_batch_norm, tmp_path)
    if isinstance(found, str):
        pytest.skip(f'not on a CPU: {found}')
    assert all(torch.equal(t, other[1][n]) for n, t in found[1].items())
    model = create('knobs', batch_norm=True)
    for grads, expected in zip(found[0], train(model, model, batches())[0]):
        assert_close(grads, expected)


def fsdp(rank):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh('cpu', (WORLD,))
    model = create('vit')
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, 'look')
    shards = {n: p.to_local().numel() for n, p in model.named_parameters()}
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.02, momentum=0.9, weight_decay=0.01)
    grads = []
    for images, labels in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        grads.append({n: p.grad.full_tensor() for n, p in model.named_parameters()})
        optimizer.step()
    whole = StateDictOptions(full_state_dict=True, cpu_offload=False)
    state = get_model_state_dict(model, options=whole)
    model.eval()
    images, _ = next(batches(rank))
    with torch.no_grad():
        logits, (_, theta) = model(images), model.look(images)
        model.reshard()  # the outermost parameters stay together until a backward pass
        for p in model.parameters():
            p.zero_()
        set_model_state_dict(model, dict(state), options=whole)  # which puts shards into the dict
        again = model(images)
    return shards, grads, state, logits, again, theta


@pytest.mark.slow
def test_fully_sharded(tmp_path):
    """FSDP2: blocks, with the transformers at stages in them, and the network around."""
    fsdp_module = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp_module, 'fully_shard'):
        pytest.skip(f'torch {torch.__version__} has no fully_shard')
    try:
        (shards, grads, state, logits, again, theta), other = launch(fsdp, tmp_path)
    except mp.ProcessRaisedException as error:
        if "'Stream' object has no attribute 'record_event'" not in str(error):
            raise
        pytest.skip(f'torch {torch.__version__} has no FSDP2 on a CPU: its stream has no record_event')
    model = create('vit')
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert all(shards[n] + other[0][n] == size for n, size in sizes.items())
    assert sum(shards.values()) < 0.7 * sum(sizes.values())
    expected_grads, expected = train(model, model, batches())
    for found, wanted in zip(grads, expected_grads):
        assert_close(found, wanted)
    assert state.keys() == expected.keys()
    assert_close(state, expected)
    assert {int(v) for n, v in state.items() if n.endswith('backward_passes')} == {STEPS}
    assert torch.equal(logits, again)
    plain = create('vit').eval()
    plain.load_state_dict(state)
    images, _ = next(batches(0))
    torch.testing.assert_close(plain(images), logits)
    torch.testing.assert_close(plain.look(images)[1], theta)
