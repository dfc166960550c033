"""Stores that break one promise each, and the tests that must notice: `test_mutants.py` runs these under each.

It is a pytest plugin as well, which breaks the store for one run:

    CHECKPOINT_MUTANT=no_repair PYTHONPATH=tests python -m pytest -p mutants tests/maintenance/test_upkeep.py

A mutant replaces functions of the library by name. A name that is not there ends the run at once; and the report says
how often each of the functions was called, since a mutant that was never reached proves nothing.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import types
import zlib
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from checkpoint.catalog.record_lines import RecordLines
from checkpoint.catalog.view import VersionView
from checkpoint.errors import StoreError
from checkpoint.maintenance import check as check_module
from checkpoint.maintenance import repair as repair_module
from checkpoint.maintenance.audit import Audit, lines_at
from checkpoint.passes import budget as budget_module
from checkpoint.passes.earlier import Earlier
from checkpoint.passes.paid import PaidValues
from checkpoint.passes.recorder import Recorder
from checkpoint.passes.step_desk import DeskStep, StepDesk
from checkpoint.remote import local_copy, state
from checkpoint.remote.local_copy import LocalCopy
from checkpoint.remote.objects import Listing, Marker, Objects
from checkpoint.remote.session import Session as _Session
from checkpoint.remote.state import Held, Owed
from checkpoint.storage import files, index_file, lock, record, source
from checkpoint.storage.blocks import BlockSums
from checkpoint.storage.damage import DamageNotes
from checkpoint.storage.index import Index, IndexScan
from checkpoint.storage.indexed_journal import IndexedJournal
from checkpoint.storage.journal import Journal
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import CRC_SIZE
from checkpoint.storage.spending import Spending
from checkpoint.storage.store import Store, forgetting
from checkpoint.storage.syncs import JournalSyncs
from checkpoint.storage.writer import Writer

__all__ = ["MUTANTS", "Breaker", "Mutant", "Run"]

Function = Callable[..., Any]
READERS = "laws/test_readers.py"
FAILING = "laws/test_failing_calls.py::test_a_call_that_fails_loses_nothing_that_was_acknowledged"


class Breaker:
    """Replaces functions, and counts how often they are called in this process.

    Attributes:
        calls: by what was replaced.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def replace(self, owner: Any, name: str, make: Callable[[Function], Function]) -> None:
        """The function `name` of a class or module becomes what `make` makes of it, wherever it was imported to."""
        real = vars(owner)[name]
        broken = make(real)
        label = f"{owner.__name__}.{name}"
        self.calls[label] = 0

        @functools.wraps(real)
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls[label] += 1
            return broken(*arguments, **named)

        owners = [owner]
        if isinstance(owner, types.ModuleType):
            rooms = [room for place, room in sys.modules.items() if place.split(".")[0] == "checkpoint"]
            owners = [room for room in rooms if vars(room).get(name) is real]
        for place in owners:
            setattr(place, name, counted)


class Mutant(NamedTuple):
    """A broken store.

    Attributes:
        breaks: what makes it so.
        tests: node ids; some case of each must fail.
    """

    breaks: Callable[[Breaker], None]
    tests: tuple[str, ...]


MUTANTS: dict[str, Mutant] = {}


def caught_by(*tests: str) -> Callable[[Callable[[Breaker], None]], Callable[[Breaker], None]]:
    """What the function breaks must be noticed by each of these tests of tests/."""

    def enter(breaks: Callable[[Breaker], None]) -> Callable[[Breaker], None]:
        MUTANTS[breaks.__name__] = Mutant(breaks, tuple(f"tests/{test}" for test in tests))
        return breaks

    return enter


def nothing(*_: Any, **__: Any) -> None:
    """What a function does that was left out."""


def while_it_runs(**functions: Function) -> Callable[[Function], Function]:
    """Makes a method that is as it was, but for its object's own functions of these names."""

    def make(real: Function) -> Function:
        def method(self: Any, *arguments: Any, **named: Any) -> Any:
            own = vars(self)
            before = {name: own[name] for name in functions if name in own}
            assert all(hasattr(self, name) for name in functions), "it is called otherwise now"
            own.update(functions)
            try:
                return real(self, *arguments, **named)
            finally:
                for name in functions:
                    del own[name]
                own.update(before)

        return method

    return make


