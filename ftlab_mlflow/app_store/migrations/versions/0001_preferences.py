"""Preferences by user."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "ftlab_preferences",
        sa.Column("user_name", sa.String(255), primary_key=True),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
    )
