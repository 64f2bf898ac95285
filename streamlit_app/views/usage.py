"""What answers of the chat took: by day, model, chat and person, beside what may be spent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pyarrow as pa
import streamlit as st

from ftlab_mlflow.analytics import units
from ftlab_mlflow.app_store.usage import UsageRow, begin_of_day
from ftlab_mlflow.chat.limits import Limits
from ftlab_mlflow.chat.money import dollars
from streamlit_app import identity, state
from streamlit_app.components import chat_asking, plot, usage_charts
from streamlit_app.components.chat_cost import known_cost
from streamlit_app.components.text import plain

_DAYS = {7: "7 days", 30: "30 days", 90: "90 days", 365: "A year"}


def show() -> None:
    """The page. Somebody who is signed in sees their own; elsewhere one person uses the dashboard: all."""
    st.title("Usage", anchor=False)
    user = identity.user()
    whose = user.name if user.signed_in else None
    _budgets(user.name)
    days = st.segmented_control(
        "Back from today", list(_DAYS), format_func=_DAYS.__getitem__, default=30, required=True, key="days"
    )
    zone = ZoneInfo(state.zone())
    last = datetime.now(zone).date()
    first = last - timedelta(days=days - 1)
    store = state.app_store().chats
    since = begin_of_day(first, zone)
    total = store.usage(whose, since=since, by=(), zone=zone)
    if not total:
        st.info("No answer in this time.", icon=":material/payments:")
        st.page_link("views/chat.py", label="Ask the runs", icon=":material/forum:")
        return
    _totals(total[0])
    _charts(store.usage(whose, since=since, by=("day", "model"), zone=zone), first, last)
    _tables(whose, since, zone)
    plot.load()


def _budgets(user: str) -> None:
    """What this person has spent today of what may be spent: the days of budgets are those of UTC."""
    limits = Limits.from_environment()
    spent = state.app_store().chats.spent_today(user, datetime.now(UTC))
    own = state.preferences().chat_usd_per_day
    bars: list[tuple[str, float, float, str]] = []
    if limits.usd_per_day is not None:
        bars.append(("a day", spent.cost_usd, limits.usd_per_day, "$"))
    if own is not None:
        bars.append(("a day, my own limit", spent.cost_usd, own, "$"))
    if limits.tokens_per_day is not None:
        bars.append(("tokens a day", float(spent.tokens), limits.tokens_per_day, ""))
    st.subheader("Today (UTC)", anchor=False)
    with st.grid(min_column_width=280, key="budgets"):
        for label, taken, most, sign in bars:
            said = f"{_amount(taken, sign)} of {_amount(most, sign)} {label}"
            st.progress(1.0 if taken >= most else taken / most, text=plain(said))
    if not bars:
        st.caption(
            f"{dollars(spent.cost_usd)} and {spent.tokens:,} tokens; no limit is set.".replace("$", r"\$")
        )
    if spent.unknown_answers:
        st.caption(
            f"{_answers(spent.unknown_answers)} of unknown cost: limits count an estimate where the model "
            "has a price, else nothing."
        )


def _amount(value: float, sign: str) -> str:
    return dollars(value) if sign else units.count(value)


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _totals(row: UsageRow) -> None:
    with st.grid(min_column_width=128, key="totals"):
        st.metric("answers", f"{row.answers:,}")
        st.metric(
            "known cost",
            plain("unknown" if row.unknown_cost_answers == row.answers else dollars(row.cost_usd)),
        )
        st.metric("input tokens", f"{row.input_tokens:,}")
        st.metric("of these cached", f"{row.cached_tokens:,}")
        st.metric("output tokens", f"{row.output_tokens:,}")
        st.metric("requests", f"{row.requests:,}")
        st.metric("time answering", units.duration(row.seconds))
    if row.unknown_cost_answers:
        st.caption(
            f"{_answers(row.unknown_cost_answers)} of unknown cost: a price is not known, or a server did "
            "not say what it used. They are in no sum of dollars."
        )
    if row.unknown_token_answers:
        st.caption(f"{_answers(row.unknown_token_answers)} of an unknown number of tokens.")


def _charts(rows: Sequence[UsageRow], first: date, last: date) -> None:
    with st.grid(min_column_width=460, key="usage charts"):
        with st.container():
            st.markdown("**US dollars a day, by model**")
            usage_charts.cost(rows, first, last)
        with st.container():
            st.markdown("**Tokens a day**")
            usage_charts.tokens(rows, first, last)


def _tables(whose: str | None, since: datetime, zone: tzinfo) -> None:
    store = state.app_store().chats
    by_model = store.usage(whose, since=since, by="model", zone=zone)
    _table("By model", "Model", [row.model or "" for row in by_model], by_model)
    by_chat = store.usage(whose, since=since, by="chat", zone=zone)
    titles = [row.title or "untitled" if row.title is not None else "deleted" for row in by_chat]
    _table("By chat", "Chat", titles, by_chat, are_chats=True)
    by_user = store.usage(whose, since=since, by="user", zone=zone)
    if len(by_user) > 1:
        _table("By person", "Person", [row.user or "" for row in by_user], by_user)


def _table(
    title: str, heading: str, names: Sequence[str], rows: Sequence[UsageRow], *, are_chats: bool = False
) -> None:
    st.subheader(title, anchor=False)
    numbers = {
        "Answers": [row.answers for row in rows],
        "Input tokens": [row.input_tokens for row in rows],
        "Cached": [row.cached_tokens for row in rows],
        "Output tokens": [row.output_tokens for row in rows],
    }
    columns = {heading: pa.array(names, pa.string())}
    columns |= {name: pa.array(values, pa.int64()) for name, values in numbers.items()}
    columns["Cost"] = pa.array([known_cost(row) for row in rows], pa.string())
    config = {name: st.column_config.NumberColumn(format="localized") for name in numbers}
    config["Cost"] = st.column_config.TextColumn(alignment="right")
    if are_chats:
        links = [None if row.title is None else f"chat?{chat_asking.CHAT}={row.chat_id}" for row in rows]
        columns["Open"] = pa.array(links, pa.string())
        config["Open"] = st.column_config.LinkColumn("", display_text="open")
    st.dataframe(
        pa.table(columns), hide_index=True, column_config=config, placeholder="–", key=f"usage {title}"
    )


show()
