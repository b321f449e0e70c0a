"""The penalty as a term of the loss: thetas that a pass records, and what they cost."""
import gc
import weakref

import pytest
import torch
from makers import NETWORKS, in_training, rand, transformers

from timm_stn import SpatialTransformer


class TestPenaltyLoss:
    @pytest.mark.parametrize('kwargs', NETWORKS)
    def test_is_that_of_every_transformer(self, kwargs):
        model, x = in_training(**kwargs, move=2.0, stn_bound=False), rand(4, 3, 64, 64)
        with model.record_thetas() as thetas:
            model(x)
        found = {n: m for n, m in model.named_modules() if isinstance(m, SpatialTransformer)}
        assert thetas.keys() == found.keys()
        loss = model.stn_penalty_loss(thetas)
        expected = sum(t.placement_penalty(t.last_theta).mean().item() for t in found.values())
        assert loss.shape == () and expected > 0 and loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert all(m.localization.regression.bias.grad.any() for m in found.values())

    def test_of_look(self):
        model, x = in_training(move=2.0, stn_bound=False), rand(4, 3, 64, 64)
        _, theta = model.look(x)
        with model.record_thetas() as thetas:
            model(x)
        assert torch.equal(model.stn_penalty_loss({'stn': theta}), model.stn_penalty_loss(thetas))

    def test_keeps_nothing_alive(self):
        model, x = in_training(stn_stages=('input', 1)), rand(2, 3, 64, 64)
        with model.record_thetas() as thetas:
            model(x)
        graphs = [weakref.ref(t) for t in thetas.values()]
        assert len(graphs) == 2 and all(t.requires_grad for t in thetas.values())
        model(rand(1, 3, 64, 64))
        assert all(len(t) == 2 for t in thetas.values()), 'it ends with the context'
        gc.collect()
        gc.disable()
        try:
            loss = model.stn_penalty_loss(thetas)
            del thetas
            loss.backward()
            del loss
            assert all(g() is None for g in graphs)
        finally:
            gc.enable()
        assert all(t.recorder is None and not t.last_theta.requires_grad for t in transformers(model))

    def test_contexts_nest_and_end_with_an_error(self):
        model = in_training()
        with pytest.raises(RuntimeError), model.record_thetas() as outer:
            with model.record_thetas() as inner:
                model(rand(2, 3, 64, 64))
            assert inner and not outer
            model(rand(2, 3, 64, 64))
            assert outer
            raise RuntimeError
        assert model.stn.recorder is None

    def test_with_gradient_checkpointing(self):
        plain, model = (in_training('stn_test_efficientnet', move=2.0, stn_stages=('input', 2)) for _ in range(2))
        model.set_grad_checkpointing()
        for net in (plain, model):
            with net.record_thetas() as thetas:
                out = net(rand(2, 3, 64, 64))
            (out.square().mean() + net.stn_penalty_loss(thetas)).backward()
        for (name, p), (_, expected) in zip(model.named_parameters(), plain.named_parameters()):
            torch.testing.assert_close(p.grad, expected.grad, msg=name)

    @pytest.mark.parametrize('thetas', [{}, {'input': torch.zeros(1, 2, 3)}])
    def test_wrong_names(self, thetas):
        with pytest.raises(ValueError, match=r"thetas of transformers \['stn'\], got those of"):
            in_training().stn_penalty_loss(thetas)
