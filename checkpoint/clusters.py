"""Engines that the user already has; the public place of `Ray` and of what each makes of an executor."""

from checkpoint.execution.clusters import Ray

__all__ = ["Ray"]
