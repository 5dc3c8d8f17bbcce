"""What is computed once is safe to ask for in a child, whatever the threads of the parent were computing."""

from __future__ import annotations

import signal
import threading

from tensordb.forks import computed_once

from .programs import in_forked_child


class Slow:
    """Computes when it is let."""

    def __init__(self, let: threading.Event) -> None:
        self.begun, self.let, self.count = threading.Event(), let, 0

    @computed_once
    def value(self) -> int:
        """The value."""
        self.begun.set()
        assert self.let.wait(60)
        self.count += 1
        return self.count


def test_a_value_is_computed_once_and_has_its_documentation() -> None:
    let = threading.Event()
    let.set()
    slow = Slow(let)
    assert (slow.value, slow.value, slow.count) == (1, 1, 1)
    assert Slow.value.__doc__ == "The value."


def test_a_child_computes_although_a_thread_of_the_parent_was_computing() -> None:
    let, free = threading.Event(), threading.Event()
    free.set()
    slow = Slow(let)
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    assert slow.begun.wait(60)

    def body() -> None:
        signal.alarm(30)
        assert Slow(free).value == 1

    try:
        in_forked_child(body)
    finally:
        let.set()
        thread.join()
    assert slow.value == 1
