"""`python -m benchmarks [NAME ...]`: run benchmarks, print one readable table each, keep all samples as JSON."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from benchmarks import latency, rows256, scaling, throughput
from benchmarks.harness import Report, machine, prepared, save, show
from benchmarks.processes import ROOT, BenchmarkError

BENCHMARKS = {"throughput": throughput, "latency": latency, "scaling": scaling, "rows256": rows256}


def main() -> int:
    """Exit status: 0 all goals met, 1 one was missed, 2 a benchmark could not be run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:12} {module.SUMMARY}" for name, module in BENCHMARKS.items()),
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="all when absent: " + ", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a turn (default 5)")
    parser.add_argument("--peer-only", action="store_true", help="measure what Batchline is compared with, and not it")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    console = Console()
    facts, reports = machine(), list[Report]()
    options = {"rounds": chosen.rounds, "measured_s": chosen.seconds, "peer_only": chosen.peer_only}
    try:
        with prepared(**options, say=console.print) as bench:
            for name in chosen.names or BENCHMARKS:
                console.print(f"{name}: {BENCHMARKS[name].SUMMARY}")
                if report := BENCHMARKS[name].run(bench):
                    reports.append(report)
    except BenchmarkError as error:
        console.print(f"{error}", style="red", markup=False)
        return 2
    show(facts, reports, console)
    console.print(f"all samples: {save(facts, reports).relative_to(ROOT)}")
    return 0 if all(goal.met for report in reports for goal in report.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
