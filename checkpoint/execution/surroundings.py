"""The settings of the caller that hold in each call, wherever it is made, and that no call changes for another.

A copied context carries context variables, and with them the error handling of numpy 2. It does not carry the settings
of decimal, which are one object that all copies share, nor the error handling of numpy 1, which belongs to a thread.
"""

from __future__ import annotations

import decimal
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

__all__ = ["Settings", "of_thread", "settings_here", "unshared"]

_DEFAULT_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_DEFAULT_TRAPS = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]


class Settings(NamedTuple):
    """Settings of arithmetic, on their way to another process; None where they are the defaults.

    Attributes:
        decimal: the context of decimal.
        errors: numpy's handling of errors in arithmetic, and the function that it calls.
    """

    decimal: decimal.Context | None = None
    errors: tuple[dict[str, Any], Any] | None = None

    def apply(self) -> None:
        """Have them hold in the context, or the thread, that runs."""
        if self.decimal is not None:
            decimal.setcontext(self.decimal)
        if self.errors is not None:
            import numpy

            handling, function = self.errors
            numpy.seterr(**handling)
            numpy.seterrcall(function)


def settings_here() -> Settings:
    """Those of the context, or the thread, that runs."""
    numbers = decimal.getcontext()
    numpy: Any = sys.modules.get("numpy")
    errors = None if numpy is None else (numpy.geterr(), numpy.geterrcall())
    return Settings(
        None if _is_default(numbers) else numbers.copy(),
        None if errors == (_DEFAULT_ERRORS, None) else errors,
    )


def _is_default(numbers: decimal.Context) -> bool:
    limits = (numbers.prec, numbers.rounding, numbers.Emin, numbers.Emax, numbers.capitals, numbers.clamp)
    traps = [signal for signal, is_trapped in numbers.traps.items() if is_trapped]
    return limits == (28, "ROUND_HALF_EVEN", -999999, 999999, 1, 0) and set(traps) == set(_DEFAULT_TRAPS)


def unshared(context: Context) -> Callable[[], None] | None:
    """A function that gives a copy of the context its own settings, where copies would share some; else None.

    Args:
        context: a copy of the one that runs.
    """
    makers = [make for make in (_own_numbers(context), of_thread()) if make is not None]
    if len(makers) < 2:
        return makers[0] if makers else None

    def apply() -> None:
        for make in makers:
            make()

    return apply


def _own_numbers(context: Context) -> Callable[[], None] | None:
    """A context of decimal that nobody has used yet is made when it is first asked for, and is shared by none."""
    if decimal.HAVE_CONTEXTVAR and not any(variable.name == "decimal_context" for variable in context):
        return None
    numbers = decimal.getcontext().copy()
    return lambda: decimal.setcontext(numbers.copy())


def of_thread() -> Callable[[], None] | None:
    """A function that puts back the settings of numpy 1, which belong to the thread and to no context; else None."""
    umath: Any = sys.modules.get("numpy.core.umath")
    if not hasattr(umath, "seterrobj"):
        return None
    settings = umath.geterrobj()
    return lambda: umath.seterrobj(list(settings))
