"""Resumable maps: kill the run at any moment, start it again, and only the rest is computed."""

from checkpoint.decorator import AsyncCheckpointedFunction, CheckpointedFunction, checkpointed
from checkpoint.errors import (
    CheckpointError,
    CheckpointLocked,
    DamagedRecord,
    DuplicateKey,
    InputChanged,
    InvalidFunction,
    InvalidKey,
    InvalidName,
    InvalidOption,
    ItemError,
    ItemsFailed,
    JournalLost,
    StoreClosed,
    StoreError,
    StoreForked,
    TooManyErrors,
    UnbuildableValue,
    UnencodableValue,
    VersionNeeded,
)
from checkpoint.outcomes import Outcome
from checkpoint.records import LATEST
from checkpoint.results import Results
from checkpoint.runner import BatchCheckpointedRunner, CheckpointedRunner

__all__ = [
    "LATEST",
    "AsyncCheckpointedFunction",
    "BatchCheckpointedRunner",
    "CheckpointError",
    "CheckpointLocked",
    "CheckpointedFunction",
    "CheckpointedRunner",
    "DamagedRecord",
    "DuplicateKey",
    "InputChanged",
    "InvalidFunction",
    "InvalidKey",
    "InvalidName",
    "InvalidOption",
    "ItemError",
    "ItemsFailed",
    "JournalLost",
    "Outcome",
    "Results",
    "StoreClosed",
    "StoreError",
    "StoreForked",
    "TooManyErrors",
    "UnbuildableValue",
    "UnencodableValue",
    "VersionNeeded",
    "checkpointed",
]
