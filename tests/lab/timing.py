# SPDX-License-Identifier: GPL-3.0-or-later
"""Means of the benchmarks: the best of several runs, and a table of ratios within one run."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Timed:
    """Wall-clock seconds of several runs of one thing."""

    name: str
    runs: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.runs)


@dataclass(frozen=True)
class Memory:
    """The peak memory of a command and its children, in bytes of resident set."""

    largest_process: int
    agent_process: int
    whole_tree: int
    """Of all its processes at one moment; pages that they share count once for each."""
    largest_name: str
    seconds: float
    exit_code: int


def timed(name: str, action: Callable[[], object], *, runs: int = 3, warm_up: int = 1) -> Timed:
    """Run ``action`` a few times to warm the caches, then measure it."""
    for _ in range(warm_up):
        action()
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return Timed(name, tuple(found))


def table(title: str, ours: Timed, peers: Sequence[Timed], aim: str) -> str:
    """Return the times with the ratio of ours to each peer."""
    lines = [title, f"  {ours.name:<58} {ours.median_s:7.2f} s"]
    for peer in peers:
        ratio = ours.median_s / peer.median_s if peer.median_s else float("inf")
        lines.append(f"  {peer.name:<58} {peer.median_s:7.2f} s   ratio {ratio:5.2f}")
    return "\n".join([*lines, f"  aim: {aim}"])


def peak_memory(argv: Sequence[str], environment: dict[str, str] | None = None) -> Memory:
    """Run a command and watch the memory of all its processes until it ends."""
    start = time.perf_counter()
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment or dict(os.environ),
    )
    peaks = {"largest": 0, "agent": 0, "tree": 0}
    names = [""]
    done = threading.Event()

    def watch() -> None:
        root = psutil.Process(process.pid)
        while not done.wait(SAMPLE_S):
            try:
                tree = [root, *root.children(recursive=True)]
            except psutil.Error:
                return
            total = 0
            for member in tree:
                try:
                    size, name = member.memory_info().rss, member.name()
                except psutil.Error:
                    continue
                total += size
                if member.pid == root.pid:
                    peaks["agent"] = max(peaks["agent"], size)
                if size > peaks["largest"]:
                    peaks["largest"], names[0] = size, name
            peaks["tree"] = max(peaks["tree"], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    return Memory(
        peaks["largest"], peaks["agent"], peaks["tree"], names[0], time.perf_counter() - start, code
    )