# --- torn tails and failing writes ----------------------------------------------------------------------------------


@caught_by(
    "maintenance/test_upkeep.py::test_a_repair_sets_a_torn_tail_aside_too",
    "storage/test_journal.py::test_what_cannot_be_cut_back_is_set_aside_before_the_next_append",
)
def no_repair(breaker: Breaker) -> None:
    """A torn tail stays where it is, and the next record is glued to it."""

    def repair(self: Journal) -> bytes:
        self.in_doubt = False
        return b""

    breaker.replace(Journal, "repair", lambda real: repair)


@caught_by("storage/test_lock.py::test_a_line_that_grows_is_never_cut_by_who_holds_a_new_lock")
def growing_line_is_cut(breaker: Breaker) -> None:
    """What another process is writing, whose lock was deleted, counts as a torn tail."""
    breaker.replace(Journal, "_refuse_if_grown", lambda real: nothing)


@caught_by("maintenance/test_upkeep.py::test_a_repair_sets_a_torn_tail_aside_too")
def torn_bytes_destroyed(breaker: Breaker) -> None:
    """What is cut off is kept nowhere."""
    breaker.replace(Journal, "set_aside", lambda real: nothing)


@caught_by(
    "laws/test_reliance.py::test_a_torn_tail_is_kept_before_it_is_cut_off",
    "laws/test_reliance.py::test_a_repair_keeps_damaged_lines_before_the_journal_loses_them",
)
def set_aside_without_sync(breaker: Breaker) -> None:
    """What is cut off may be nowhere after a power cut."""
    breaker.replace(Journal, "set_aside", while_it_runs(_sync=nothing))


@caught_by("laws/test_reliance.py::test_a_record_is_one_write_of_its_whole_line")
def two_writes_a_record(breaker: Breaker) -> None:
    """The record, and then its newline."""

    def make(real: Function) -> Function:
        def append(self: Journal, lines: bytes) -> int:
            start: int = real(self, lines[:-1])
            assert self._writer is not None
            self.in_doubt = True
            try:
                os.write(self._writer, b"\n")
            except OSError as error:
                raise files.store_error(error, "cannot write to", self.path) from error
            self.end += 1
            self.in_doubt = False
            return start

        return append

    breaker.replace(Journal, "append", make)


@caught_by(
    "storage/test_journal.py::test_a_disk_that_fills_up_at_any_byte_leaves_whole_records",
    "storage/test_journal.py::test_cutting_back_takes_nothing_but_its_own_bytes",
)
def no_cut_back(breaker: Breaker) -> None:
    """Half a record stays in the file after a short or failed write."""
    breaker.replace(Journal, "_cut_back", lambda real: lambda self, written: True)


@caught_by("storage/test_journal.py::test_a_short_write_is_gone_on_with")
def short_write_taken_for_whole(breaker: Breaker) -> None:
    """What the system did not take is not written."""
    breaker.replace(files, "write_some", lambda real: lambda fd, data: len(data))


@caught_by("storage/test_journal.py::test_after_eio_the_store_refuses_until_it_is_opened_anew[write]")
def failed_write_acknowledged(breaker: Breaker) -> None:
    """EIO on a write is no error."""

    def make(real: Function) -> Function:
        def append(self: Journal, lines: bytes) -> int:
            try:
                return real(self, lines)  # type: ignore[no-any-return]
            except StoreError as error:
                if error.errno != errno.EIO:
                    raise
                return self.end

        return append

    breaker.replace(Journal, "append", make)


@caught_by(
    "storage/test_journal.py::test_after_eio_the_store_refuses_until_it_is_opened_anew",
    "storage/test_journal.py::test_a_failed_background_sync_is_told_at_the_next_save",
)
def goes_on_after_eio(breaker: Breaker) -> None:
    """The save fails, and the next one is tried as if nothing had been."""
    breaker.replace(Writer, "fail", lambda real: lambda self, error: error)


