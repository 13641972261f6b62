# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as one POSIX script that does the same work without the agent.

The commands are those of ``model.rendering``. Around them stands what the agent does by itself: a
private mount namespace, the check that the disks are still the same, saved copies, and a release in
reverse order whatever happens. shellcheck accepts the result without exceptions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rescue_agent.model.operation import (
    Activate,
    Bind,
    Mount,
    Operation,
    RemoveFile,
    Run,
    SetMetadata,
    Symlink,
    Unpack,
    WriteFile,
)
from rescue_agent.model.plan import STAGES, Plan, Stage, Step
from rescue_agent.model.rendering import (
    comment_lines,
    describe,
    flat_name,
    is_held,
    on_rescue,
    quote,
    release_lines,
    unpack_files,
    unpack_lines,
)
from rescue_agent.ui.shell_functions import functions_called_in

WORK_FOLDERS = ("archives", "bind", "held", "saved", "undo", "unpack")


def plan_shell(plan: Plan) -> str:
    """Return the script. It ends with 0 when all steps were done, 1 when one failed, 3 when it refuses
    to begin, 4 when something could not be released, 129, 130 or 143 when it was interrupted."""
    if plan.refused:
        return _refusing(plan)
    if not plan.steps:
        return "\n".join([*_head(plan), "printf 'There is nothing to do.\\n'"]) + "\n"
    body = _Body(plan)
    main = [*_entry(plan), *body.disks(), *body.steps(), *_last_words(plan)]
    functions = functions_called_in("\n".join([*main, *body.release_function()]))
    text = [
        *_head(plan),
        *functions,
        "",
        *body.release_function(),
        "",
        *main,
    ]
    return "\n".join(text) + "\n"


# --- parts --------------------------------------------------------------------------------------


def _head(plan: Plan) -> list[str]:
    about = plan.system_name or ", ".join(d.device for d in plan.disks) or "no disk"
    lines = ["#!/bin/sh"]
    lines += _comment(
        f"Repair plan for {about}, made by rescue-agent {plan.agent_version} at {plan.created}."
    )
    lines += _comment(
        "Does the work of the plan without the agent: run it as root on the rescue system. It refuses"
        " when a disk was changed since. Commands have no time limit here; Ctrl-C stops and releases."
    )
    if plan.findings:
        lines += ["#", "# What is wrong:"]
        lines += [line for f in plan.findings for line in _comment(f"- {f.title} ({f.subject})", "  ")]
    if plan.refusals:
        lines += ["#", "# What this does not do:"]
        lines += [line for r in plan.refusals for line in _comment(f"- {r.reason} Instead: {r.advice}", "  ")]
    if plan.deferred:
        lines += ["#", "# What can be planned only after this:"]
        lines += [line for d in plan.deferred for line in _comment(f"- {d.stage}: {d.reason}", "  ")]
    return [*lines, "", "set -eu", ""]


def _refusing(plan: Plan) -> str:
    lines = [*_head(plan)]
    for refusal in plan.refusals:
        lines.append(f"printf '%s\\n' {quote(refusal.reason)} {quote(refusal.advice)} >&2")
    return "\n".join([*lines, "exit 3"]) + "\n"


def _entry(plan: Plan) -> list[str]:
    tools = " ".join(quote(tool) for tool in _tools(plan))
    return [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL=C.UTF-8",
        "export PATH LC_ALL",
        '[ "$(id -u)" -eq 0 ] || stop 3 "only root can do this"',
        "# In a mount namespace of its own not even SIGKILL leaves a mount behind.",
        'if [ "${RESCUE_AGENT_NAMESPACE-}" != "$$" ]; then',
        '    [ -f "$0" ] || stop 2 "save this script to a file and run that"',
        "    RESCUE_AGENT_NAMESPACE=$$",
        "    export RESCUE_AGENT_NAMESPACE",
        '    exec unshare -m --propagation private -- /bin/sh "$0" "$@"',
        "fi",
        f"for tool in {tools}; do",
        '    command -v "$tool" > /dev/null || stop 3 "$tool is not installed on this rescue system"',
        "done",
        "exec < /dev/null",
        "",
        f"root={quote(plan.root)}",
        f"work={quote(plan.policy.work_dir)}",
        "held=",
        "attached=",
        "exports=",
        "leaked=no",
        "step=",
        "done_steps=",
        "failed=",
        "trap finish EXIT",
        "trap 'exit 129' HUP",
        "trap 'exit 130' INT",
        "trap 'exit 143' TERM",
        "",
        "# The same lock as the agent's: two repairs never work at the same time.",
        "umask 077",
        "mkdir -p -- /run/rescue-agent",
        "exec 9>> /run/rescue-agent/lock",
        'flock -n 9 || stop 3 "another repair is at work"',
        f'for folder in {" ".join(WORK_FOLDERS)}; do mkdir -p -- "$work/$folder"; done',
        "umask 022",
        "",
    ]


