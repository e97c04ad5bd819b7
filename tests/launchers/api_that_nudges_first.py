"""MUTANT: an API that nudges, waits a moment, and only then commits."""

import runpy
import time

from api import commits

_outcomes = commits.Commits._outcomes


def outcomes(self, jobs):
    for pool, lane in {(entry.pool, entry.job.lane) for entry in self._last_group}:
        self._nudge(pool, lane)
    time.sleep(0.3)
    return _outcomes(self, jobs)


_take = commits.Commits._take


def take(self):
    self._last_group = _take(self)
    return self._last_group


def run(self, loop):
    while group := self._take():
        answers = self._outcomes([entry.job for entry in group])
        with self._change:
            self._bytes -= sum(len(entry.job.payload) for entry in group)
        loop.call_soon_threadsafe(commits._answer, group, answers)


commits.Commits._take = take
commits.Commits._outcomes = outcomes
commits.Commits._run = run
runpy.run_module("api", run_name="__main__", alter_sys=True)
