"""Checkpoints by name: where they are, the shards of one read as one, and one version of it with its values.

The promise: what is loaded is the same as what was saved, or an error that names the line; the journals of all shards
read as one.

Interface: `registry.open_checkpoint`, `view.VersionView`, `locate.locate`, `shards.Shard`, `paths`, `decisions`.
May import: values, storage, remote.
"""
