"""What files on disk name: a value that could not travel is pickled as `checkpoint.calls.Unreadable`."""

from checkpoint.execution.transport import Unreadable

__all__ = ["Unreadable"]
