"""What README and docs name exists: settings, commands with their options, targets, modules, files and links."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from batchline import cli
from batchline.settings import Settings, variable

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = {variable(field.name) for field in fields(Settings)}
EXEC = {"api", "worker", "scheduler"}
"""Commands that become another process, which takes its own options."""

HOMES = "batchline|api|workers|scheduler|autoscaler|tests|deploy|docs|examples|benchmarks"
"""Folders of ours, by which a path is known for one."""

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(page: Path) -> list[str]:
    """The lines of code blocks, without comments, and what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def fault_of(command: str) -> str | None:
    """What of a command line of `batchline` does not exist."""
    words = command.split()
    at = typer.main.get_command(cli.app)
    while getattr(at, "commands", None) and words and re.fullmatch(r"[a-z]+", words[0]):
        if words[0] not in at.commands:
            return f"no command {words[0]}"
        if words[0] in EXEC:
            return None
        at = at.commands[words.pop(0)]
    known = {option for param in at.params for option in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in re.findall(r"(?<!\S)--[a-z][\w-]*", " ".join(words)) if word not in known]
    return f"no option {unknown[0]}" if unknown and not at.context_settings.get("ignore_unknown_options") else None


def test_every_setting_has_its_line() -> None:
    """Under its whole name, in the tables of docs/operations.md."""
    told = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert sorted(SETTINGS - set(re.findall(r"`(\w+)`", told))) == []


@page
def test_every_variable_is_read_somewhere(page: Path) -> None:
    """As a setting, also by file, or by other code of ours."""
    named = set(re.findall(r"\b(?:BATCHLINE_\w+|DATABASE_URL|REDIS_URL)\b", page.read_text(encoding="utf-8")))
    text = "".join(code_of(page))
    own = {name for name in named if f'os.environ["{name}"]' in text}  # of the example itself
    strange = {name for name in named - own if name.removesuffix("_FILE") not in SETTINGS}
    ours = subprocess.check_output(["git", "-C", ROOT, "ls-files", "*.py", "*.yaml", "*.yml", "*.sh"], text=True)
    read = "".join((ROOT / name).read_text(encoding="utf-8") for name in ours.split() if (ROOT / name).exists())
    assert sorted(name for name in strange if name not in read) == []


@page
def test_every_command_exists(page: Path) -> None:
    """`batchline …` with its options, `make …`, `python -m …`."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    faults: list[str] = []
    for code in code_of(page):
        for command in re.findall(r"(?<!from)[\s/(]batchline ((?:[a-z]|-)[^|;&)]*)", f" {code}"):
            faults += [f"{command}: {fault}" for fault in [fault_of(command)] if fault]
        faults += [code for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code) if target not in targets]
        for module in re.findall(r"python -m ([\w.]+)", code):
            faults += [code for found in [find_spec(module)] if found is None]
    assert faults == []


@page
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file, and to a heading there; files named by their path are there too."""
    text = page.read_text(encoding="utf-8")
    faults: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            faults.append(target)
    for path in re.findall(rf"`((?:{HOMES})/[\w./-]+\.(?:py|md|yaml|yml|toml|png|sh))`", text):
        faults += [] if (ROOT / path).exists() or (ROOT / "deploy" / "kubernetes" / path).exists() else [path]
    assert faults == []
