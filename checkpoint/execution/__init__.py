"""How the function is called: serially, by threads, tasks, processes, or somebody's executor; with retries and rates.

The promise: a call's outcome is an answer, never an exception; what finishes is settled at once, whoever consumes it.
Nothing here knows of keys, disks or bars.

Interface: `interfaces` (`PassPort`, `Workers`), `policies`, and the engines `serial`, `concurrent`, `asynchronous`.
May import: errors, clock, outcomes.
"""
