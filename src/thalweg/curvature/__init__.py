"""Curvature: matrices known by their products, their eigenpairs and their trace."""

from thalweg.curvature.eigenpairs import Eigenpairs as Eigenpairs
from thalweg.curvature.eigenpairs import eigenpairs as eigenpairs
from thalweg.curvature.operator import Hessian as Hessian
from thalweg.curvature.operator import LinearOperator as LinearOperator
from thalweg.curvature.operator import MatrixOperator as MatrixOperator
from thalweg.curvature.trace import trace as trace
