"""The tables of the app database. A change here needs a migration in `migrations/versions`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables. Their names begin with ``ftlab_``: the database may also be MLflow's."""

    type_annotation_map = {dict[str, Any]: JSON, datetime: DateTime(timezone=True)}  # noqa: RUF012


class StoredPreferences(Base):
    """What a person has chosen.

    Attributes:
        data: By name. Names that this version does not know are kept for the one that wrote them.
    """

    __tablename__ = "ftlab_preferences"

    user: Mapped[str] = mapped_column("user_name", String(255), primary_key=True)
    data: Mapped[dict[str, Any]]
    updated: Mapped[datetime]
