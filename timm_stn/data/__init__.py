"""The paper's data sets."""
from timm_stn.data.distortions import DISTORTIONS, Distortion, distort, test_set
from timm_stn.data.mnist import load_mnist

__all__ = ['DISTORTIONS', 'Distortion', 'distort', 'load_mnist', 'test_set']
