"""The command line."""

from llmgym.cli.main import app, main

__all__ = ["app", "main"]
