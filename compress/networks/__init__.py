"""Reference networks, and networks that the user brings."""

from compress.networks.autoencoder import Autoencoder
from compress.networks.ds_cnn import DsCnn
from compress.networks.heads import Head
from compress.networks.keras_file import KerasFile, load_keras
from compress.networks.lenet import LeNet5, LeNet300100
from compress.networks.mlp import Mlp
from compress.networks.mobilenet import MobileNetV1
from compress.networks.network import Network, build, parse_network
from compress.networks.python_function import PythonFunction
from compress.networks.resnet import ResNet8

__all__ = [
    "Autoencoder",
    "DsCnn",
    "Head",
    "KerasFile",
    "LeNet5",
    "LeNet300100",
    "Mlp",
    "MobileNetV1",
    "Network",
    "PythonFunction",
    "ResNet8",
    "build",
    "load_keras",
    "parse_network",
]