@caught_by("storage/test_journal.py::test_eio_on_read_is_an_error_and_never_an_empty_checkpoint")
def failed_read_finds_nothing(breaker: Breaker) -> None:
    """EIO on a read is the end of the file."""

    def make(real: Function) -> Function:
        def pread(self: Reader, size: int, offset: int) -> bytes:
            try:
                return real(self, size, offset)  # type: ignore[no-any-return]
            except StoreError:
                return b""

        return pread

    breaker.replace(Reader, "pread", make)


# --- syncs ----------------------------------------------------------------------------------------------------------


@caught_by("storage/test_store.py::test_with_durability_power_every_record_is_synced_before_it_is_acknowledged")
def no_sync_of_records(breaker: Breaker) -> None:
    """With durability="power" too, an error, or several results, are on the medium some time later."""
    breaker.replace(Store, "append", unsynced)


@caught_by("storage/test_store.py::test_with_durability_power_every_record_is_synced_before_it_is_acknowledged")
def no_sync_of_a_result(breaker: Breaker) -> None:
    """So is a result that is saved by itself."""
    breaker.replace(Store, "append_one", unsynced)


def unsynced(real: Function) -> Function:
    """The same, and nothing is synced."""
    return lambda *arguments, **named: real(*arguments, **named | {"durable": False})


@caught_by("storage/test_store.py::test_with_durability_process_everything_is_synced_once_a_second_and_on_close")
def no_sync_on_close(breaker: Breaker) -> None:
    """Whoever lets go of the lock syncs nothing."""
    breaker.replace(Writer, "stop", while_it_runs(sync=nothing))


@caught_by("storage/test_store.py::test_with_durability_process_everything_is_synced_once_a_second_and_on_close")
def no_sync_once_a_second(breaker: Breaker) -> None:
    """Everything waits for the end of the pass."""
    breaker.replace(Writer, "_sync_aside", lambda real: nothing)


@caught_by("storage/test_store.py::test_what_a_killed_writer_left_unsynced_is_synced_by_the_next_one")
def found_counts_as_synced(breaker: Breaker) -> None:
    """What a killed writer left is never synced."""

    def make(real: Function) -> Function:
        def repair(self: Journal) -> bytes:
            torn: bytes = real(self)
            self.dirty = False
            return torn

        return repair

    breaker.replace(Journal, "repair", make)


@caught_by(
    "storage/test_journal.py::test_after_eio_the_store_refuses_until_it_is_opened_anew[fdatasync]",
    "storage/test_journal.py::test_a_failed_background_sync_is_told_at_the_next_save",
)
def failed_sync_acknowledged(breaker: Breaker) -> None:
    """EIO on a sync is no error."""
    breaker.replace(JournalSyncs, "_sync_descriptor", forgiving)


@caught_by(f"{FAILING}[by hand, durably-fdatasync: EIO, once]", f"{FAILING}[housekeeping-fdatasync: EIO, once]")
def failed_sync_tried_again(breaker: Breaker) -> None:
    """A sync that fails is repeated: the second one succeeds, and what the first one lost stays lost."""

    def make(real: Function) -> Function:
        def sync(self: Journal, fd: int, end: int, of: object) -> None:
            forgiving(real)(self, fd, end, of)
            real(self, fd, end, of)

        return sync

    breaker.replace(JournalSyncs, "_sync_descriptor", make)


def forgiving(real: Function) -> Function:
    """The function, whose own errors are none."""

    def function(*arguments: Any) -> Any:
        try:
            return real(*arguments)
        except StoreError:
            return None

    return function


@caught_by(
    "storage/test_store.py::test_with_durability_power_every_record_is_synced_before_it_is_acknowledged",
    "laws/test_reliance.py::test_a_journal_is_replaced_when_its_copy_is_on_the_medium",
)
def no_directory_sync(breaker: Breaker) -> None:
    """Names of files and directories are never synced."""
    breaker.replace(files, "fsync_directory", lambda real: nothing)


# --- what is read ---------------------------------------------------------------------------------------------------


