"""Workers of an executor that somebody else made: any of PEP 3148."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from typing import Any

from checkpoint.errors import BrokenWorkers, FunctionChanged, WorkerDied, quote, quote_error
from checkpoint.execution.answers import Answer, Fatal
from checkpoint.execution.call import Call, Shipped
from checkpoint.execution.interfaces import Broken, Died, Report, Task, Unsent, inputs_of

__all__ = ["ExecutorWorkers"]


class ExecutorWorkers:
    """Any `concurrent.futures.Executor`. It stays its owner's: it is not shut down here.

    Args:
        call, report: as for threads.
        executor: what calls are submitted to.
    """

    settles = False
    shares_blame = True

    def __init__(self, call: Call, executor: Executor, report: Report) -> None:
        self._call = call
        self._executor = executor
        self._report = report
        self._futures: set[Future[Any]] = set()

    def start(self, task: Task) -> None:
        """Submit the task's calls."""
        try:
            future = self._executor.submit(_many, self._call, inputs_of(task, batch=self._call.batch))
        except Exception as error:
            self._report([(task, Broken(_broke(self._executor, error)))])
            return
        self._futures.add(future)
        future.add_done_callback(lambda future: self._done(task, future))

    def _done(self, task: Task, future: Future[Any]) -> None:
        self._futures.discard(future)
        try:
            answers: Any = future.result()
        except FunctionChanged as error:
            answers = Broken(error)
        except (BrokenExecutor, CancelledError, BrokenWorkers) as error:
            answers = Broken(_broke(self._executor, error))
        except WorkerDied as error:  # of it, and the executor has others
            answers = Died(error.exitcode, str(error))
        except Exception as error:  # what it was given, or gave, could not travel
            answers = Unsent(error)
        except BaseException as error:
            answers = [Fatal(error, is_of_call=False)]
        if not isinstance(answers, (list, bytes, Broken, Died, Unsent)) or answers == []:
            answers = Broken(_broke(self._executor, TypeError(f"it gave {quote(answers)} for a call")))
        self._report([(task, answers)])

    def close(self) -> None:
        """Cancel what has not begun."""
        for future in list(self._futures):
            future.cancel()


def _many(call: Call | Shipped, given: list[Any]) -> list[Answer] | bytes:
    return call.many(given)


def _broke(executor: Executor, error: BaseException) -> BrokenWorkers:
    return BrokenWorkers(
        f"the executor {quote(executor)} takes no more work: {quote_error(error)}. What it was at is not marked as "
        "failed: run the same line again with a fresh one"
    )
