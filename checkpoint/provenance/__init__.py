"""By which code and values results were computed, and how those that are there now differ.

The promise: comments and formatting do not count; one code with the same values has one digest in every process; and
nothing of the user's is called.

Interface: `fingerprint.fingerprint`, `version.version_of`, `drift.Lineage`, `agreement.agreement_of`.
May import: values, storage, catalog.
"""
