"""The process that worker processes are forked from: one for each pool, which begins and ends with it.

The promise: a worker is forked from a process that has one thread and this package imported, and leads a process group
of its own, which holds whatever it starts. What is sent to the driver's group (by a terminal's Ctrl-C or Ctrl-Z, or by
a scheduler) is forwarded to the workers' groups; what dies takes its group with it.

The server of multiprocessing is not used: it is the program's own, and whatever is set up for workers of ours, such as
signals that are held back while it starts, would hold for all that the program starts by it, for good.

Not on Windows, which cannot fork.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from checkpoint.execution.pipes import END, make_pipe
from checkpoint.execution.worker_process import FORWARDED, live

__all__ = ["ForkServer", "Forked", "main"]


_NUMBER = struct.Struct("!q")  # a process's id, and later its exit code
_FORK = b"f"
_GROUP_ENDS = 5.0  # seconds within which the end of a process is told that was seen to end


# --- in the driver ---------------------------------------------------------------------------------------------------


class ForkServer:
    """The server of one pool, begun with its first worker.

    Args:
        environment: the variables of its environment, and so of the workers'.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._pid = self._count = 0
        self._socket: socket.socket | None = None
        self._forked: set[Forked] = set()

    def fork(self, target: Callable[..., None]) -> Forked:
        """Begin a process that calls `target` with the ends of its pipes.

        Raises:
            OSError: it does not start.
        """
        from multiprocessing.connection import Connection, Pipe

        if self._socket is None:
            self._socket = self._begin()
        # Not a pipe for both ways: that is a socket, and reading from it wakes who waits for something else there.
        reader, theirs = Pipe(duplex=False)
        given, writer = Pipe(duplex=False)
        (life_end, life), (status, status_end) = os.pipe(), os.pipe()
        forked = Forked(make_pipe(reader, writer, waits=False), Connection(life, readable=False), status)
        try:
            sent = [given.fileno(), theirs.fileno(), life_end, status_end]
            socket.send_fds(self._socket, [_FORK], sent)
        except BaseException:
            forked.close()
            raise
        finally:
            given.close()
            theirs.close()
            os.close(life_end)
            os.close(status_end)
        self._forked.add(forked)
        self._count += 1
        try:
            forked.begin(pickle.dumps((_preparation(), pickle.dumps(target), os.getpid(), self._count)))
        except BaseException:
            forked.kill()
            forked.close()
            raise
        return forked

    def _begin(self) -> socket.socket:
        """Start the server; returns our end of the socket between us."""
        from multiprocessing import resource_tracker, spawn, util

        ours, theirs = socket.socketpair()
        with theirs:
            try:
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
                try:
                    tracker = resource_tracker.getfd()  # starts it where there is none, and then unblocks signals
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                assert tracker is not None
                settings = (_paths(), _preloaded(), sorted(map(int, mask)))
                flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
                program = os.fsdecode(spawn.get_executable())
                self._pid = os.posix_spawn(
                    program,
                    [program, *flags, "-c", _COMMAND % settings],
                    self._environment,
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                    setsigmask=mask | FORWARDED,  # it outlives what is sent to the whole group meanwhile
                )
                socket.send_fds(ours, [_FORK], [tracker])
            except BaseException:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Begin nothing more, and wait until all that was forked has ended."""
        if self._socket is not None:
            with suppress(OSError):  # it has ended
                self._socket.shutdown(socket.SHUT_RDWR)  # a process that was forked here may hold it, too
            self._socket.close()
            with suppress(ChildProcessError):  # the program has waited for all its children
                os.waitpid(self._pid, 0)
        for forked in self._forked:
            forked.let_go()
        self._forked.clear()

    def after_fork(self) -> None:
        """In a forked child: hold nothing open whose end others wait for."""
        if self._socket is not None:
            self._socket.close()
        for forked in self._forked:
            forked.pipe.close()
            forked.let_go()


# What multiprocessing.freeze_support of a frozen program runs begins so.
_COMMAND = (
    "from multiprocessing.forkserver import main; import sys; sys.path[:] = %r; "
    "from checkpoint.execution.fork_server import main; main(%r, %r)"
)


def _paths() -> list[str]:
    """Where modules are looked for, wherever the program has gone since it began."""
    from multiprocessing import process

    return [path or process.ORIGINAL_DIR or "" for path in sys.path]  # type: ignore[attr-defined]


def _preloaded() -> list[str]:
    """The modules that the program wants servers to import: `multiprocessing.set_forkserver_preload`."""
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    return [name for name in getattr(server, "_preload_modules", ()) if name != "__main__"]


def _preparation() -> dict[str, Any]:
    """What makes a process like this one, by `multiprocessing.spawn.prepare`: paths, directory, main module.

    We do not use `get_preparation_data`: it settles the start method of the whole program.
    """
    import multiprocessing
    from multiprocessing import process, util

    told: dict[str, Any] = {
        "authkey": bytes(process.current_process().authkey),
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]
        "sys_path": _paths(),
        "sys_argv": sys.argv,
        "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]
        "dir": os.getcwd(),
        "start_method": multiprocessing.get_start_method(allow_none=True),
    }
    if util._logger is not None:  # type: ignore[attr-defined]
        told["log_level"] = util._logger.getEffectiveLevel()  # type: ignore[attr-defined]
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None)  # a debugger's main module lacks __spec__
    path = getattr(main, "__file__", None)
    if name is not None:
        told["init_main_from_name"] = name
    elif path is not None:
        whole = os.path.join(process.ORIGINAL_DIR or "", path)  # type: ignore[attr-defined]
        if os.path.exists(whole):  # not so of ``python < script``
            told["init_main_from_path"] = os.path.normpath(whole)
    return told


class Forked:
    """One worker process, and our ends of its pipes.

    Args:
        pipe: for tasks and answers.
        life: a pipe's end: when it closes, the worker is killed with all that it has started.
        sentinel: can be read when the process has ended.

    Attributes:
        pid: its id, which is also that of its process group.
    """

    def __init__(self, pipe: Any, life: Any, sentinel: int) -> None:
        self.pipe, self.sentinel = pipe, sentinel
        self._life = life
        self._exitcode: int | None = None
        self._is_open = True
        self.pid = 0

    def begin(self, told: bytes) -> None:
        """Wait until it is there, and tell it what it is.

        Raises:
            OSError: the server has ended.
        """
        pid = self._told()
        if pid is None:
            raise ConnectionError("the process that forks them has ended; what it printed stands above")
        self.pid = pid
        with suppress(OSError):  # it has ended meanwhile: that is noticed as always
            self._life.send_bytes(told)

    def _told(self) -> int | None:
        number = os.read(self.sentinel, _NUMBER.size)
        return _NUMBER.unpack(number)[0] if number else None

    def exitcode(self) -> int | None:
        """How it ended; None where nobody knows: its server was killed, or it still runs."""
        self._look(_GROUP_ENDS)
        return self._exitcode

    def _look(self, timeout: float) -> bool:
        """Whether it has ended, at most so many seconds later."""
        from multiprocessing.connection import wait

        if self._exitcode is None and wait([self.sentinel], timeout):
            self._exitcode = self._told()
        return self._exitcode is not None

    def kill(self) -> None:
        """At once, and all that it has started with it."""
        if self.pid and self._is_open and not self._look(0.0):
            with suppress(ProcessLookupError, PermissionError):  # macOS: only its corpse is left
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of its pipes; if it is idle it ends, and is told to: what was forked here may hold our end of them."""
        with suppress(OSError):
            self.pipe.send(END)
        self.pipe.close()

    def let_go(self) -> None:
        """Let go of the rest: it has ended, or must."""
        if self._is_open:
            self._is_open = False
            self._life.close()
            os.close(self.sentinel)


