"""Values, items and keys as text that is the same in every process.

The promise: what is decoded is what was encoded, type by type; equal items have one digest, equal keys one identity. No
code that a file names is run.

Interface: `codec.Codec`, `canonical.canonical`, `keys` (what names an item), `inputs.items_of`.
May import: errors, clock, outcomes.
"""
