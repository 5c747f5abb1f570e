"""Small networks, real data and analytic surfaces, for demos, tests and the lab."""

from thalweg.zoo.clusters import LENNARD_JONES_MERGES as LENNARD_JONES_MERGES
from thalweg.zoo.clusters import LENNARD_JONES_MINIMA as LENNARD_JONES_MINIMA
from thalweg.zoo.clusters import LENNARD_JONES_PASSES as LENNARD_JONES_PASSES
from thalweg.zoo.clusters import Cluster as Cluster
from thalweg.zoo.clusters import lennard_jones as lennard_jones
from thalweg.zoo.data import ImageData as ImageData
from thalweg.zoo.data import digits as digits
from thalweg.zoo.data import fashion_mnist as fashion_mnist
from thalweg.zoo.data import mnist_folder as mnist_folder
from thalweg.zoo.factored import Factored as Factored
from thalweg.zoo.factored import deep_linear as deep_linear
from thalweg.zoo.factored import matrix_factor as matrix_factor
from thalweg.zoo.factored import scalar_linear_net as scalar_linear_net
from thalweg.zoo.factored import sphere_form as sphere_form
from thalweg.zoo.factored import venturi_valley as venturi_valley
from thalweg.zoo.idx import read_idx as read_idx
from thalweg.zoo.idx import write_idx as write_idx
from thalweg.zoo.landscapes import digits_mlp as digits_mlp
from thalweg.zoo.landscapes import digits_mlp_pair as digits_mlp_pair
from thalweg.zoo.landscapes import digits_mlp_test as digits_mlp_test
from thalweg.zoo.landscapes import digits_resnet as digits_resnet
from thalweg.zoo.landscapes import digits_resnet_pair as digits_resnet_pair
from thalweg.zoo.landscapes import digits_resnet_test as digits_resnet_test
from thalweg.zoo.landscapes import fashion_cnn as fashion_cnn
from thalweg.zoo.landscapes import fashion_cnn_pair as fashion_cnn_pair
from thalweg.zoo.landscapes import fashion_cnn_test as fashion_cnn_test
from thalweg.zoo.models import Classifier as Classifier
from thalweg.zoo.models import cnn as cnn
from thalweg.zoo.models import lstm as lstm
from thalweg.zoo.models import mlp as mlp
from thalweg.zoo.models import resnet as resnet
from thalweg.zoo.models import transformer as transformer
from thalweg.zoo.surfaces import MULLER_BROWN_CRITICAL_POINTS as MULLER_BROWN_CRITICAL_POINTS
from thalweg.zoo.surfaces import (
    SIX_HUMP_CAMELBACK_CRITICAL_POINTS as SIX_HUMP_CAMELBACK_CRITICAL_POINTS,
)
from thalweg.zoo.surfaces import CriticalPoint as CriticalPoint
from thalweg.zoo.surfaces import Quadratic as Quadratic
from thalweg.zoo.surfaces import Surface as Surface
from thalweg.zoo.surfaces import double_well as double_well
from thalweg.zoo.surfaces import eggcarton as eggcarton
from thalweg.zoo.surfaces import muller_brown as muller_brown
from thalweg.zoo.surfaces import quadratic as quadratic
from thalweg.zoo.surfaces import six_hump_camelback as six_hump_camelback
from thalweg.zoo.teachers import swap_path as swap_path
from thalweg.zoo.teachers import tanh_swap as tanh_swap
from thalweg.zoo.teachers import three_cycle as three_cycle
from thalweg.zoo.teachers import two_relu_swap as two_relu_swap
from thalweg.zoo.tiny import tiny as tiny
from thalweg.zoo.tiny import tiny_models as tiny_models
