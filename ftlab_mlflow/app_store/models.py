"""The tables of the app database. A change here needs a migration in `migrations/versions`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_TITLE = 200
"""Characters of a chat's title."""
MAX_NAME = 255
"""Characters of a user's name, and of a model's id."""
MAX_PROVIDER = 64
_ID = String(36)


class Utc(TypeDecorator[datetime]):
    """A time in UTC, with its zone also where the database keeps none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """All tables. Their names begin with ``ftlab_``: the database may also be MLflow's."""

    type_annotation_map = {dict[str, Any]: JSON, datetime: Utc(), float: Float()}  # noqa: RUF012


class StoredPreferences(Base):
    """What a person has chosen.

    Attributes:
        data: By name. Names that this version does not know are kept for the one that wrote them.
    """

    __tablename__ = "ftlab_preferences"

    user: Mapped[str] = mapped_column("user_name", String(MAX_NAME), primary_key=True)
    data: Mapped[dict[str, Any]]
    updated: Mapped[datetime]


class StoredChat(Base):
    """A conversation.

    Attributes:
        id: UUIDv7. updated: When it was last written to.
        data: What it is about and with which model, by names of the chat's own.
    """

    __tablename__ = "ftlab_chats"
    __table_args__ = (Index("ix_ftlab_chats_user_name_updated", "user_name", "updated"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    user: Mapped[str] = mapped_column("user_name", String(MAX_NAME))
    title: Mapped[str] = mapped_column(String(MAX_TITLE))
    created: Mapped[datetime]
    updated: Mapped[datetime]
    data: Mapped[dict[str, Any]]


class StoredMessage(Base):
    """What was said in a chat.

    Attributes:
        position: From 0, without gaps.
        data: Of an answer, the whole of it: its requests, the tools that ran with arguments and results,
            usage, cost. One document, as it is read and written only as one.
    """

    __tablename__ = "ftlab_chat_messages"
    __table_args__ = (UniqueConstraint("chat_id", "position", name="uq_ftlab_chat_messages_position"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    chat_id: Mapped[str] = mapped_column(ForeignKey(StoredChat.id, ondelete="CASCADE"))
    position: Mapped[int]
    role: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class StoredUsage(Base):
    """What one answer took. It outlives its chat: what is spent stays spent.

    Attributes:
        model: Its id, such as `openai/gpt-4o-mini`.
        input_tokens, output_tokens: None where a server did not say. Cached ones are part of the input.
        cost_usd: None where the price is not known.
        counted_usd, counted_tokens: What budgets count: estimated where it is not known.
    """

    __tablename__ = "ftlab_usage"
    __table_args__ = (
        Index("ix_ftlab_usage_at", "at"),
        Index("ix_ftlab_usage_user_name_at", "user_name", "at"),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    user: Mapped[str] = mapped_column("user_name", String(MAX_NAME))
    chat_id: Mapped[str | None] = mapped_column(_ID)
    at: Mapped[datetime]
    provider: Mapped[str] = mapped_column(String(MAX_PROVIDER))
    model: Mapped[str] = mapped_column(String(MAX_NAME))
    input_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cached_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cache_write_tokens: Mapped[int | None] = mapped_column(BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cost_usd: Mapped[float | None]
    counted_usd: Mapped[float]
    counted_tokens: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int]
    seconds: Mapped[float]
    first_token_s: Mapped[float | None]
