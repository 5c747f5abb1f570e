"""Spectra of random matrices: exact laws, samples of them, and fits to what was measured."""
