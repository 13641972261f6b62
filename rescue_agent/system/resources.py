# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run holds and must give back: mounts, loop devices, image exports, storage layers.

Each thing is recorded before it is taken, when it is held, and when it is released, so that
``rescue-agent cleanup`` can finish after SIGKILL. Release goes in reverse order, one thing at a
time, and goes on after a failure.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rescue_agent.errors import RescueError
from rescue_agent.model.run import Acquired

Kind = Literal["mount", "loop", "export", "activation", "file"]


def now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Resource:
    """One thing that is being taken. Fill in what becomes known, then it is held."""

    def __init__(self, key: str, kind: Kind, what: str, release_argv: tuple[str, ...], source: str) -> None:
        self.key = key
        self.kind = kind
        self.what = what
        self.release_argv = release_argv
        self.source = source
        self.pid = 0
        self.release: Callable[[], None] | None = None
        """What gives it back; set by the taker once the effect has happened."""


class Resources:
    """The stack of what is held. ``record`` receives every change (the journal)."""

    def __init__(self, record: Callable[[Acquired], None] | None = None) -> None:
        self._record = record or (lambda _: None)
        self._held: list[Resource] = []
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def taking(
        self, kind: Kind, what: str, release_argv: tuple[str, ...] = (), *, source: str = ""
    ) -> Iterator[Resource]:
        """Record the intent, let the block take the thing and set ``release``, record that it is held.

        When the block fails before it set ``release``, nothing is held.
        """
        with self._lock:
            self._count += 1
            number = self._count
        resource = Resource(f"{kind}-{number}", kind, what, release_argv, source)
        self._note(resource, "intent")
        try:
            yield resource
        except BaseException:
            if resource.release is None:
                self._note(resource, "released")
            else:
                self._held.append(resource)
            raise
        if resource.release is None:
            raise ValueError(f"{what} was taken without a way to release it")
        self._held.append(resource)
        self._note(resource, "held")

    def mark(self) -> int:
        """Return a mark for ``release_to``: what is taken from now on lies above it."""
        return len(self._held)

    def release_to(self, mark: int = 0) -> tuple[str, ...]:
        """Release everything above ``mark``, newest first; return a sentence for each that would not."""
        leaks = []
        while len(self._held) > mark:
            resource = self._held.pop()
            assert resource.release is not None
            try:
                resource.release()
            except (RescueError, OSError) as error:
                leaks.append(f"{resource.what}: {error}")
                self._note(resource, "leaked")
            else:
                self._note(resource, "released")
        return tuple(leaks)

    def _note(self, resource: Resource, state: Literal["intent", "held", "released", "leaked"]) -> None:
        self._record(
            Acquired(
                time=now(),
                key=resource.key,
                kind=resource.kind,
                state=state,
                what=resource.what,
                release=resource.release_argv,
                source=resource.source,
                pid=resource.pid,
            )
        )