@caught_by(
    "storage/test_store.py::test_damage_is_not_done_from_then_on",
    "storage/test_journal.py::test_a_damaged_line_counts_against_the_key_it_spells",
)
def checksum_not_verified(breaker: Breaker) -> None:
    """A record is what its line says."""
    breaker.replace(record, "_crc_holds", lambda real: lambda line: True)


def checksum_of(breaker: Breaker, part: Callable[[bytes], bytes]) -> None:
    """Lines are sealed, and judged, by less than all their bytes."""

    def sealed(head: bytes) -> bytes:
        return head + b',"crc":"%08x"}\n' % zlib.crc32(part(head))

    breaker.replace(record, "seal_parts", lambda real: lambda *parts: sealed(b"".join(parts)))
    breaker.replace(record, "_crc_holds", lambda real: lambda line: sealed(line[:-CRC_SIZE])[:-1] == line)


@caught_by("storage/test_journal.py::test_a_damaged_line_counts_against_the_key_it_spells")
def checksum_without_the_key(breaker: Breaker) -> None:
    """A flipped key is believed."""
    checksum_of(breaker, lambda head: head[16:])


@caught_by("storage/test_store.py::test_damage_is_not_done_from_then_on")
def checksum_without_the_result(breaker: Breaker) -> None:
    """A flipped value is believed."""
    checksum_of(breaker, lambda head: head[:14])


@caught_by("storage/test_journal.py::test_a_damaged_line_damages_no_other[middle--no JSON]")
def damage_ends_the_journal(breaker: Breaker) -> None:
    """What follows a damaged line counts for nothing."""
    breaker.replace(
        IndexScan, "_read_line", lambda real: lambda self, *line: None if self._index.damaged else real(self, *line)
    )


@caught_by("api/test_runner.py::test_the_last_result_of_a_key_wins")
def first_record_wins(breaker: Breaker) -> None:
    """A later record of a key is of no account."""

    def make(real: Function) -> Function:
        def add(self: Index, version: str, key: Any, offset: int, digest: int) -> None:
            if self.find(version, key) is None:
                real(self, version, key, offset, digest)

        return add

    breaker.replace(Index, "add", make)


@caught_by(
    "laws/test_faults.py::test_the_order_in_the_file_decides_whatever_the_clock_says",
    "storage/test_index.py::test_a_hand_written_line_behind_a_forgotten_key_counts",
)
def forgetting_forgotten(breaker: Breaker) -> None:
    """What was cleared is there again when the checkpoint is opened anew."""
    breaker.replace(Index, "scan", while_it_runs(forget=nothing))


@caught_by("api/test_runner.py::test_an_error_never_makes_a_key_done_and_a_success_retires_it")
def errors_make_done(breaker: Breaker) -> None:
    """An item that failed is not run again."""

    def make(real: Function) -> Function:
        return lambda self, key: real(self, key) or self.checkpoint.errors.find(self.version, key) is not None

    breaker.replace(VersionView, "is_done", make)


# --- caches ---------------------------------------------------------------------------------------------------------


@caught_by("laws/test_reliance.py::test_a_count_is_of_the_journals_whatever_meta_says")
def meta_believed(breaker: Breaker) -> None:
    """As long as nothing is appended, meta says how many results there are."""

    def make(real: Function) -> Function:
        def init(self: Store, name: str, directory: Path, **named: Any) -> None:
            real(self, name, directory, **named)
            said, end, count = self.meta.said.get("completed_items"), self.own.results.index.end, self.own.results.count
            vars(self.own.results)["count"] = lambda version: (
                said if type(said) is int and self.own.results.index.end == end else count(version)
            )

        return init

    breaker.replace(Store, "__init__", make)


@caught_by("storage/test_index.py::test_an_index_of_a_journal_that_has_shrunk_is_not_believed")
def index_of_any_journal(breaker: Breaker) -> None:
    """An index file is of the journal beside it."""
    breaker.replace(index_file, "_is_of", lambda real: lambda header, reader: True)
    breaker.replace(Index, "is_sealed", lambda real: lambda self, state: True)


