"""What is told of the installation."""
import timm
import torch

import timm_stn
from timm_stn import cli
from timm_stn.cli import doctor
from timm_stn.cli.doctor import report, self_check
from timm_stn.names.zoo import zoo_names


def test_doctor(capsys, monkeypatch):
    assert cli.main(['doctor']) == 0
    output = capsys.readouterr().out
    for fact in ('timm_stn', 'torchvision', 'get_model_traits', 'architectures', 'aten.grid_sampler', 'passed'):
        assert fact in output
    monkeypatch.setattr(doctor, 'self_check', lambda: {'identity warp on cpu': (False, 'broken')})
    assert cli.main(['doctor']) == 1
    assert 'FAILED: broken' in capsys.readouterr().out


def test_report():
    facts = report()
    assert list(facts) == ['versions', 'devices', 'timm', 'kernels', 'weights']
    assert facts['versions']['timm'] == timm.__version__ and timm_stn.__version__ in facts['versions']['timm_stn']
    assert {'torch', 'torchvision', 'huggingface_hub', 'safetensors', 'python'} <= set(facts['versions'])
    assert facts['timm']['register_model'] == facts['timm']['FeatureGetterNet'] == 'yes'
    plain, twins = (int(text.split()[i]) for text, i in
                    zip([facts['timm']['architectures'].replace(',', '')] * 2, (0, 3)))
    assert plain == twins > 1000
    assert set(facts['weights']) == set(zoo_names())


def test_self_check(monkeypatch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert all(passed for passed, _ in self_check().values())
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(doctor, 'warp', lambda image, theta: image + 1e-3)
    passed, found = self_check()['identity warp on cpu']
    assert not passed and '1.0e-03' in found


def test_the_way_on_a_gpu_is_told_and_why(monkeypatch):
    found = report()['kernels']['on a GPU']
    assert found.startswith('timm_stn::warp by ') and (torch.cuda.is_available() or 'there is no CUDA device' in found)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    told = {'': 'by the fused kernels (triton', 'no C compiler': 'not by the fused kernels: no C compiler'}
    for reason, word in told.items():
        monkeypatch.setattr(doctor.fused, 'why_not', lambda device, reason=reason: reason)
        assert word in report()['kernels']['on a GPU']
