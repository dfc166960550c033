"""One pass over items, where what is on disk and what is run meet: admit → engine → settle.

The promise: what has a result is not run again; what finished is saved when it finishes.

Interface: `pipeline.Pass`, `settings.PassSettings`, `plan.make_plan`, `failures.failure_of`.
May import: values, storage, catalog, provenance, execution.policies, execution.caller.
"""
