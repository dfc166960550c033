"""A checkpoint in an object store: what is there is brought here, and what is written here is brought there.

The promise: saving never waits for the store; nobody overwrites what another session wrote; no line is lost; whoever
waits for a store that does not answer is told.

Interface: `replication.replica_of`, `urls.place_of`, `local_copy.LocalCopy`, `uploader.Uploader`.
May import: storage.
"""
