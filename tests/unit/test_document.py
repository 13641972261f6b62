# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents come back as they went, strange ones are refused, and nothing from a disk is shown raw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescue_agent.errors import DocumentError
from rescue_agent.model.document import decode, encode, json_schema, printable
from rescue_agent.model.facts import Facts, Rescue
from rescue_agent.model.operation import Bind, Operation, Run
from rescue_agent.model.plan import Plan, Policy, Step


def test_the_schema_stands_first() -> None:
    facts = Facts(agent_version="1", created="2026-01-01T00:00:00Z", rescue=Rescue())
    assert encode(facts).lstrip(b"{\n ").startswith(b'"schema": "rescue-agent/facts/1"')
    assert decode(encode(facts), Facts) == facts


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"schema": "rescue-agent/facts/2"}',
        b'{"schema": "rescue-agent/plan/1"}',
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        decode(data, Facts)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(DocumentError, match="strange"):
        decode(b'{"op": "run", "argv": ["true"], "strange": 1}', Run)


def test_operations_keep_their_kind() -> None:
    operations: tuple[Operation, ...] = (Run(argv=("true",)), Bind(source="/dev", path="/dev"))
    step = Step(id="s", stage="packages", title="t", why="w", risk="read-only", operations=operations)
    plan = Plan(agent_version="1", created="now", policy=Policy(), steps=(step,))
    assert decode(encode(plan), Plan).steps[0].operations == operations


def test_the_json_schema_names_every_operation() -> None:
    tags = {
        definition["properties"]["op"]["enum"][0]
        for definition in json_schema(Plan)["$defs"].values()
        if "op" in definition.get("properties", {})
    }
    assert tags == {kind.__struct_config__.tag for kind in Operation.__args__}


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain label", "plain label"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines", "two\\x0alines"),
        ("a\u202eb", "a\\u202eb"),
        ("grün", "grün"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable_shows_what_was_there(raw: str, shown: str) -> None:
    assert printable(raw) == shown
