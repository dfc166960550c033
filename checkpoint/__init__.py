"""Resumable maps: kill the run at any moment, start it again, and only the rest is computed."""

from checkpoint import safe_path  # noqa: F401  # isort: skip  # first
from checkpoint.api.decorator import checkpointed
from checkpoint.api.proxies import AsyncCheckpointedFunction, CheckpointedFunction
from checkpoint.api.results import KeyedErrors, KeyedResults, Results
from checkpoint.api.runner import BatchCheckpointedRunner, CheckpointedRunner
from checkpoint.catalog.view import LATEST
from checkpoint.errors import (
    BrokenWorkers,
    CheckpointError,
    CheckpointLocked,
    CircularCall,
    DamagedRecord,
    DuplicateKey,
    ExtraNeeded,
    FunctionChanged,
    InputChanged,
    InvalidFunction,
    InvalidKey,
    InvalidName,
    InvalidOption,
    ItemError,
    ItemsFailed,
    JournalLost,
    KeyChanged,
    MaxCostReached,
    RefusedValue,
    ResultsUnfit,
    StoreClosed,
    StoreError,
    StoreForked,
    TooManyErrors,
    UnbuildableValue,
    UnencodableValue,
    UnguardedMain,
    UnsendableItem,
    VersionNeeded,
    WorkerDied,
)
from checkpoint.execution.notes import note
from checkpoint.execution.policies import Rate, Retry
from checkpoint.outcomes import Outcome
from checkpoint.passes.plan import Plan
from checkpoint.reporting.causes import Cause

__all__ = [
    "LATEST",
    "AsyncCheckpointedFunction",
    "BatchCheckpointedRunner",
    "BrokenWorkers",
    "Cause",
    "CheckpointError",
    "CheckpointLocked",
    "CheckpointedFunction",
    "CheckpointedRunner",
    "CircularCall",
    "DamagedRecord",
    "DuplicateKey",
    "ExtraNeeded",
    "FunctionChanged",
    "InputChanged",
    "InvalidFunction",
    "InvalidKey",
    "InvalidName",
    "InvalidOption",
    "ItemError",
    "ItemsFailed",
    "JournalLost",
    "KeyChanged",
    "KeyedErrors",
    "KeyedResults",
    "MaxCostReached",
    "Outcome",
    "Plan",
    "Rate",
    "RefusedValue",
    "Results",
    "ResultsUnfit",
    "Retry",
    "StoreClosed",
    "StoreError",
    "StoreForked",
    "TooManyErrors",
    "UnbuildableValue",
    "UnencodableValue",
    "UnguardedMain",
    "UnsendableItem",
    "VersionNeeded",
    "WorkerDied",
    "checkpointed",
    "note",
]
