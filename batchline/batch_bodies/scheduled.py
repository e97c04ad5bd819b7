"""The batch of one fire time: a schedule's body, filled in and checked like any other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec

from batchline import cron
from batchline.batch_bodies import Checked, Finds, Rules, check
from batchline.errors import BatchlineError, Fault, InvalidRequestError, MalformedError, NotFoundError
from batchline.store.batch_contract import ScheduleView

_POINTER = "/batch"

ASKED_WHILE_DISABLED = "Backfill of a disabled schedule; waits for its turn."
"""Detail of a queued run that starts although its schedule is disabled; other queued runs are skipped then."""


def batch_of(schedule: ScheduleView, fire_at: datetime, *, finds: Finds, rules: Rules, now: datetime) -> Checked:
    """The batch of a fire time; as with `check`, inline rows are the caller's to store.

    Args:
        schedule: whose zone its templates are filled in by, and whose body it is.
        fire_at: aware.
        finds: as for `check`.
        rules: as for `check`.
        now: as for `check`.

    Raises:
        InvalidRequestError: the body does not fit, or names no model here; pointers begin with /batch.
    """
    try:
        template = msgspec.json.decode(schedule.batch)
    except (msgspec.DecodeError, RecursionError) as e:
        raise _refused(MalformedError("The batch is not JSON that can be read.", faults=(Fault("", str(e)),))) from None
    body = cron.fill(template, fire_at.astimezone(ZoneInfo(schedule.timezone)), pointer=_POINTER)
    try:
        raw = msgspec.json.encode(body)
        checked = check(raw, tenant_id=schedule.tenant_id, finds=finds, rules=rules, now=now)
    except (InvalidRequestError, MalformedError, NotFoundError) as e:
        raise _refused(e) from None
    return replace(checked, batch=replace(checked.batch, schedule_id=schedule.id, fire_at=fire_at))


def _refused(error: BatchlineError) -> InvalidRequestError:
    faults = tuple(Fault(_POINTER + fault.pointer, fault.detail) for fault in error.faults)
    return InvalidRequestError(error.detail, faults=faults or (Fault(_POINTER, error.detail),))
