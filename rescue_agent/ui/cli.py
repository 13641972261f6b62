# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line. stdout carries the result alone; progress and errors go to stderr.

Everything heavier than typer is imported inside the commands, so that ``--version``, ``--help`` and
completion answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from rescue_agent import __version__
from rescue_agent.ui.options import (
    AcceptLogLoss,
    AsJson,
    Debuginfo,
    Disk,
    Disks,
    Dumps,
    Explain,
    FactsFile,
    Logs,
    Network,
    Packages,
    Quick,
    Rehearse,
    SaveDmesg,
    Signatures,
    SurfaceScan,
    SystemId,
    Upgrade,
)

if TYPE_CHECKING:
    from rescue_agent.model.document import Model
    from rescue_agent.model.plan import Plan, Policy
    from rescue_agent.pipeline import Look

app = typer.Typer(
    name="rescue-agent",
    help="Finds out why a Linux machine does not boot, and mends it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 nothing is wrong (any more), 1 faults, 2 usage, 3 refused, 4 the agent failed, "
    "130 interrupted.",
)

LOOK, MEND, AFTER = "Look (changes nothing)", "Mend", "Afterwards"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rescue-agent {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Finds out why a Linux machine does not boot, and mends it."""


@app.command(rich_help_panel=LOOK)
def scan(disks: Disks = None, as_json: AsJson = False, quick: Quick = False) -> None:
    """Show what is here: disks, filesystems, installed systems and the state of each."""
    with _reported():
        look = _look("scan", disks, quick=quick)
        _print(look.facts, "facts_text", as_json)


@app.command(rich_help_panel=LOOK)
def diagnose(
    disks: Disks = None,
    logs: Logs = None,
    dumps: Dumps = None,
    as_json: AsJson = False,
    facts: FactsFile = None,
    quick: Quick = False,
    debuginfo: Debuginfo = "",
    save_dmesg: SaveDmesg = "",
    signatures: Signatures = "",
    explain: Explain = "",
) -> None:
    """Say what is wrong, with the evidence for it. Exit code 1: faults were found."""
    from rescue_agent.errors import UsageError

    with _reported():
        if explain:
            _print_codes(explain, as_json)
            return
        if (debuginfo or save_dmesg) and not dumps:
            raise UsageError("--debuginfo and --save-dmesg go with --vmcore")
        given = _Given(logs or [], dumps or [], debuginfo, save_dmesg, signatures)
        look = _look("diagnose", disks, facts=facts, quick=quick, given=given)
        _print(look.diagnosis, "diagnosis_text", as_json)
        _leave(1 if look.diagnosis.faults else 0)


@app.command(rich_help_panel=LOOK)
def plan(
    disks: Disks = None,
    as_json: AsJson = False,
    shell_script: Annotated[bool, typer.Option("--shell", help="Print one POSIX shell script.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the plan for repair --plan.")
    ] = None,
    facts: FactsFile = None,
    system: SystemId = "",
    surface_scan: SurfaceScan = True,
    accept_log_loss: AcceptLogLoss = False,
    upgrade: Upgrade = False,
    packages: Packages = None,
    network: Network = True,
    rehearse: Rehearse = False,
) -> None:
    """The dry run: print the exact commands that will mend the machine, each with its reason."""
    from rescue_agent.errors import UsageError

    with _reported():
        if as_json and shell_script:
            raise UsageError("--json and --shell exclude each other")
        policy = _policy(system, surface_scan, accept_log_loss, upgrade, packages, network)
        if rehearse:
            _repair(disks, policy, as_json=as_json, rehearse=True, assume_yes=True)
        made = _make_plan(_look("plan", disks, facts=facts, policy=policy), policy)
        if output is not None:
            from rescue_agent.model.document import encode

            output.write_bytes(encode(made))
        if shell_script:
            from rescue_agent.ui.shell_script import plan_shell

            typer.echo(plan_shell(made), nl=False)
        else:
            _print(made, "plan_text", as_json)
        _leave(_plan_exit(made))


@app.command(rich_help_panel=MEND)
def repair(
    disks: Disks = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Carry out exactly this saved plan.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    system: SystemId = "",
    surface_scan: SurfaceScan = True,
    accept_log_loss: AcceptLogLoss = False,
    upgrade: Upgrade = False,
    packages: Packages = None,
    network: Network = True,
    rehearse: Rehearse = False,
) -> None:
    """Mend the machine and prove it: plan, ask, carry out, look again, until nothing is wrong."""
    with _reported():
        policy = _policy(system, surface_scan, accept_log_loss, upgrade, packages, network)
        _repair(disks, policy, as_json=as_json, rehearse=rehearse, assume_yes=yes, plan_file=plan_file)


@app.command(rich_help_panel=MEND, context_settings={"ignore_unknown_options": True})
def shell(
    disk: Disk,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- CMD...]", help="Run this instead of a shell.")
    ] = None,
    system: SystemId = "",
) -> None:
    """Open a shell (or run one command) inside the installed system; clean up afterwards.

    The exit code is the command's own.
    """
    from rescue_agent.pipeline import Session, run_inside

    with _reported():
        frontend = _frontend(assume_yes=True)
        with Session(frontend, (disk,), command=sys.argv, writable=True) as session:
            code = run_inside(session, _policy(system=system), tuple(command or ()))
        _leave(session.exit_code or code)


@app.command(rich_help_panel=AFTER)
def undo(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run, as report shows it.")],
    disks: Disks = None,
    as_json: AsJson = False,
) -> None:
    """Put back what a run changed: edited files and, where an undo file exists, fsck's writes."""
    from rescue_agent.pipeline import Session, undo_run

    with _reported():
        frontend = _frontend(assume_yes=True)
        with Session(frontend, disks or (), command=sys.argv, writable=True) as session:
            restored, refused = undo_run(session, run)
            session.exit_code = 1 if refused else 0
        if as_json:
            _echo_json(
                {"schema": "rescue-agent/undo/1", "run": run, "restored": restored, "refused": refused}
            )
        else:
            _echo_lines("put back", restored)
            _echo_lines("left as it is", refused)
        _leave(session.exit_code)


@app.command(rich_help_panel=AFTER)
def cleanup(as_json: AsJson = False) -> None:
    """Release what a killed run left behind: loop devices, image exports, storage layers."""
    from rescue_agent.pipeline import clean_up

    with _reported():
        released, leaks = clean_up(_frontend(assume_yes=True))
        if as_json:
            _echo_json({"schema": "rescue-agent/cleanup/1", "released": released, "leaks": leaks})
        else:
            _echo_lines("released", released or ("nothing was left",))
            _echo_lines("still held", leaks)
        _leave(4 if leaks else 0)


@app.command(rich_help_panel=AFTER)
def report(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Name of the run; none: the latest.")] = "",
    as_json: AsJson = False,
) -> None:
    """Tell what a run found, did, proved and changed."""
    from rescue_agent.pipeline import load_result

    with _reported():
        _print(load_result(run), "result_text", as_json)


@app.command(rich_help_panel=AFTER)
def codes(as_json: AsJson = False) -> None:
    """List every code that a finding can carry, with what it means and what is done about it."""
    with _reported():
        _print_codes("", as_json)


@app.command(rich_help_panel=AFTER)
def schema(
    document: Annotated[str, typer.Argument(metavar="DOCUMENT", help="facts, diagnosis, plan or run.")],
) -> None:
    """Print the JSON Schema of a document that this version writes."""
    from rescue_agent.errors import UsageError
    from rescue_agent.model import facts as f
    from rescue_agent.model import finding, run
    from rescue_agent.model import plan as p
    from rescue_agent.model.document import json_schema

    kinds: dict[str, type[Model]] = {
        "facts": f.Facts,
        "diagnosis": finding.Diagnosis,
        "plan": p.Plan,
        "run": run.RunResult,
    }
    with _reported():
        if document not in kinds:
            raise UsageError(f"there is no document {document!r}", hint="one of " + ", ".join(kinds))
        _echo_json(json_schema(kinds[document]))


@app.command(rich_help_panel=AFTER)
def demo(
    family: Annotated[
        str, typer.Option("--family", help="Which package managers: debian or rpm.")
    ] = "debian",
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Keep the mended image.")
    ] = None,
) -> None:
    """Break a real disk image made on the spot, mend it, and prove it."""
    from rescue_agent.ui.demo import run_demo

    with _reported():
        _leave(run_demo(family=family, keep=keep))