@caught_by(f"{READERS}::test_the_last_line_of_a_key_counts_whatever_the_index_file_says")
def index_of_another_state(breaker: Breaker) -> None:
    """An index file whose journal begins and ends as it knows is right, whatever was edited between."""
    breaker.replace(Index, "is_sealed", lambda real: lambda self, state: True)


@caught_by(f"{READERS}::test_the_last_line_of_a_key_counts_whatever_the_index_file_says")
def blocks_believed(breaker: Breaker) -> None:
    """A block of the journal is what the index was learned from, whatever its checksum says."""
    breaker.replace(BlockSums, "fits", lambda real: lambda self, reader, block: True)


# --- readers beside edits -------------------------------------------------------------------------------------------


@caught_by(f"{READERS}::test_a_line_that_moved_is_no_damage_though_nothing_tells_of_the_edit")
def moved_lines_are_damage(breaker: Breaker) -> None:
    """Where a record of another key stands, the key's own is damaged."""
    breaker.replace(IndexedJournal, "_is_moved", lambda real: lambda self, reader, offset: False)


@caught_by(f"{READERS}::test_damage_that_a_reader_met_is_looked_at_again_by_the_next_pass")
def reading_forgets(breaker: Breaker) -> None:
    """A reader that meets damage appends a record that forgets the key."""

    def make(real: Function) -> Function:
        def note(self: KeyedLog, version: str, key: Any) -> None:
            real(self, version, key)
            with self.journal.path.open("ab") as file:
                file.write(forgetting(version, key, b"").line)

        return note

    breaker.replace(IndexedJournal, "note_damage", make)


@caught_by(f"{READERS}::test_damage_that_a_reader_met_is_looked_at_again_by_the_next_pass")
def damage_untold(breaker: Breaker) -> None:
    """What a reader met stays with that reader."""
    breaker.replace(DamageNotes, "add", lambda real: nothing)


@caught_by(f"{READERS}::test_what_is_noted_of_damage_is_believed_of_no_sound_line")
def notes_believed(breaker: Breaker) -> None:
    """What is noted is damaged, and nobody looks again."""
    breaker.replace(IndexedJournal, "_is_sound", lambda real: lambda *given: False)


@caught_by(f"{READERS}::test_results_see_that_a_record_is_of_their_item")
def any_record_is_the_items(breaker: Breaker) -> None:
    """What stands at the place of an item is its result."""
    breaker.replace(source, "_is_of", lambda real: lambda *given: True)


@caught_by(
    "storage/test_index.py::test_an_index_that_is_damaged_while_open_changes_no_result",
    "storage/test_index.py::test_whatever_becomes_of_an_index_changes_no_result",
)
def index_believed(breaker: Breaker) -> None:
    """A page of NULs is a page without entries."""
    breaker.replace(index_file, "_checksum", lambda real: lambda page, data: 0)


# --- several of them ------------------------------------------------------------------------------------------------


@caught_by("storage/test_lock.py::test_a_second_writer_is_told_at_once_who_writes_and_changes_nothing")
def lock_not_taken(breaker: Breaker) -> None:
    """Anybody may write."""
    breaker.replace(lock, "_lock", lambda real: nothing)


@caught_by("storage/test_store.py::test_a_journal_that_is_deleted_or_replaced_is_noticed_within_a_second")
def lost_journal_unnoticed(breaker: Breaker) -> None:
    """Whoever has a journal open writes on, wherever its file went."""
    breaker.replace(Journal, "check_place", lambda real: nothing)


@caught_by("storage/test_store.py::test_a_journal_that_is_cut_while_open_is_noticed_at_the_next_save")
def cut_journal_unnoticed(breaker: Breaker) -> None:
    """A record that went elsewhere than to the end that was known is taken for one behind another program's."""
    breaker.replace(Journal, "_moved", lambda real: lambda self, place, written: place - written)


# --- upkeep ---------------------------------------------------------------------------------------------------------


@caught_by("laws/test_reliance.py::test_a_journal_is_replaced_when_its_copy_is_on_the_medium")
def renamed_before_sync(breaker: Breaker) -> None:
    """A copy takes the journal's place, and is then synced."""

    def make(real: Function) -> Function:
        def replace(self: Journal, *arguments: Any, **named: Any) -> None:
            while_it_runs(_sync=nothing)(real)(self, *arguments, **named)
            fd = os.open(self.path, os.O_RDONLY)
            files.fsync(fd)
            os.close(fd)

        return replace

    breaker.replace(Journal, "replace", make)


