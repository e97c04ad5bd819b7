"""What the tables are made with: the metadata that holds them all, their enums, types and defaults."""

from __future__ import annotations

from sqlalchemy import DateTime, MetaData, text
from sqlalchemy.dialects.postgresql import ENUM

from batchline.batch import BatchStatus
from batchline.job import Lane, Status
from batchline.store.instance_contract import InstanceStatus

metadata = MetaData()

LANE = ENUM(*[lane.value for lane in Lane], name="job_lane")
STATUS = ENUM(*[status.value for status in Status], name="job_status")
BATCH_STATUS = ENUM(*[status.value for status in BatchStatus], name="batch_status")
INSTANCE_STATUS = ENUM(*[status.value for status in InstanceStatus], name="instance_status")
AT = DateTime(timezone=True)
NOW = text("now()")
FALSE = text("false")
ZERO = text("0")
EMPTY = text("''")
