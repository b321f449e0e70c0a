"""Plain timm models: the paper's `mnist_cnn`, `mnist_fcn` and `svhn_cnn`, and `signs_cnn`."""
from .mnist import MnistCNN, MnistFCN, MnistNet, mnist_cnn, mnist_fcn
from .signs import SignsCNN, signs_cnn
from .svhn import SvhnCNN, svhn_cnn

__all__ = ['MnistCNN', 'MnistFCN', 'MnistNet', 'SignsCNN', 'SvhnCNN', 'mnist_cnn', 'mnist_fcn', 'signs_cnn', 'svhn_cnn']