@caught_by(
    "laws/test_reliance.py::test_a_journal_is_replaced_when_its_copy_is_on_the_medium",
    "maintenance/test_upkeep.py::test_an_index_file_is_gone_before_its_journal_is",
)
def renamed_without_directory_sync(breaker: Breaker) -> None:
    """After a power cut the journal may be the old one."""
    breaker.replace(Journal, "replace", while_it_runs(_enter_in_directory=nothing))


@caught_by("maintenance/test_upkeep.py::test_an_index_file_is_gone_before_its_journal_is")
def index_outlives_its_journal(breaker: Breaker) -> None:
    """An index file stays while the journal that it is of is replaced."""
    breaker.replace(IndexedJournal, "_unlink_index", lambda real: nothing)


@caught_by("maintenance/test_upkeep.py::test_damaged_lines_stay_where_they_are_and_are_read_as_before")
def compaction_destroys_damage(breaker: Breaker) -> None:
    """Bytes that cannot be read are superseded."""

    def make(real: Function) -> Function:
        return lambda self: [place for place in real(self) if place not in {damage.offset for damage in self.damage}]

    breaker.replace(Audit, "kept", make)


@caught_by("maintenance/test_upkeep.py::test_a_repair_never_brings_an_older_value_back")
def repair_brings_back_old_values(breaker: Breaker) -> None:
    """Nothing takes the place of a damaged line that had hidden an older record."""
    breaker.replace(repair_module, "_forgettings", lambda real: lambda ledger: {})


# --- object stores --------------------------------------------------------------------------------------------------

REMOTE = "remote/test_remote.py::"
MACHINES = "laws/test_machines.py::test_takeovers"
HISTORIES = "laws/test_machines.py::test_machines"


@caught_by(f"{REMOTE}test_what_is_owed_goes_up_under_its_own_session", HISTORIES)
def owed_by_the_one_who_uploads(breaker: Breaker) -> None:
    """What an earlier session owed is taken for lines of the one that runs."""

    def make(real: Function) -> Function:
        def upload(self: _Session, kind: str, span: Owed) -> None:
            (epoch, token), last = self._number, self._tails.get(kind, (0, b""))
            real(self, kind, span._replace(epoch=epoch, token=token, at=last[0] + len(last[1])))

        return upload

    breaker.replace(_Session, "_upload", make)


@caught_by(f"{REMOTE}test_what_is_owed_goes_up_under_its_own_session", MACHINES)
def late_lines_appended(breaker: Breaker) -> None:
    """What comes late stands last in a local journal, whenever it was saved."""
    breaker.replace(LocalCopy, "_comes_before", lambda real: lambda self, parts, held: False)


@caught_by(f"{REMOTE}test_a_directory_that_is_restored_brings_nothing_old_back", HISTORIES)
def own_parts_unknown(breaker: Breaker) -> None:
    """A part that was uploaded and not noted is fetched, and its lines are owed all the same."""
    breaker.replace(state, "find_own", lambda real: nothing)


@caught_by(f"{REMOTE}test_what_a_whole_took_in_is_owed_no_more")
def taken_is_forgotten(breaker: Breaker) -> None:
    """What a machine owes is compared with the parts that are there, and not with what wholes took in."""

    def make(real: Function) -> Function:
        return lambda self, kind, stream: real(self._replace(marker=Marker()), kind, stream)

    breaker.replace(Listing, "has", make)


@caught_by(f"{REMOTE}test_what_is_owed_when_all_is_cleared_is_set_aside", MACHINES)
def clearing_is_forgotten(breaker: Breaker) -> None:
    """A compaction does not say that all was cleared before."""

    def make(real: Function) -> Function:
        def taking(self: _Session, *, cleared: int = 0) -> Marker | None:
            said: Marker | None = real(self, cleared=cleared)
            if said is not None:
                said.cleared = cleared
            return said

        return taking

    breaker.replace(_Session, "_taking", make)


