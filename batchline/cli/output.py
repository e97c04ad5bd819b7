"""How commands speak: JSON or a table on stdout, what goes on and what went wrong on stderr."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from batchline.errors import BatchlineError

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


def group(about: str, *, name: str | None = None, alone: bool = False) -> typer.Typer:
    """A group of commands; `alone`: it does something without a command too. Plain help: rich triples its time."""
    return typer.Typer(
        name=name,
        help=about,
        no_args_is_help=not alone,
        invoke_without_command=alone,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


_FAULTS = 10
"""Faults of a body shown on a terminal."""


def tell_json(value: object) -> None:
    """Write one JSON document."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")


def tell(line: str) -> None:
    """Write one line of the answer."""
    sys.stdout.write(line + "\n")


def note(line: str) -> None:
    """Write one line about what goes on; not part of the answer."""
    sys.stderr.write(line + "\n")


def tell_error(error: BatchlineError) -> None:
    """One sentence, and where a body is at fault, where."""
    note(f"batchline: {error.detail}")
    for fault in error.faults[:_FAULTS]:
        note(f"  {fault.pointer or 'body'}: {fault.detail}")
    if len(error.faults) > _FAULTS:
        note(f"  and {len(error.faults) - _FAULTS} more")


def tell_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; else lines with tabs between, the names of the columns first."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *cells]:
            tell("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for line in cells:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in line))
    Console().print(table)


_STYLES = {
    "well": "green", "running": "green", "succeeded": "green", "live": "green", "done": "green",
    "not well": "bold red", "failed": "bold red", "dead": "red", "backoff": "yellow", "queued": "cyan",
}  # fmt: skip


@contextmanager
def busy(what: str) -> Generator[None]:
    """A spinner on stderr while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def counted(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def seconds(value: float) -> str:
    """A duration for people: `0.4 s`, `3 min`, `2 h`, `5 d`."""
    for limit, size, unit in ((90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if value < limit:
            amount = value / size
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{value / 86400.0:.0f} d"