# --- in the server ---------------------------------------------------------------------------------------------------


def main(preload: list[str], mask: list[int]) -> None:
    """Be the server: fork a worker for each request, until the driver needs no more and all have ended.

    Args:
        preload: modules to import, as far as they can be.
        mask: the signals that the driver has blocked, and its workers have, too.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what the program lets children inherit is not meant for this one
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:  # a daemon has no output: what is open must not be taken for it
        pass
    driver = socket.socket(fileno=os.dup(0))
    os.dup2(null, 0)
    os.close(null)
    _, (tracker,), _, _ = socket.recv_fds(driver, 1, 1)
    from multiprocessing import resource_tracker

    vars(resource_tracker._resource_tracker)["_fd"] = tracker
    for name in preload:
        with suppress(ImportError):
            __import__(name)
    _Server(driver, mask).serve()


class _Server:
    """Forks workers, forwards signals to their groups, and tells how they end.

    Args:
        driver: what requests come from.
        mask: the signals that workers have blocked.
    """

    def __init__(self, driver: socket.socket, mask: Iterable[int]) -> None:
        self._driver, self._mask = driver, mask
        self._children: dict[int, int] = {}  # by id: the pipe by which their end is told
        self._is_needed = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(driver, selectors.EVENT_READ)
        self._signals, self._wakes = os.pipe()
        for end in (self._signals, self._wakes):
            os.set_blocking(end, False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._before = {
            number: signal.signal(number, lambda number, frame: None)
            for number in (signal.SIGCHLD, *FORWARDED)
            if number is signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN
        }
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Do so until the driver needs no more, and all have ended."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        while self._is_needed or self._children:
            for key, _ in self._selector.select():
                if key.fileobj is self._driver:
                    self._answer()
                else:
                    for number in os.read(self._signals, 1 << 16):
                        self._take(number)

    def _take(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
            return
        stops = number == signal.SIGTSTP and self._would_stop()
        if number != signal.SIGTSTP or stops:
            for pid in self._children:
                _signal_group(pid, number)
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _would_stop(self) -> bool:
        """Whether a process of the driver's group stops at SIGTSTP: none does where no shell could have it go on."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
            os.kill(os.getpid(), signal.SIGTSTP)
            os._exit(0)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        return os.WIFSTOPPED(status)

    def _reap(self) -> None:
        """Tell of each that has ended, once what it had started is dead where it did not end well itself."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            told = self._children.pop(pid, None)
            if told is None:  # started by a module that was imported here
                continue
            exitcode = os.waitstatus_to_exitcode(status)
            if exitcode:
                _signal_group(pid, signal.SIGKILL)  # the group keeps its id while there is anybody in it
            _tell(told, exitcode)
            os.close(told)

    def _answer(self) -> None:
        """Fork, or see that the driver needs no more."""
        try:
            asked, given, _, _ = socket.recv_fds(self._driver, 1, 4)
        except ConnectionError:
            asked = b""
        if not asked:
            self._is_needed = False
            self._selector.unregister(self._driver)
            return
        *pipes, told = given
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)  # a child must not do what the server does of them
        pid = os.fork()
        if not pid:
            self._be_worker(pipes, told)
        _lead_group(pid)
        self._children[pid] = told
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        _tell(told, pid)
        for end in pipes:
            os.close(end)

    def _be_worker(self, pipes: list[int], told: int) -> None:
        """In the child: hold nothing of the server's, and live as a worker; never return."""
        exitcode = 1
        try:
            _lead_group(0)
            signal.set_wakeup_fd(-1)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._driver.close()
            for end in (self._signals, self._wakes, told, *self._children.values()):
                os.close(end)
            exitcode = live(*pipes, mask=self._mask)
        except SystemExit:  # the main module exits when it is imported
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with suppress(Exception):
                sys.stderr.flush()
            os._exit(exitcode)


def _lead_group(pid: int) -> None:
    """Whoever comes first, the server or its child: the group is there before anybody is told of it."""
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _tell(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the driver has gone
        os.write(pipe, _NUMBER.pack(number))
