"""What Alembic runs: on the connection and in the transaction that it is given."""

from __future__ import annotations

from alembic import context

from server.storage.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
