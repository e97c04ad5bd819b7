"""The clairvoyant lower bound: no policy, however clever, needs fewer worker-hours. An offline fluid program.

It knows the trace beforehand, launches and stops fractions of workers at any time, and picks freely the 5 % of online
rows that may wait longer than the target. With L, S the launches and stops, X the online rows that are let wait, D, W,
E the rows done that were not, that were, and of batches, all cumulative until the end of step k of c seconds, and m
rows/s a worker:

    minimise    c sum (L_k-1 - S_k)                                      worker-seconds paid, at least
    subject to  (D+W+E)_k - (D+W+E)_k-1 <= m c (L_k-start - S_k-1)       a worker serves once it has started
                S_k <= L_k-start,  S_k <= L_k-billing                    and is paid for its billing minimum
                D_k <= A_k - X_k,  W_k <= X_k,  E_k <= B_k               nothing is done before it arrives
                D_k+target >= A_k - X_k,  X_end <= 5 % of A_end          p95 of the wait within the target
                E at a deadline >= rows due until then - late            deadlines; late rows at a forbidding price
                (D+W)_end = A_end,  E_end = B_end                        everything is done in the end
                L_k-1 - S_k <= max workers

Within a step workers launched serve all of it and pay none of it, rows may be done before they arrive, and spans are
rounded down: a run satisfies all of it whenever it decides, so its worker-hours cannot be fewer. Solved by HiGHS
through scipy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autoscaler.simulate.fleet import World
from autoscaler.simulate.trace import Floats, Trace
from batchline.errors import SettingsError

_TAIL_S = 3600.0
_MAY_WAIT = 0.05
"""The share of online rows beyond the p95."""
_LATE_PRICE = 1e3
"""Of a late row, in the work that it is: deadlines are met if they can be."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The least that serves the trace.

    Attributes:
        worker_hours: no run with this p95 and no more late rows has fewer.
        late_rows: of batches: what even the clairvoyant cannot do in time.
        workers: [K] fractions of workers paid at each step.
        step_s: length of a step.
    """

    worker_hours: float
    late_rows: float
    workers: Floats
    step_s: float


class _Program:
    """A sparse M x <= upper, added one family of rows at a time; x is `names` blocks of K columns, and some more."""

    def __init__(self, names: str, k: int, more: int) -> None:
        self.k, self.names, self.columns = k, names, len(names) * k + more
        self._rows: list[Floats] = []
        self._columns: list[Floats] = []
        self._factors: list[Floats] = []
        self._upper: list[Floats] = []
        self._count = 0

    def block(self, name: str) -> slice:
        """The columns of a name."""
        n = self.names.index(name)
        return slice(n * self.k, (n + 1) * self.k)

    def add(self, terms: list[tuple[str, int, float]], upper: Floats | float = 0.0) -> None:
        """For every step k: the sum of factor * name[k + shift] <= upper[k]; outside of the steps all is 0."""
        steps = np.arange(self.k, dtype=np.float64)
        for name, shift, factor in terms:
            at = steps + shift
            kept = (at >= 0) & (at < self.k)
            self._rows.append(steps[kept] + self._count)
            self._columns.append(at[kept] + self.block(name).start)
            self._factors.append(np.full(kept.sum(), factor))
        self._upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (self.k,)))
        self._count += self.k

    def at_least(self, columns: list[int], least: float) -> None:
        """One row: the sum of these columns >= least."""
        self._rows.append(np.full(len(columns), float(self._count)))
        self._columns.append(np.array(columns, dtype=np.float64))
        self._factors.append(np.full(len(columns), -1.0))
        self._upper.append(np.array([-least]))
        self._count += 1

    def solve(self, cost: Floats, lowest: Floats, highest: Floats) -> tuple[Floats | None, str]:
        """The cheapest x, or None and why there is none."""
        try:
            from scipy.optimize import linprog  # noqa: PLC0415 - an extra
            from scipy.sparse import csr_matrix  # noqa: PLC0415
        except ImportError as e:
            raise SettingsError("the lower bound needs scipy: pip install 'batchline[simulate]'") from e
        upper = np.concatenate(self._upper)
        places = (np.concatenate(self._rows).astype(int), np.concatenate(self._columns).astype(int))
        matrix = csr_matrix((np.concatenate(self._factors), places), (self._count, self.columns))
        bounded = np.isfinite(upper)
        found = linprog(
            cost, A_ub=matrix[bounded], b_ub=upper[bounded], bounds=np.stack([lowest, highest], axis=1),
            method="highs-ipm",
        )  # fmt: skip
        return found.x, str(found.message)


def bound(trace: Trace, world: World, target_wait_s: float, max_workers: int, step_s: float = 20.0) -> Bound:
    """The least worker-hours for a p95 wait within the target and as few late rows as possible.

    Args:
        trace: what arrives; step_s is a multiple of its step.
        world: how fast workers are and how long they start; interruptions are left out, they only cost.
        target_wait_s: of online rows.
        max_workers: at once.
        step_s: of the program; longer is quicker to solve, and lower.

    Raises:
        SettingsError: scipy is not installed, or max_workers cannot do all the work.
    """
    arrived, batched, k = _curves(trace, step_s)
    start, billing = math.floor(world.start_s / step_s), math.floor(world.billing_s / step_s)
    wait = math.ceil(target_wait_s / step_s)
    scale = world.rows_per_s * step_s  # rows that one worker does in a step; the program counts in these
    a, b = arrived / scale, batched / scale
    due = sorted(trace.batches, key=lambda batch: batch.due_s)
    program = _Program("LSDWEX", k, len(due))
    served = [(name, shift, -1.0 if shift else 1.0) for name in "DWE" for shift in (0, -1)]
    program.add([*served, ("L", -start, -1.0), ("S", -1, 1.0)])
    for span in {start, billing}:
        program.add([("S", 0, 1.0), ("L", -span, -1.0)])
    for name in program.names:
        program.add([(name, -1, 1.0), (name, 0, -1.0)])
    program.add([("L", -1, 1.0), ("S", 0, -1.0)], float(max_workers))
    program.add([("D", 0, 1.0), ("X", 0, 1.0)], a)
    program.add([("W", 0, 1.0), ("X", 0, -1.0)])
    program.add([("D", wait, -1.0), ("X", 0, -1.0)], np.where(np.arange(k) + wait < k, -a, math.inf))
    rows, late = 0.0, program.columns - len(due)
    for n, batch in enumerate(due):
        rows += batch.rows / scale
        by = min(k, math.ceil(batch.due_s / step_s)) - 1
        program.at_least([program.block("E").start + by, late + n], rows)
    lowest, highest = np.zeros(program.columns), np.full(program.columns, math.inf)
    highest[program.block("E")] = b
    highest[program.block("X")] = _MAY_WAIT * a[-1]
    lowest[program.block("E").stop - 1] = b[-1]
    program.at_least([program.block("D").stop - 1, program.block("W").stop - 1], a[-1])
    cost = np.zeros(program.columns)
    cost[program.block("L")], cost[program.block("S")], cost[late:] = 1.0, -1.0, _LATE_PRICE
    cost[program.block("L").stop - 1] = 0.0  # launched in the last step: nothing is paid any more
    x, message = program.solve(cost, lowest, highest)
    if x is None:
        raise SettingsError(f"no {max_workers} workers can serve the trace {trace.name}: raise the maximum ({message})")
    workers = np.concatenate([[0.0], x[program.block("L")][:-1]]) - x[program.block("S")]
    return Bound(float(workers.sum()) * step_s / 3600, float(x[late:].sum()) * scale, workers, step_s)


def _curves(trace: Trace, step_s: float) -> tuple[Floats, Floats, int]:
    """Cumulative online and batch rows at the end of each step, an hour after the trace included."""
    each = round(step_s / trace.step_s)
    k = math.ceil((trace.seconds + _TAIL_S) / step_s)
    online = np.zeros(k * each)
    online[: len(trace.online)] = trace.online
    bulk = np.zeros(k)
    for batch in trace.batches:
        bulk[math.floor(batch.at_s / step_s)] += batch.rows
    return np.cumsum(online.reshape(k, each).sum(axis=1)), np.cumsum(bulk), k