@caught_by(f"{REMOTE}test_a_damaged_line_is_not_uploaded", MACHINES)
def damage_goes_up(breaker: Breaker) -> None:
    """Lines are uploaded as they are on this disk."""
    breaker.replace(local_copy, "may_go_up", lambda real: lambda line: True)


@caught_by(f"{REMOTE}test_a_journal_that_is_rewritten_takes_the_lines_of_the_store")
def rewritten_without_the_store(breaker: Breaker) -> None:
    """A whole is made of what this disk has left."""
    breaker.replace(Store, "mend", lambda real: lambda self, shelf, damaged: False)


@caught_by(MACHINES)
def owed_is_nobodys_after_a_whole(breaker: Breaker) -> None:
    """What a machine owes is let go of where another one has compacted."""

    def make(real: Function) -> Function:
        def build(self: LocalCopy, kind: str, listing: Listing, held: Held) -> Any:
            return real(self, kind, listing, msgspec.structs.replace(held, owed=[]))

        return build

    breaker.replace(LocalCopy, "_build", make)


@caught_by(MACHINES)
def owed_goes_above_a_whole(breaker: Breaker) -> None:
    """What a machine owes is taken for newer than what another one has compacted."""

    def make(real: Function) -> Function:
        def build(self: LocalCopy, kind: str, listing: Listing, held: Held) -> Any:
            owed = [each._replace(epoch=max(each.epoch, listing.whole)) for each in held.owed]
            return real(self, kind, listing, msgspec.structs.replace(held, owed=owed))

        return build

    breaker.replace(LocalCopy, "_build", make)


@caught_by(MACHINES)
def owed_comes_back_after_a_clearing(breaker: Breaker) -> None:
    """What a machine owes stays in its journal, whatever was cleared elsewhere."""

    def make(real: Function) -> Function:
        def build(self: LocalCopy, kind: str, listing: Listing, held: Held) -> Any:
            said = msgspec.structs.replace(listing.marker, cleared=0)
            return real(self, kind, listing._replace(marker=said), held)

        return build

    breaker.replace(LocalCopy, "_build", make)


@caught_by(MACHINES)
def conditions_are_assumed(breaker: Breaker) -> None:
    """No store is asked whether it heeds conditions, so that names carry no token."""
    breaker.replace(Objects, "heeds_conditions", lambda real: lambda self, probe: True)


# --- what was paid for ----------------------------------------------------------------------------------------------


@caught_by("passes/test_parse.py::test_a_refused_value_is_kept_in_its_error")
def refused_values_dropped(breaker: Breaker) -> None:
    """What `validate` refuses is only a message."""
    breaker.replace(RecordLines, "_paid", lambda real: lambda self, value: b"")


@caught_by("passes/test_parse.py::test_a_mended_validate_takes_over_what_was_paid_for")
def refused_values_paid_again(breaker: Breaker) -> None:
    """What a mended check would accept is called again."""
    breaker.replace(PaidValues, "judge_again", lambda real: lambda self, key, digest: None)


@caught_by("passes/test_parse.py::test_a_value_counts_only_for_what_it_was_computed_from")
def refused_values_count_for_any_item(breaker: Breaker) -> None:
    """A value is taken over though its item, or its function, is another one."""

    def make(real: Function) -> Function:
        return lambda self, key, digest: self._records.checkpoint.errors.read(self._records.version, key)[2]

    breaker.replace(PaidValues, "_kept", make)


@caught_by("passes/test_parse.py::test_it_is_called_again_once_it_is_cleared")
def given_up_is_called_again(breaker: Breaker) -> None:
    """Each run pays for the refusal anew."""
    breaker.replace(Earlier, "_is_given_up", lambda real: lambda self, key: False)


# --- what was spent --------------------------------------------------------------------------------------------------


@caught_by("passes/test_notes.py::test_what_was_spent_stays_spent")
def clear_forgets_what_was_spent(breaker: Breaker) -> None:
    """The journals that are cleared say nothing of what their records cost."""
    breaker.replace(Spending, "by_kind", lambda real: lambda self: {})


