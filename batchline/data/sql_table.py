"""Tables of the operator's PostgreSQL databases as places of data sets."""

from batchline.data.sql_sink import TableSink
from batchline.data.sql_source import TableSource

__all__ = ["TableSink", "TableSource"]
