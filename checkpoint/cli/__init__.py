# PYTHON_ARGCOMPLETE_OK
"""The command `checkpoint`.

The promise: it says on standard error why it failed, and by its exit status that it did.

Interface: `main`.
May import: everything but testing.
"""

from checkpoint.cli.main import main

__all__ = ["main"]