# --- what the commands share ---------------------------------------------------------------------


def _policy(
    system: str = "",
    surface_scan: bool = True,
    accept_log_loss: bool = False,
    upgrade: bool = False,
    packages: Path | None = None,
    network: bool = True,
) -> Policy:
    from rescue_agent.errors import UsageError
    from rescue_agent.model.plan import Policy
    from rescue_agent.pipeline import new_run_name
    from rescue_agent.system.guard import STATE_DIR

    if packages is not None and not packages.is_dir():
        raise UsageError(
            f"{packages} is not a folder", hint="--packages takes a folder with .deb or .rpm files"
        )
    return Policy(
        system=system,
        surface_scan=surface_scan,
        accept_log_loss=accept_log_loss,
        upgrade=upgrade,
        packages_dir=str(packages.resolve()) if packages else "",
        network=network,
        work_dir=str(STATE_DIR / "runs" / new_run_name()),
    )


class _Given(NamedTuple):
    """What is diagnosed beside the disks, as it was typed."""

    logs: Sequence[str] = ()
    dumps: Sequence[str] = ()
    debuginfo: str = ""
    save_dmesg: str = ""
    signatures: str = ""


def _look(
    command: str,
    disks: list[str] | None,
    *,
    facts: Path | None = None,
    quick: bool = False,
    policy: Policy | None = None,
    given: _Given | None = None,
) -> Look:
    """Look at the machine, or read what an earlier look saw, or what logs say."""
    from rescue_agent import diagnose
    from rescue_agent.errors import UsageError
    from rescue_agent.model.document import decode
    from rescue_agent.model.facts import Facts
    from rescue_agent.pipeline import (
        Given,
        Look,
        Session,
        diagnose_given,
        load_signatures,
        read_dumps,
        read_logs,
    )

    given = given or _Given()
    own = load_signatures(given.signatures)
    if facts is not None:
        if disks or given.logs or given.dumps:
            raise UsageError("--facts replaces disks, logs and dumps; name one or the other")
        seen = decode(_read(facts), Facts)
        return Look(seen, diagnose.diagnose(seen, own))
    frontend = _frontend(assume_yes=False)
    dumps = read_dumps(given.dumps, own, debuginfo=given.debuginfo, save_dmesg=given.save_dmesg)
    logs = read_logs(given.logs, own, progress=frontend.emit)
    read = Given((*logs, *dumps.logs), dumps.crashes)
    if read.logs and not disks:
        return diagnose_given(read, own)
    with Session(frontend, disks or (), command=(command, *sys.argv[1:])) as session:
        return session.look(
            verify="existence" if quick else "full",
            packages_dir=policy.packages_dir if policy else "",
            ask_sources=policy is not None and policy.network,
            given=read,
            own=own,
        )


