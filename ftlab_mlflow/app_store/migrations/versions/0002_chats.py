"""Chats, their messages, and what answers took."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "ftlab_chats",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_index("ix_ftlab_chats_user_name_updated", "ftlab_chats", ["user_name", "updated"])
    op.create_table(
        "ftlab_chat_messages",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column(
            "chat_id", sa.String(36), sa.ForeignKey("ftlab_chats.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("chat_id", "position", name="uq_ftlab_chat_messages_position"),
    )
    op.create_table(
        "ftlab_usage",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("chat_id", sa.String(36)),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("cached_tokens", sa.BigInteger),
        sa.Column("cache_write_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.Float),
        sa.Column("counted_usd", sa.Float, nullable=False),
        sa.Column("counted_tokens", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("first_token_s", sa.Float),
    )
    op.create_index("ix_ftlab_usage_at", "ftlab_usage", ["at"])
    op.create_index("ix_ftlab_usage_user_name_at", "ftlab_usage", ["user_name", "at"])
