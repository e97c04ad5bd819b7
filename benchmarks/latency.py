"""Idle latency, one client: `Prefer: wait` against the peer polled every 2 ms, with the stages of ours."""

from __future__ import annotations

import contextlib

from benchmarks.harness import Bench, Goal, Report, durability, interleave, turn
from benchmarks.peer import peer
from benchmarks.product import product

SUMMARY = "one client, idle system: p50 and p99 against the peer polled every 2 ms"
GAP_S = 0.01


def run(bench: Bench) -> Report:
    with contextlib.ExitStack() as stack:
        rival = stack.enter_context(peer(bench.digits, bench.folder / "peer"))
        polled = bench.load("peer", rival.ports, clients=1, poll_s=0.002, gap_s=GAP_S)
        sides = {"peer": lambda: turn(polled, rival.processes)}
        facts: dict[str, object] = {}
        if not bench.peer_only:
            ours = stack.enter_context(product(bench.digits, bench.folder / "product"))
            waited = bench.load("product", ours.ports, key=ours.key, clients=1, gap_s=GAP_S)
            sides["batchline"] = lambda: turn(waited, ours.processes)
            facts["postgres"] = durability(ours.database_url)
        samples = interleave(sides, bench)
    report = Report("latency", samples, ("p50_ms", "p90_ms", "p99_ms", "requests_per_job"), facts=facts)
    if not bench.peer_only:
        for figure, bound in (("p50_ms", 1.2), ("p99_ms", 1.5)):
            ratio = report.ratio(figure, "batchline", "peer")
            report.goals.append(Goal(f"idle {figure[:3]}, batchline : peer", ratio, bound, at_least=False))
    return report
