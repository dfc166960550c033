"""The laws that hold whatever runs the function: one suite for our own engines and for anybody's executor.

The promise: who passes them keeps the promises of `map` and `stream`.

Interface: `check`, `for_executor`, `LAWS`, `Engine`, `Law`.
May import: everything but cli.
"""

from checkpoint.testing.engine import Engine, Law, for_executor
from checkpoint.testing.laws import LAWS, check

__all__ = ["LAWS", "Engine", "Law", "check", "for_executor"]
