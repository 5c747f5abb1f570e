"""Tensors whose landscapes are known: orthogonally decomposable ones, and a spike in noise."""
