"""The command line; see `app`."""

from thalweg.cli.app import app as app
from thalweg.cli.app import main as main

__all__ = ["app", "main"]
