"""A checkpoint seen from outside: how far its job is, why items fail, its results as tables, a report.

The promise: it only reads, beside whoever writes; what is an estimate says so.

Interface: `status.survey`, `causes.causes_of`, `tables.Table`, `history.gather`, `report.write_report`.
May import: values, storage, catalog, maintenance.
"""
