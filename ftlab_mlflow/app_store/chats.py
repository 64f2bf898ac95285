"""`ChatStore`: what people asked, what was answered, and what that took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal

from sqlalchemy import Engine, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from ftlab_mlflow.app_store import usage
from ftlab_mlflow.app_store.models import (
    MAX_NAME,
    MAX_PROVIDER,
    MAX_TITLE,
    StoredChat,
    StoredMessage,
    StoredUsage,
)
from ftlab_mlflow.app_store.plain import plain, plain_text
from ftlab_mlflow.app_store.usage import By, Spent, UsageRow, known_number, known_tokens
from ftlab_mlflow.control.wire import new_id, one_line
from ftlab_mlflow.errors import ChatNotFound

Role = Literal["user", "assistant"]

_SHOWN = 5
"""Ids that an error names where a prefix fits several chats."""


@dataclass(frozen=True)
class ChatMessage:
    """What was said in a chat.

    Attributes:
        position: From 0. text: As it is shown.
        data: Of an answer, the whole of it, as JSON (see `ftlab_mlflow.app_store.plain`).
    """

    id: str
    position: int
    role: Role
    text: str
    data: Mapping[str, Any] = field(repr=False)
    created: datetime


@dataclass(frozen=True)
class Chat:
    """A conversation of one person.

    Attributes:
        id: Sorts by time.
        title: Empty until it has one.
        updated: When the last message came, or it was changed.
        data: What it is about and with which model, as JSON; which names there are is the chat's own matter.
        length: How many messages it has.
        messages: In order; empty in lists of chats.
    """

    id: str
    user: str
    title: str
    created: datetime
    updated: datetime
    data: Mapping[str, Any]
    length: int = 0
    messages: tuple[ChatMessage, ...] = field(default=(), repr=False)


class ChatStore:
    """The chats in an app database; `AppStore.chats` is one. May be shared by threads.

    Everybody sees their own chats only: another's is not found. A chat goes by its id, or by the beginning of
    its id where that fits no other chat of the person.

    All methods raise `AppStoreUnavailable` and `AppStoreError` as `AppStore` does.
    """

    def __init__(self, engine: Engine, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine = engine
        self._translated = translated

    # --- chats ---------------------------------------------------------------------------------------

    def create(self, user: str, title: str = "", data: Mapping[str, Any] | None = None) -> Chat:
        """A new chat. title: One line; of more than 200 characters, the first; empty: it has none yet."""
        now = datetime.now(UTC)
        row = StoredChat(
            id=new_id(), user=user, title=_title(title), created=now, updated=now, data=plain(data or {})
        )
        with self._translated(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            session.add(row)
        return _chat(row)

    def list(
        self, user: str, search: str | None = None, limit: int | None = None, offset: int = 0
    ) -> Sequence[Chat]:
        """A person's chats without their messages, the last one used first.

        Args:
            search: Only those in whose title or messages this text is, in upper or lower case.
        """
        length = (
            select(func.count()).where(StoredMessage.chat_id == StoredChat.id).correlate(StoredChat)
        ).scalar_subquery()
        query = select(StoredChat, length).where(StoredChat.user == user)
        if search and search.strip():
            text = plain_text(search.strip()).lower()
            said = exists().where(
                StoredMessage.chat_id == StoredChat.id,
                func.lower(StoredMessage.text).contains(text, autoescape=True),
            )
            query = query.where(or_(func.lower(StoredChat.title).contains(text, autoescape=True), said))
        query = query.order_by(StoredChat.updated.desc(), StoredChat.id.desc()).limit(limit).offset(offset)
        with self._translated(), Session(self._engine) as session:
            return [_chat(row, count) for row, count in session.execute(query)]

    def get(self, user: str, id: str) -> Chat:
        """A chat with its messages.

        Raises:
            ChatNotFound: No chat of that person goes by that id, or several do.
        """
        with self._translated(), Session(self._engine) as session:
            row = _found(session, user, id)
            query = select(StoredMessage).where(StoredMessage.chat_id == row.id)
            messages = [_message(each) for each in session.scalars(query.order_by(StoredMessage.position))]
            return _chat(row, len(messages), tuple(messages))

    def rename(self, user: str, id: str, title: str) -> Chat:
        """Another title. Raises: ChatNotFound, as `get`."""
        return self._change(user, id, title=_title(title))

    def update(self, user: str, id: str, data: Mapping[str, Any]) -> Chat:
        """Some names of its data with other values; the others stay. Raises: ChatNotFound, as `get`."""
        return self._change(user, id, data=plain(data))

    def _change(self, user: str, id: str, title: str | None = None, data: Any = None) -> Chat:
        with self._translated(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            found = _locked(session, user, _found(session, user, id).id)
            found.title = found.title if title is None else title
            found.data = found.data | (data or {})
            return _chat(found, _length(session, found.id))

    def delete(self, user: str, id: str) -> None:
        """Deletes a chat and its messages, not what they took. Raises: ChatNotFound, as `get`."""
        with self._translated(), Session(self._engine) as session, session.begin():
            row = _locked(session, user, _found(session, user, id).id)
            # SQLite cascades only where it is told to for each connection.
            session.execute(delete(StoredMessage).where(StoredMessage.chat_id == row.id))
            session.execute(delete(StoredChat).where(StoredChat.id == row.id))

    def add_message(
        self, chat: Chat, role: Role, text: str, data: Mapping[str, Any] | None = None
    ) -> ChatMessage:
        """One more message at the end of a chat, also where others write to it at the same time.

        Raises:
            ChatNotFound: It was deleted meanwhile.
        """
        with self._translated(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            found = _locked(session, chat.user, chat.id)
            row = StoredMessage(
                id=new_id(),
                chat_id=found.id,
                position=_length(session, found.id),
                role=role,
                text=plain_text(text),
                data=plain(data or {}),
                created=found.updated,
            )
            session.add(row)
        return _message(row)

    # --- what answers took ---------------------------------------------------------------------------

    def record_usage(
        self,
        user: str,
        chat_id: str | None,
        *,
        provider: str,
        model: str,
        input_tokens: int | None,
        output_tokens: int | None,
        cached_tokens: int | None = None,
        cache_write_tokens: int | None = None,
        cost_usd: float | None,
        counted_usd: float | None = None,
        counted_tokens: int | None = None,
        requests: int = 1,
        seconds: float = 0.0,
        first_token_s: float | None = None,
        at: datetime | None = None,
    ) -> None:
        """Keeps what one answer took. None is: not known, which is never summed as 0.

        Args:
            model: Its id, such as `openai/gpt-4o-mini`.
            counted_usd, counted_tokens: What budgets count; None: what is known.
            requests: To the model. at: None is now.
        """
        known = (input_tokens or 0) + (output_tokens or 0)
        row = StoredUsage(
            id=new_id(),
            user=user,
            chat_id=chat_id,
            at=at or datetime.now(UTC),
            provider=plain_text(provider)[:MAX_PROVIDER],
            model=plain_text(model)[:MAX_NAME],
            input_tokens=known_tokens(input_tokens),
            cached_tokens=known_tokens(cached_tokens),
            cache_write_tokens=known_tokens(cache_write_tokens),
            output_tokens=known_tokens(output_tokens),
            cost_usd=known_number(cost_usd),
            counted_usd=known_number(cost_usd if counted_usd is None else counted_usd) or 0.0,
            counted_tokens=known_tokens(known if counted_tokens is None else counted_tokens) or 0,
            requests=requests,
            seconds=known_number(seconds) or 0.0,
            first_token_s=known_number(first_token_s),
        )
        with self._translated(), Session(self._engine) as session, session.begin():
            session.add(row)

    def usage(
        self,
        user: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: By | Sequence[By] = "day",
        zone: tzinfo = UTC,
    ) -> Sequence[UsageRow]:
        """What answers took, summed: days in order, then what cost most first.

        Args:
            user: Only this person's; None is everybody's.
            since, until: From the first time to before the second.
            by: One row for each of these, or of each combination; empty: one row of all.
            zone: In which days begin and end.
        """
        names: Sequence[By] = (by,) if isinstance(by, str) else by
        query = usage.rows_query(names, user, since, until)
        with self._translated(), Session(self._engine) as session:
            return usage.merged(session.execute(query).all(), names, zone)

    def spent_today(self, user: str | None, now: datetime, zone: tzinfo = UTC) -> Spent:
        """What the answers of the day of `now` took, for a budget. user: None is everybody."""
        begin = usage.begin_of_day(now.astimezone(zone).date(), zone)
        rows = self.usage(user, since=begin, by=())
        return (
            Spent(rows[0].counted_usd, rows[0].counted_tokens, rows[0].unknown_cost_answers)
            if rows
            else Spent(0.0, 0, 0)
        )


def _found(session: Session, user: str, id: str) -> StoredChat:
    """The one chat of a person whose id begins with a text; with ``latest`` the one that was used last."""
    begin = plain_text(id.strip()).lower()
    if begin == "latest":
        newest = select(StoredChat).where(StoredChat.user == user)
        newest = newest.order_by(StoredChat.updated.desc(), StoredChat.id.desc())
        if row := session.scalars(newest.limit(1)).first():
            return row
        raise ChatNotFound(f"{user} has no chat yet")
    query = select(StoredChat).where(
        StoredChat.user == user, StoredChat.id.startswith(begin, autoescape=True)
    )
    rows = session.scalars(query.order_by(StoredChat.id).limit(_SHOWN + 1)).all() if begin else []
    if not rows:
        raise ChatNotFound(f"there is no chat {id.strip()!r} of {user}")
    if len(rows) > 1:
        shown = ", ".join(row.id for row in rows[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
        raise ChatNotFound(f"{id.strip()!r} begins the ids of several chats: {shown}")
    return rows[0]


def _locked(session: Session, user: str, id: str) -> StoredChat:
    """A chat that nobody else changes until the end of the transaction; it counts as just updated.

    To write to its row first is what both databases lock by: PostgreSQL the row, SQLite the file.
    """
    mine = (StoredChat.id == id, StoredChat.user == user)
    session.execute(update(StoredChat).where(*mine).values(updated=datetime.now(UTC)))
    row = session.scalars(select(StoredChat).where(*mine).execution_options(populate_existing=True)).first()
    if row is None:
        raise ChatNotFound(f"there is no chat {id!r} of {user}: it may have been deleted")
    return row


def _length(session: Session, chat_id: str) -> int:
    last = session.scalar(select(func.max(StoredMessage.position)).where(StoredMessage.chat_id == chat_id))
    return 0 if last is None else last + 1


def _title(text: str) -> str:
    line = " ".join(one_line(plain_text(text)).split())
    return line if len(line) <= MAX_TITLE else line[: MAX_TITLE - 1] + "…"


def _chat(row: StoredChat, length: int = 0, messages: tuple[ChatMessage, ...] = ()) -> Chat:
    return Chat(row.id, row.user, row.title, row.created, row.updated, row.data, length, messages)


def _message(row: StoredMessage) -> ChatMessage:
    role: Role = "user" if row.role == "user" else "assistant"
    return ChatMessage(row.id, row.position, role, row.text, row.data, row.created)