def _make_plan(look: Look, policy: Policy) -> Plan:
    from rescue_agent.planning import make_plan

    return make_plan(look.facts, look.diagnosis, policy)


def _plan_exit(made: Plan) -> int:
    if made.refused:
        return 3
    return 1 if any(f.severity in ("fatal", "error") for f in made.findings) or made.steps else 0


def _repair(
    disks: list[str] | None,
    policy: Policy,
    *,
    as_json: bool,
    rehearse: bool,
    assume_yes: bool,
    plan_file: Path | None = None,
) -> NoReturn:
    import msgspec

    from rescue_agent.errors import UsageError
    from rescue_agent.model.document import decode
    from rescue_agent.model.plan import Plan
    from rescue_agent.pipeline import Session, require_new
    from rescue_agent.pipeline import repair as repair_loop

    saved = None
    if plan_file is not None:
        saved = decode(_read(plan_file), Plan)
        require_new(saved)
        policy = saved.policy
        disks = disks or [disk.image or disk.device for disk in saved.disks]
    if not (assume_yes or rehearse or sys.stdin.isatty()):
        raise UsageError("there is no terminal to ask on", hint="read the plan first, then add --yes")
    frontend = _frontend(assume_yes=assume_yes or rehearse)
    command = sys.argv
    with Session(
        frontend, disks or (), command=command, writable=True, rehearse=rehearse, work_dir=policy.work_dir
    ) as session:
        policy = msgspec.structs.replace(policy, work_dir=str(session.work_dir))
        result = repair_loop(session, policy, saved)
    _print(result, "result_text", as_json)
    _leave(session.exit_code)


def _frontend(*, assume_yes: bool) -> Any:
    from rescue_agent.ui.progress import TerminalFrontend

    return TerminalFrontend(assume_yes=assume_yes)


def _read(path: Path) -> bytes:
    from rescue_agent.errors import UsageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _print(document: Model, renderer: str, as_json: bool) -> None:
    """Print a document as JSON, or by the text renderer of that name."""
    if as_json:
        from rescue_agent.model.document import encode

        sys.stdout.buffer.write(encode(document))
        sys.stdout.buffer.flush()
        return
    from rescue_agent.ui import render

    text: Callable[..., str] = getattr(render, renderer)
    typer.echo(text(document), nl=False)


def _print_codes(wanted: str, as_json: bool) -> None:
    """Print the page of one code, or a line for each."""
    from difflib import get_close_matches

    import msgspec

    from rescue_agent.diagnose.codes import all_codes
    from rescue_agent.errors import UsageError
    from rescue_agent.ui.render import code_text, codes_text

    pages = all_codes()
    if wanted and wanted not in pages:
        near = ", ".join(get_close_matches(wanted, pages)) or "'rescue-agent codes' lists all of them"
        raise UsageError(f"there is no code {wanted!r}", hint=near)
    chosen = [pages[wanted]] if wanted else list(pages.values())
    if as_json:
        _echo_json({"schema": "rescue-agent/codes/1", "codes": msgspec.to_builtins(chosen)})
    else:
        typer.echo(code_text(chosen[0]) if wanted else codes_text(chosen), nl=False)


def _echo_json(value: object) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _echo_lines(what: str, lines: tuple[str, ...]) -> None:
    for line in lines:
        typer.echo(f"{what}: {line}")


def _leave(code: int) -> NoReturn:
    raise typer.Exit(code)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn errors into words on stderr and the exit code of the contract."""
    from rescue_agent.errors import EXIT_FAILED, EXIT_INTERRUPTED, RescueError

    try:
        yield
    except RescueError as error:
        typer.echo(f"rescue-agent: {error.message}", err=True)
        if error.hint:
            typer.echo(f"  hint: {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception:
        import traceback

        traceback.print_exc()
        typer.echo(
            "rescue-agent: this is a fault of the agent itself; please report the lines above", err=True
        )
        raise typer.Exit(EXIT_FAILED) from None
