"""The paper's own networks as plain timm models: `mnist_cnn`, `mnist_fcn` and `svhn_cnn`."""
from .mnist import MnistCNN, MnistFCN, MnistNet, mnist_cnn, mnist_fcn
from .svhn import SvhnCNN, svhn_cnn

__all__ = ['MnistCNN', 'MnistFCN', 'MnistNet', 'SvhnCNN', 'mnist_cnn', 'mnist_fcn', 'svhn_cnn']
