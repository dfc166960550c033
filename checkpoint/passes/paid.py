"""Values that were paid for and refused: the next pass judges each again before it calls the function anew.

The promise: where `validate` was mended, what is on disk becomes a result without a call, under the version, the code
and the input that it was computed by; what is still refused is called again, since models answer at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, GiveUp
from checkpoint.outcomes import Encoded, Failure, Success, describe_exception
from checkpoint.storage.record import Record
from checkpoint.values.digests import are_alike, digest_from
from checkpoint.values.keys import Key

if TYPE_CHECKING:
    from checkpoint.provenance.drift import Lineage

__all__ = ["PaidValues"]


class PaidValues:
    """The values that failures of one version kept, and what is thought of them today.

    Args:
        records: of the version.
        judge: raises where a value is no result; None: nothing is taken over.
        lineage: tells by which code a value must have been computed; None: by any.
    """

    def __init__(self, records: VersionView, judge: Callable[[Any], None] | None, lineage: Lineage | None) -> None:
        self._records = records
        self._judge = judge
        self._lineage = lineage

    def judge_again(self, key: Key, digest: int) -> Record | Failure | None:
        """What is thought today of the value that the failure of a key kept.

        Returns its record where the value is a result after all, a failure where it is given up, and None where there
        is no such value or it is still refused: then the item is called again.

        Args:
            key: of an item that failed earlier.
            digest: of the item as it is now.
        """
        if self._judge is None:
            return None
        record = self._kept(key, digest)
        if record is None:
            return None
        raw = bytes(record.paid)
        try:
            value = self._records.decode(raw)
            self._judge(value)
        except GiveUp as error:
            failure = describe_exception(error, elapsed=record.elapsed, attempts=record.attempts, skip=2)
            return replace(failure, paid=Success(Encoded(value, raw)))
        except Exception:  # of the user's function: the item is called again, which tells what is wrong
            return None
        return record

    def _kept(self, key: Key, digest: int) -> Record | None:
        """The failure whose value was computed from this item by this function."""
        try:
            found = self._records.checkpoint.errors.read(self._records.version, key)
        except DamagedRecord:
            return None
        if found is None or not bytes(found[2].paid):
            return None
        record = found[2]
        before = digest_from(record.input or "0")
        if digest and before and not are_alike(before, digest):
            return None
        return record if self._lineage is None or self._lineage.stands_for(self._records, record.code) else None
