"""Where a log goes beside its files; W&B and events are tested with whole trainings in test_log.py."""
import builtins
import sys
import types

from PIL import Image

from timm_stn.training_log.targets import TensorBoard, WandB, targets_of


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith('torch.utils.tensorboard'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', missing)
    found = targets_of(tmp_path, tmp_path / 'stn_log.jsonl')
    assert [type(target) for target in found] == [WandB]
    line, = capsys.readouterr().err.splitlines()
    assert "pip install 'timm-stn[tensorboard]'" in line and line.endswith(f'the log is in {tmp_path}/stn_log.jsonl')


def test_wandb_is_never_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    target = WandB()
    target.numbers(1, {'input/scale': 1.0})
    target.picture(1, Image.new('RGB', (2, 2)))
    assert 'wandb' not in sys.modules
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(run=None))  # imported, and not used
    target.numbers(1, {'input/scale': 1.0})


def test_tensorboard_is_there_where_it_is_installed(tmp_path):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return
    found = targets_of(tmp_path, tmp_path / 'x')
    assert [type(target) for target in found] == [WandB, TensorBoard]
    for target in found:
        target.close()
    assert list(tmp_path.glob('events.*'))
