"""Alembic runs this for every upgrade: on the connection, and in the transaction, that `migrate` gives it."""

from __future__ import annotations

from alembic import context

from ftlab_mlflow.app_store.migrate import CONNECTION, VERSION_TABLE

context.configure(context.config.attributes[CONNECTION], version_table=VERSION_TABLE)
context.run_migrations()
