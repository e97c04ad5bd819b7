"""`autoscaler check`: all that is wrong with a configuration, as at start, and who could not be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_provider import FakeProvider

from autoscaler import check
from autoscaler.providers import ADAPTERS, Adapter
from autoscaler.providers.contract import ProviderError, Trouble

AWS = "endpoint_url = 'http://127.0.0.1:9'\nregion = 'us-east-1'\n"
"""Where nobody listens."""


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "fake", Adapter("fake_provider", "FakeProvider"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")


def checked(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, object]]:
    """Exit code and what is told as JSON; as text it is the same code."""
    file = tmp_path / "autoscaler.toml"
    file.write_text(text.replace("HERE", str(tmp_path)))
    code = check.run([str(file), "--json"])
    told = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("BATCHLINE_AUTOSCALER", str(file))
    assert check.run([]) == code
    out = capsys.readouterr()
    assert (out.out == "the configuration works\n") == (code == check.WORKS)
    assert all(line in out.err for line in told["faults"] + told["unanswered"])
    return code, told


GOOD = "[pools.cpu]\nprovider = 'fake'\n[pools.cpu.fake]\npath = 'HERE/cloud.json'\n"


def test_what_works_is_0(tmp_path, monkeypatch, capsys) -> None:
    """With the pools that it names; without a file too: then it only advises."""
    code, told = checked(tmp_path, GOOD, monkeypatch, capsys)
    assert (code, told["works"], told["pools"]) == (0, True, {"cpu": "fake"})
    monkeypatch.delenv("BATCHLINE_AUTOSCALER")
    assert check.run([]) == 0
    assert "only say" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (GOOD + "[pools.gpu]\nmin_workers = 9\nfloors = [[8, 8, 1]]", ["pools.gpu: the minimum of 9 workers is above"]),
        (GOOD.replace("HERE", "/nowhere") + GOOD.replace("cpu", "gpu").replace("HERE", "/nowhere"),
         ["pools.cpu: there is no cloud", "pools.gpu: there is no cloud"]),
        (GOOD + f"[cloudwatch]\nnamespace = 'AWS/X'\n{AWS}[interruptions]\n",
         ["cloudwatch: namespace is 'AWS/X'", "interruptions"]),
        ("[pools", ["is no TOML"]),
        ("[pools.cpu]\nprovider = 'gce'", ["no provider 'gce'"]),
    ],
)  # fmt: skip
def test_what_is_refused_is_1_and_all_of_it_is_told(tmp_path, monkeypatch, capsys, text, faults) -> None:
    """Each fault with its place, of providers and tables alike; nobody is waited for."""
    code, told = checked(tmp_path, text, monkeypatch, capsys)
    assert (code, told["works"]) == (1, False)
    assert len(told["faults"]) == len(faults)
    assert all(fault in found for fault, found in zip(faults, told["faults"], strict=True))


def test_who_does_not_answer_is_no_fault_and_2(tmp_path, monkeypatch, capsys) -> None:
    """The process would start and ask again; a fault beside it outranks it."""

    def away(_: FakeProvider) -> None:
        raise ProviderError(Trouble.UNKNOWN, "nobody is there")

    monkeypatch.setattr(FakeProvider, "check", away)
    code, told = checked(tmp_path, GOOD, monkeypatch, capsys)
    assert (code, told["faults"], told["unanswered"]) == (2, [], ["pools.cpu: nobody is there"])
    assert checked(tmp_path, GOOD + "[interruptions]\n", monkeypatch, capsys)[0] == 1


def test_the_command_checks_the_file_that_it_is_given(tmp_path) -> None:
    """`batchline autoscaler check FILE --json`: one document, and the exit code of the check."""
    file = tmp_path / "a.toml"
    file.write_text("[pools.cpu]\nmin_workers = 9\n")
    command = "from batchline import cli; cli.main()"
    argv = [sys.executable, "-P", "-c", command, "autoscaler", "check", str(file), "--json"]
    done = subprocess.run(argv, env=os.environ.copy(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert (told["works"], told["file"], len(told["faults"])) == (False, str(file), 1)
