"""An interpreter that has imported everything and forks programs off itself, which saves each of them seconds.

It opens no database and starts no thread, so what it forks is as a fresh interpreter that has just imported tensordb,
and ends as one. Each program has pipes of its own. Between it and the nursery stands a process that waits for it and
tells how it ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PIPES = 5


class Program:
    """A program that runs, as `subprocess.Popen` has it: text, a line at a time.

    Attributes:
        pid: Its process.
        returncode: How it ended, None while nobody has waited for that.
    """

    def __init__(self, code: str, arguments: list[str]) -> None:
        pipes = [os.pipe() for _ in range(_PIPES)]
        given, orders, out, complaints, told = pipes
        theirs = [given[0], orders[0], out[1], complaints[1], told[1]]
        socket.send_fds(_nursery(), [b"!"], theirs)
        for each in theirs:
            os.close(each)
        with os.fdopen(given[1], "w") as program:
            json.dump([code, arguments], program)
        self.stdin = os.fdopen(orders[1], "w", buffering=1)
        self.stdout, self.stderr, self._told = (os.fdopen(each[0]) for each in (out, complaints, told))
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def wait(self) -> int:
        """Return how it ended; of a signal the negative number."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(int(self._told.readline()))
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def communicate(self, answer: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Give it its last input, and return what else it said and complained of once it has ended."""
        said = ["", ""]

        def listen(number: int, stream: object) -> None:
            said[number] = stream.read()  # type: ignore[attr-defined]

        streams = (self.stdout, self.stderr)
        listeners = [threading.Thread(target=listen, args=each) for each in enumerate(streams) if not each[1].closed]
        for listener in listeners:
            listener.start()
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.stdin.write(answer)
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        for listener in listeners:
            listener.join(timeout)
        hangs = any(listener.is_alive() for listener in listeners)
        if hangs:
            self.kill()
            for listener in listeners:
                listener.join()
        self.wait()
        for stream in (*streams, self._told):
            stream.close()
        if hangs:
            raise subprocess.TimeoutExpired("a program of the nursery", timeout or 0, *said)
        return said[0], said[1]


@cache
def _nursery() -> socket.socket:
    """Return the line to the nursery of this process, which ends with it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-W", "error", "-m", "tests.faults.nursery", str(theirs.fileno())]
    null = subprocess.DEVNULL
    with theirs:
        process = subprocess.Popen(command, stdin=null, stdout=null, pass_fds=[theirs.fileno()], cwd=_ROOT)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def fork() -> int:
    """Fork although there are threads, be they only of a library, which newer Pythons warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child and "torch" in sys.modules:
        # GNU's OpenMP waits for ever in a child whose parent has used its threads: torch is to use none there.
        sys.modules["torch"].set_num_threads(1)
    return child


def _serve(line: socket.socket) -> str:
    """Fork whenever asked; return, in what was forked, the code that it is to run, its pipes and arguments in place."""
    while True:
        asked, pipes, _, _ = socket.recv_fds(line, 1, _PIPES)
        with contextlib.suppress(ChildProcessError):  # those that have ended, so that their processor time is counted
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not asked:
            os._exit(0)
        if not fork():
            line.close()
            return _begin(*pipes)
        for each in pipes:
            os.close(each)


def _begin(given: int, orders: int, out: int, complaints: int, told: int) -> str:
    with os.fdopen(given) as program:
        code, arguments = json.load(program)
    if child := fork():
        for each in (orders, out, complaints):
            os.close(each)
        os.write(told, b"%d\n" % child)
        os.write(told, b"%d\n" % os.waitpid(child, 0)[1])
        os._exit(0)
    os.close(told)
    for number, each in enumerate((orders, out, complaints)):
        os.dup2(each, number)
        os.close(each)
    sys.argv[:] = ["-c", *arguments]
    return str(code)


if __name__ == "__main__":
    for name in ("pandas", "tensordb", "tests.faults.crowd_member", "tests.faults.killed_writer"):
        importlib.import_module(name)
    # In the namespace of `__main__`, which is torn down last, as that of any script.
    exec(compile(_serve(socket.socket(fileno=int(sys.argv[1]))), "<string>", "exec", dont_inherit=True), globals())
