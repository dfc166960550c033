"""What a checkpoint's files are worth, and mending them: check, repair, compact.

The promise: nothing that a reader can find changes, and not a byte that could not be read is destroyed.

Interface: `check.check`, `repair.repair`, `compact.compact`.
May import: values, storage, catalog.
"""
