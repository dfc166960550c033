"""The classes and functions that users hold: the decorator, runners for loops by hand, and results.

The promise: a decorated function stays what it was, and everything it does is a pass of a runner.

Interface: `decorator.checkpointed`, `runner.CheckpointedRunner`, `results.Results`.
May import: all of the above: values, storage, remote, catalog, provenance, execution, passes, maintenance, reporting.
"""
