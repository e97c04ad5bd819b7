"""Alembic's entry: runs the versions on the connection that `migrate` holds its lock on."""

from __future__ import annotations

from alembic import context

from batchline.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
