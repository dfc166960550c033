"""Journals, their indexes, and the lock: bytes on a disk.

The promise: what `append` has returned for is there at the next opening, and is found by its key; who only reads never
waits; whoever writes holds the lock; no byte is destroyed that could not be read.

Interface: `store.Store` and its `writer.Writer`, which ask a `host.Host` and a `replica.Replica`; whoever only reads
asks a `source.RecordSource`. Below: `keyed_log.KeyedLog` (`journal.Journal` and `index.Index`), `record.Record`.
May import: values.
"""
