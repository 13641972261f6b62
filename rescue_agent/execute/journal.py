# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a run: one JSON line for each thing that is about to happen or has happened.

Append-only. A record is on the disk (fsync) before ``append`` returns, so an intent always precedes
its effect, whatever ends the machine. The run's folder holds, beside ``journal.jsonl``, the former
state of changed files (``saved/``), undo files of checkers (``undo/``), downloads (``archives/``),
files that are shown inside the patient (``bind/``) and scratch files (``held/``, ``unpack/``).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rescue_agent.errors import DocumentError, RescueError
from rescue_agent.execute.progress import without_progress
from rescue_agent.model.facts import Facts
from rescue_agent.model.run import Acquired, CommandRecord, Looked, Record, RunBegan, RunEnded, StepRecord

JOURNAL_NAME = "journal.jsonl"
FOLDERS = ("saved", "undo", "archives", "bind", "held", "unpack")
OUTPUT_LIMIT = 64 << 10
"""Characters of a command's output that are kept, of stdout and stderr each."""

_MAX_LINE_BYTES = 64 << 20


class Journal:
    """The open journal of one run. Thread-safe."""

    def __init__(self, directory: Path, descriptor: int) -> None:
        self.directory = directory
        self._fd = descriptor
        self._size = os.fstat(descriptor).st_size
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self.last_look = ""
        """Name of the newest facts document of the run, beside the journal."""
        self.steps: dict[str, str] = {}
        """What became of each step so far, by its id: the newest ``StepRecord.state``."""

    @classmethod
    def create(cls, directory: Path) -> Journal:
        """Make the run's folder (mode 0700, for root alone) and start its journal.

        Raises RescueError when it cannot be written, or when there is a journal already.
        """
        try:
            make_run_folders(directory)
            descriptor = os.open(
                directory / JOURNAL_NAME,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC,
                0o600,
            )
            _sync_folder(directory)
        except OSError as error:
            raise RescueError(
                f"the journal cannot be kept in {directory}: {error.strerror}",
                hint="nothing is done without one; make room, or name another folder with RESCUE_AGENT_STATE",
            ) from error
        return cls(directory, descriptor)

    @classmethod
    def reopen(cls, directory: Path) -> Journal:
        """Open the journal of a run that has ended, to append to it; a torn last line is cut off."""
        path = directory / JOURNAL_NAME
        whole = sum(len(line) for line in _whole_lines(path))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(descriptor, whole)
        return cls(directory, descriptor)

    def append(self, record: Record) -> None:
        """Write one record, synced to the disk except for the mere log of a command.

        A line that could not be written whole is taken back. Raises RescueError then: what is not
        in the journal must not be done.
        """
        if isinstance(record, CommandRecord):
            record = msgspec.structs.replace(
                record,
                stdout=bounded(without_progress(record.stdout)),
                stderr=bounded(without_progress(record.stderr)),
            )
        line = self._encoder.encode(record) + b"\n"
        with self._lock:
            if isinstance(record, Looked):
                self.last_look = record.file
            elif isinstance(record, StepRecord):
                self.steps[record.step] = record.state
            try:
                _write_all(self._fd, line)
                self._size += len(line)
                if not isinstance(record, CommandRecord):
                    os.fdatasync(self._fd)
            except OSError as error:
                try:
                    os.ftruncate(self._fd, self._size)
                except OSError:
                    pass  # the reader drops a torn last line as well
                if isinstance(record, CommandRecord):
                    return  # the next intent fails loudly
                raise RescueError(
                    f"the journal {self.directory / JOURNAL_NAME} cannot be written: {error.strerror}",
                    hint="the run stops here, before anything is done that would not be on record",
                ) from error

    def write_file(self, name: str, data: bytes) -> Path:
        """Put a document beside the journal, whole or not at all; return its path."""
        path, temporary = self.directory / name, self.directory / f".{name}.part"
        with open(temporary, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(self.directory)
        return path

    def close(self) -> None:
        """Close the file; the journal takes no more records."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Remove the folder of a run that changed nothing, with all that is in it."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def make_run_folders(directory: Path) -> None:
    """Make a run's folder and the folders in it, open to nobody else."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    for name in FOLDERS:
        (directory / name).mkdir(exist_ok=True, mode=0o700)


def bounded(text: str, limit: int = OUTPUT_LIMIT) -> str:
    """Return ``text``, or its first quarter and its last part when it is longer than ``limit``."""
    if len(text) <= limit:
        return text
    head = limit // 4
    tail = limit - head
    return f"{text[:head]}\n[{len(text) - limit} characters left out]\n{text[-tail:]}"


def read_journal(path: str | Path) -> tuple[Record, ...]:
    """Return the records of a journal, oldest first.

    A last line that was cut off when the machine stopped is dropped: what it told of had not
    begun. Anything else that cannot be read raises DocumentError.
    """
    decoder = msgspec.json.Decoder(Record)
    records: list[Record] = []
    try:
        for number, line in enumerate(_whole_lines(Path(path)), 1):
            try:
                records.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DocumentError(
                    f"{path}, line {number}: not a record that this agent can read: {error}",
                    hint="it may be damaged, or written by another version of the agent",
                ) from error
    except OSError as error:
        raise DocumentError(f"the journal {path} cannot be read: {error.strerror}") from error
    return tuple(records)


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
            yield line


def unreleased(records: tuple[Record, ...]) -> tuple[Acquired, ...]:
    """Return what a run took and did not give back, newest first; one entry for each thing."""
    last: dict[str, Acquired] = {}
    for record in records:
        if isinstance(record, Acquired):
            last.pop(record.key, None)
            last[record.key] = record
    return tuple(a for a in reversed(last.values()) if a.state != "released")


def has_ended(records: tuple[Record, ...]) -> bool:
    """Return whether the run came to its own end, or was finished by a cleanup."""
    return any(isinstance(record, RunEnded) for record in records)


def beginning(records: tuple[Record, ...]) -> RunBegan | None:
    """Return the record that the run began with, or None when it never got that far."""
    return next((record for record in records if isinstance(record, RunBegan)), None)


def device_identities(directory: Path, file: str) -> dict[str, str]:
    """Return path → identity (``BlockDevice.id``) of the devices in a facts document of the run.

    Empty when there is no such document or it cannot be read.
    """
    if not file or "/" in file:
        return {}
    try:
        facts = msgspec.json.decode((directory / file).read_bytes(), type=Facts)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return {device.path: device.id for device in facts.devices}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
