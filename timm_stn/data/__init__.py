"""The paper's data sets."""
from timm_stn.data.distortions import DISTORTIONS, Distortion, distort
from timm_stn.data.mnist import load_mnist
from timm_stn.data.tasks import TASKS, Task, test_set

__all__ = ['DISTORTIONS', 'TASKS', 'Distortion', 'Task', 'distort', 'load_mnist', 'test_set']