@caught_by(
    "passes/test_notes.py::test_what_was_spent_stays_spent",
    "passes/test_notes.py::test_what_was_spent_is_told_by_version",
)
def compaction_forgets_what_was_spent(breaker: Breaker) -> None:
    """What superseded records cost is left out with them."""
    breaker.replace(
        check_module, "left_lines", lambda real: lambda ledger, reader, kept: lines_at(reader, kept, ledger.end)
    )


@caught_by("passes/test_notes.py::test_attempts_that_wait_are_spent")
def attempts_cost_nothing_before_the_last(breaker: Breaker) -> None:
    """What a failed attempt cost is on disk with the last one only."""
    breaker.replace(Recorder, "attempted", lambda real: nothing)


@caught_by(
    "passes/test_notes.py::test_attempts_that_wait_are_spent",
    "passes/test_notes.py::test_halves_of_a_batch_are_spent_once",
)
def attempts_cost_twice(breaker: Breaker) -> None:
    """A record does not say what lines before it have told of its cost."""
    breaker.replace(
        Recorder,
        "noted",
        lambda real: lambda self, raw, unit, notes: b'%b,"notes":%b' % (raw, json.dumps(notes).encode()),
    )


@caught_by("passes/test_notes.py::test_equal_costs_are_spent_to_the_limit")
def in_flight_costs_nothing(breaker: Breaker) -> None:
    """Calls begin as long as anything is left, whatever those in flight will cost."""
    breaker.replace(budget_module, "_reckoned", lambda real: lambda cost: 0.0)


# --- steps ------------------------------------------------------------------------------------------------------------


@caught_by("api/test_one.py::test_a_map_waits_for_one")
def steps_claim_nothing(breaker: Breaker) -> None:
    """A step calls what runs already."""
    breaker.replace(DeskStep, "claim", lambda real: lambda self, ring: True)


@caught_by("api/test_one.py::test_the_saved_result_or_a_new_one")
def steps_are_not_written(breaker: Breaker) -> None:
    """A step's result is returned, and is nowhere."""
    breaker.replace(StepDesk, "save", lambda real: lambda self, unit, outcome, steps, earlier: outcome.value)


@caught_by("api/test_one.py::test_clear_with_steps_forgets_them_too", "api/test_one.py::test_a_record_lists_its_steps")
def steps_are_not_listed(breaker: Breaker) -> None:
    """A record does not say which steps its call has taken."""
    breaker.replace(record, "with_steps", lambda real: lambda line, steps: line)


# --- the plugin -----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What came of a run.

    Attributes:
        calls: how often each function that was replaced was called.
        cases: by node id, "passed", "failed", "skipped", "error" (outside of the test itself), or "broken": the mutant
            itself raised, so that nothing was noticed.
    """

    calls: dict[str, int]
    cases: dict[str, str]


class Plugin:
    """Breaks the store before any test is collected, and reports at the end."""

    def __init__(self, breaker: Breaker, report: str) -> None:
        self._run = Run(breaker.calls, {})
        self._report = report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        outcome: str = report.outcome if report.when == "call" or report.outcome == "skipped" else "error"
        if call.excinfo is not None and outcome == "failed" and not call.excinfo.errisinstance(OSError):
            raised_in = Path(call.excinfo.traceback[-1].path)
            outcome = "broken" if raised_in == Path(__file__) else "failed"
        if report.when == "call" or report.outcome != "passed":
            self._run.cases.setdefault(item.nodeid, outcome)
        return report

    def pytest_sessionfinish(self) -> None:
        if self._report:
            Path(self._report).write_text(json.dumps(self._run._asdict()))


def pytest_configure(config: pytest.Config) -> None:
    """Break the store by $CHECKPOINT_MUTANT, if any; report to the file $CHECKPOINT_MUTANT_REPORT."""
    breaker, name = Breaker(), os.environ.get("CHECKPOINT_MUTANT")
    if name:
        MUTANTS[name].breaks(breaker)
    config.pluginmanager.register(Plugin(breaker, os.environ.get("CHECKPOINT_MUTANT_REPORT", "")))
