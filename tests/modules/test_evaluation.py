"""Questions to a network that leave no trace."""
import torch
from torch import nn

from timm_stn.modules.evaluation import as_in_evaluation
from timm_stn.view.dependence import witnessing


def test_statistics_modes_and_gradients_are_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    net[2].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(4, 1, 5, 5)
    out = as_in_evaluation(net, x, lambda: net(x))
    assert not out.requires_grad and [m.training for m in net] == [True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    torch.testing.assert_close(out, net.eval()(x))


def test_modes_come_back_after_an_error():
    net = nn.Sequential(nn.BatchNorm2d(2)).train()
    x = torch.zeros(1, 3, 2, 2)
    try:
        as_in_evaluation(net, x, lambda: net(x))
    except RuntimeError:
        assert net.training and net[0].training
    else:
        raise AssertionError('three channels have passed a norm of two')


def test_one_within_another():
    """Nobody is told of either, and all is as it was: also what the class says of all transformers."""
    from makers import create, images
    net, x, seen = create(stn_stages=(1,)), images(), []
    stn, = net.spatial_transformers().values()
    net(x)
    theta = stn.last_theta
    stn.recorder = seen.append
    with witnessing() as witness:
        as_in_evaluation(net, x, lambda: (as_in_evaluation(net, x, lambda: net(x)), net(x)))
        assert not witness.found() and not seen
        assert stn.last_theta is theta and stn.recorder == seen.append and 'witness' not in vars(stn)


def test_nobody_witnesses_it():
    from makers import create, images
    net, x = create(stn_stages=(1,)), images()
    with witnessing() as witness:
        as_in_evaluation(net, x, lambda: net(x))
        assert not witness.found()
        net(x)
        assert len(witness.found()) == 1
