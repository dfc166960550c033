"""Resumable maps: kill the run at any moment, start it again, and only the rest is computed."""

from checkpoint.runner import LATEST, BatchCheckpointedRunner, CheckpointedRunner

__all__ = ["LATEST", "BatchCheckpointedRunner", "CheckpointedRunner"]