def _last_words(plan: Plan) -> list[str]:
    lines = ['if [ -n "$failed" ]; then', "    printf 'Not done:%s\\n' \"$failed\" >&2", "    exit 1", "fi"]
    if plan.deferred:
        lines.append("printf 'Done. More can be planned now: run \"rescue-agent plan\" again.\\n'")
    else:
        lines.append("printf 'Done. \"rescue-agent diagnose\" proves it.\\n'")
    return lines


class _Body:
    """The steps; counts what is held, so that each gets its number in ``release``."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = plan.root
        self._work = plan.policy.work_dir
        self._releases: list[list[str]] = []

    def disks(self) -> list[str]:
        lines = [
            "attach " + " ".join(quote(word) for word in (d.device, d.image, d.image_format or "raw"))
            for d in self._plan.disks
            if d.image
        ]
        lines += [
            f"same_disk {quote(d.device)} {d.size_bytes} {quote(d.head_sha256)}" for d in self._plan.disks
        ]
        return [*lines, ""] if lines else []

    def steps(self) -> list[str]:
        lines: list[str] = []
        count = len(self._plan.steps)
        number = 0
        for stage in STAGES:
            steps = [s for s in self._plan.steps if s.stage == stage]
            if not steps:
                continue
            before = len(self._releases)
            for step in steps:
                number += 1
                lines += [*self._step(step, number, count), ""]
            if len(self._releases) > before:
                lines += _end_of_stage(stage)
        return lines

    def _step(self, step: Step, number: int, count: int) -> list[str]:
        lines = [
            *_comment(f"--- {number} of {count}: {step.title} ({step.stage})"),
            *_comment(f"Why: {step.why}"),
            f"printf '%s\\n' {quote(f'{number} of {count}: {step.title}')}",
        ]
        name = quote(step.id)
        planned = {s.id for s in self._plan.steps}
        needs = " ".join(quote(n) for n in step.needs if n in planned)
        # What is held must be known to this shell, so it ends the script when it cannot be had; the
        # rest runs in a shell of its own, whose failure leaves the other steps alone.
        own = max((n for n, o in enumerate(step.operations, start=1) if is_held(o)), default=0)
        held = [line for o in step.operations[:own] for line in self._operation(o)]
        commands = [line for o in step.operations[own:] for line in self._operation(o)]
        inner = [f"step={name}", *held] if held else []
        if commands:
            inner += ["set +e", "(", "    set -e", *_indent(commands), ")", f'ended {name} "$?"', "set -e"]
        else:
            inner.append(f"ended {name} 0")
        if not needs:
            return [*lines, *inner]
        otherwise = ["else", f'    failed="$failed "{name}', "fi"]
        return [*lines, f"if needs {needs}; then", *_indent(inner), *otherwise]

    def _operation(self, operation: Operation) -> list[str]:
        if isinstance(operation, Unpack):
            return self._unpack(operation)
        commands = list(describe(operation, self._root, self._work))
        if not is_held(operation):
            return [*self._precautions(operation), *commands]
        self._releases.append(self._release(operation))
        hold = f'held="{len(self._releases)} $held"'
        # A file's former state must be safe before its release may run; a mount's release looks first.
        saved = commands.index("fi") + 1 if isinstance(operation, WriteFile) else 0
        return [*self._precautions(operation), *commands[:saved], hold, *commands[saved:]]

    def _unpack(self, operation: Unpack) -> list[str]:
        make_ready, lay = unpack_lines(operation, self._root, self._work)
        tar, keep = (quote(file) for file in unpack_files(operation.archive, self._work))
        lines = [*make_ready, f"prepare_unpack {tar} {keep} {quote(flat_name(operation.archive))}.tar"]
        if operation.format == "deb" and not operation.members:
            return [*lines, f"divert {quote(operation.archive)} {tar} {keep}", *lay, "lay_diverted"]
        return [*lines, *lay]

    def _precautions(self, operation: Operation) -> list[str]:
        match operation:
            case Mount() | Bind():
                return [f"plain {quote(on_rescue(self._root, operation.path))}"]
            case WriteFile() | RemoveFile() | Symlink() | SetMetadata():
                return self._before_change(operation)
            case Run() | Activate() | Unpack():
                return []

    def _before_change(self, operation: WriteFile | RemoveFile | Symlink | SetMetadata) -> list[str]:
        target = on_rescue(self._root, operation.path)
        lines = [f"within {quote(target.rpartition('/')[0])}"]
        if isinstance(operation, SetMetadata):
            lines.append(f"within {quote(target)}")
        if isinstance(operation, WriteFile) and operation.copy_of:
            source = quote(on_rescue(self._root, operation.copy_of))
            lines += [f"within {source}", f"regular {source}"]
        if not is_held(operation):
            lines.append(f"keep {quote(target)} {quote(flat_name(operation.path))}")
        return lines

    def _release(self, operation: Operation) -> list[str]:
        """Return the release so that it can be done at any moment, also when little was taken."""
        lines = list(release_lines(operation, self._root, self._work))
        if isinstance(operation, Mount | Bind):
            held = f"findmnt -n -M {quote(on_rescue(self._root, operation.path))} > /dev/null"
        elif isinstance(operation, Activate):
            held = f"[ -e {quote(operation.device)} ]"
        else:
            return _returning(lines)
        return [f"if {held}; then", f"    {lines[0]} || return", "fi", *_returning(lines[1:])]

    def release_function(self) -> list[str]:
        if not self._releases:
            return ["release() { :; }"]
        lines = ["release() {", "    case $1 in"]
        for number, commands in enumerate(self._releases, start=1):
            lines += [f"        {number})", *_indent(commands, 3), "            ;;"]
        return [*lines, "    esac", "}"]


def _returning(lines: Sequence[str]) -> list[str]:
    """Return commands so that the first failure ends the function; in a condition "set -e" does not."""
    inside = (" ", "if ", "else", "elif ")
    return [line if line.startswith(inside) else f"{line} || return" for line in lines]


def _end_of_stage(stage: Stage) -> list[str]:
    return [
        *_comment(f"End of the {stage} stage: everything is given back."),
        "set +e",
        "release_all",
        "set -e",
        '[ "$leaked" = no ] || exit 4',
        "",
    ]


def _tools(plan: Plan) -> list[str]:
    """Return the programs of the rescue system that the script calls, beside the coreutils."""
    tools = {"flock", "unshare"}
    if plan.disks:
        tools |= {"blockdev", "lsblk", "sha256sum"}
    if any(disk.image for disk in plan.disks):
        tools |= {"findmnt", "losetup", "partx", "umount"}
    if any(disk.image_format not in ("", "raw") for disk in plan.disks):
        tools.add("qemu-storage-daemon")
    for operation in (o for s in plan.steps for o in s.operations):
        match operation:
            case Run():
                tools |= (
                    {"chroot"} if operation.inside else {c[0] for c in (operation.argv, operation.until) if c}
                )
            case Activate():
                tools |= {operation.argv[0], operation.release[0]}
            case Mount() | Bind():
                tools |= {"findmnt", "mount", "umount"}
            case Unpack():
                tools |= {"tar", "dpkg-deb" if operation.format == "deb" else "rpm2archive"}
            case WriteFile() | RemoveFile() | Symlink() | SetMetadata():
                pass
    return sorted(tools)


def _comment(text: str, hanging: str = "") -> list[str]:
    one_line = " ".join(line.removeprefix("# ") for line in comment_lines(text))
    one_line = f"# {one_line}".replace("shellcheck", "shell-check")  # which takes orders from comments
    return textwrap.wrap(one_line, 100, subsequent_indent=f"# {hanging}", break_on_hyphens=False)


def _indent(lines: Iterable[str] | Sequence[str], levels: int = 1) -> list[str]:
    return [("    " * levels + line) if line else line for line in lines]
