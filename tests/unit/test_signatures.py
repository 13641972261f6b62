# SPDX-License-Identifier: GPL-3.0-or-later
"""The signatures: each has lines that it matches, a code that is known, and a bound on its cost."""

from __future__ import annotations

import ast
import time
from collections import Counter
from pathlib import Path

import pytest

from rescue_agent.diagnose import LogScanner, make_matcher
from rescue_agent.diagnose.codes import all_codes, causes_of
from rescue_agent.diagnose.logs.signature import (
    Signature,
    builtin_signatures,
    combine,
    compile_patterns,
    literals_of,
    read_signatures,
)
from rescue_agent.diagnose.logs.text import message_of
from rescue_agent.errors import DocumentError

BUILTIN = builtin_signatures()
DIAGNOSE = Path(__file__).parents[2] / "rescue_agent/diagnose"
LABELS = """
init-missing init-missing-library init-not-executable init-failed root-device-not-found
initramfs-missing-driver initramfs-missing-or-corrupt kernel-modules-missing root-fs-unsupported
network-root-unavailable fstab-bad-entry ext-fs-corrupt xfs-fs-corrupt btrfs-fs-corrupt fs-size-mismatch
partition-destroyed disk-failing storage-link-or-controller volume-group-unavailable md-array-not-assembled
luks-not-unlocked grub-modules-missing grub-wrong-partition grub-kernel-not-found secure-boot-rejected
selinux-misconfigured auth-config-broken package-state-broken disk-full memory-exhausted
third-party-module-crash kernel-fault hardware-machine-check kernel-hang
"""
TAXONOMY = frozenset(LABELS.split())
LINE_S = 0.5
"""A line of 2000 characters made to be slow takes a few hundredths of a second; ten times that fails."""


def ids(signatures: tuple[Signature, ...]) -> list[str]:
    return [s.id for s in signatures]


@pytest.mark.parametrize("signature", BUILTIN, ids=ids(BUILTIN))
def test_examples_are_found_in_a_log(signature: Signature) -> None:
    """Through the prefilter and the whole scanner, not by the pattern alone."""
    for line in signature.examples:
        scanner = LogScanner(make_matcher())
        scanner.feed(f"a line before\n{line}\na line after\n".encode())
        hits = [hit for boot in scanner.finish(source="x").boots for hit in boot.hits]
        own = [hit for hit in hits if hit.signature == signature.id]
        assert [hit.line for hit in own] == [2], line


@pytest.mark.parametrize("signature", BUILTIN, ids=ids(BUILTIN))
def test_counterexamples_do_not_match(signature: Signature) -> None:
    for line in signature.counterexamples:
        assert not any(p.search(message_of(line)) for p in compile_patterns(signature)), line


@pytest.mark.parametrize("signature", BUILTIN, ids=ids(BUILTIN))
def test_no_line_takes_long(signature: Signature) -> None:
    starts = [message_of(example)[:n] for example in signature.examples for n in (20, 40)]
    for text, pattern in zip(signature.patterns, compile_patterns(signature), strict=True):
        for seed in (*literals_of(text), *starts):
            for line in (seed * 2000, seed + " " * 2000, seed + "1" * 2000, seed + ": " * 1000):
                begun = time.perf_counter()
                pattern.search(line[:2000])
                assert time.perf_counter() - begun < LINE_S, (text, seed)


def test_ids_are_unique() -> None:
    assert [i for i, n in Counter(ids(BUILTIN)).items() if n > 1] == []


def test_every_code_has_a_page_and_every_cause_a_signature() -> None:
    spoken_for = {s.code for s in BUILTIN if s.code}
    assert spoken_for <= set(all_codes())
    assert spoken_for >= TAXONOMY


def test_every_finding_of_the_disk_has_a_page() -> None:
    """Every code that stands as such in a call that makes a finding."""
    made = {
        node.args[0].value
        for file in DIAGNOSE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "make_finding"
        if isinstance(node.args[0], ast.Constant)
    }
    assert "probe-failed" in made
    assert made <= set(all_codes())


def test_conditions_name_what_exists() -> None:
    tokens = {s.id for s in BUILTIN} | {mark for s in BUILTIN for mark in s.marks}
    asked = {(s.id, word) for s in BUILTIN for word in (*s.needs, *s.unless)}
    assert {pair for pair in asked if pair[1] not in tokens} == set()


def test_every_page_is_whole() -> None:
    for code, page in all_codes().items():
        assert page.what and page.remedy and page.check, code
        assert page.title or code not in TAXONOMY, code
        assert set(page.explained_by) <= set(all_codes()), code
        assert code not in causes_of(code)


GOOD = """
[[signature]]
id = "own"
code = "init-failed"
patterns = ['our agent gave up: (?P<why>.+)']
source = "our agent"
examples = ["our agent gave up: no licence"]
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[signature]\n", "not a TOML file"),
        ("[other]\n", "only [[signature]] entries"),
        (GOOD.replace("our agent gave up: (?P<why>.+)", "("), "signature 1 (own)"),
        (GOOD.replace("our agent gave up: (?P<why>.+)", ".*"), "no fixed text"),
        (GOOD.replace('examples = ["our', 'examples = ["their'), "its own example"),
        (GOOD.replace('examples = ["our agent gave up: no licence"]', "examples = []"), "no example"),
        (GOOD.replace('code = "init-failed"', ""), "neither a code nor a mark"),
        (GOOD.replace('source = "our agent"', "weight = 3"), "weight"),
    ],
)
def test_a_bad_signature_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_signatures(text, "own.toml")
    assert "own.toml" in str(caught.value)
    assert says in str(caught.value)


def test_own_signatures_replace_those_of_their_id() -> None:
    own = read_signatures(GOOD.replace('"own"', '"panic"'), "own.toml")
    both = {s.id: s for s in combine(BUILTIN, own)}
    assert both["panic"].source == "our agent"
    assert len(both) == len(BUILTIN)


@pytest.mark.parametrize(
    ("pattern", "literals"),
    [
        ("Kernel panic", {"kernel panic"}),
        (r"dev (\w+), sector", {", sector"}),
        ("(?:abcd|efgh)+xy", {"abcd", "efgh"}),
        ("failed to (?:mount it|fork off)", {"failed to mount it", "failed to fork off"}),
        ("(?:long words|never)?needed", {"needed"}),
        ("a{3}bcd", {"bcd"}),
    ],
)
def test_literals_of_a_pattern(pattern: str, literals: set[str]) -> None:
    assert set(literals_of(pattern)) == literals
