"""One pass over items, where what is on disk and what is run meet: admit → engine → settle.

The promise: what has a result is not run again; what finished is saved when it finishes.

Interface: `pipeline.Pass`, `plan.make_plan`.
May import: values, storage, catalog, provenance, execution.policies.
"""
