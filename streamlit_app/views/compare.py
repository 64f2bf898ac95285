"""Up to ten runs beside each other: charts, live changes, what came of them, and what they were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import streamlit as st

from ftlab_mlflow.analytics import comparison
from ftlab_mlflow.analytics.comparison import MAX_RUNS
from ftlab_mlflow.analytics.metric_table import Group, charts, describe
from ftlab_mlflow.analytics.reader import RunRecord
from ftlab_mlflow.analytics.run_feed import RunFeed
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.units import plotted
from ftlab_mlflow.control.markers import markers
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.errors import RunNotFound, StoreUnavailable
from streamlit_app import state
from streamlit_app.components import banner, metrics, overlay, plot
from streamlit_app.components import charts as drawing
from streamlit_app.components.text import plain

# Charts that are shown unless others are chosen.
_FIRST = 6


def show() -> None:
    """The page; the ids of the runs are in the address."""
    st.title("Compare", anchor=False)
    ids = comparison.run_ids(st.query_params.get("runs", ""))
    if len(ids) > MAX_RUNS:
        st.info(f"At most {MAX_RUNS} runs are compared: these are the first of {len(ids)}.")
    feeds = _found(ids[:MAX_RUNS])
    if len(feeds) < 2:
        st.info("Choose two runs or more in the table of runs, then Compare.", icon=":material/table_rows:")
    st.page_link("views/runs.py", label="Choose runs", icon=":material/arrow_back:")
    if feeds:
        _live(feeds)
        plot.load()


def _found(ids: Sequence[str]) -> list[RunFeed]:
    """Those of the runs that there are; the others are named. While the store is away, what was read does."""
    feeds, unknown = [], []
    for run_id in ids:
        feed = state.run_feed(run_id)
        try:
            feed.refresh()
        except RunNotFound:
            unknown.append(run_id)
            continue
        except StoreUnavailable:
            if feed.record is None:
                raise
        feeds.append(feed)
    if unknown:
        st.warning("There are no such runs, or they were deleted:", icon=":material/search_off:")
        st.text("\n".join(unknown))
    return feeds


def _live(feeds: Sequence[RunFeed]) -> None:
    """The comparison; it refreshes itself while one of the runs goes on, and seldom when all are over."""

    def are_over() -> bool:
        return all(RunView.of(record.data).is_over for record in _records(feeds))

    were_over = are_over()

    @st.fragment(run_every=state.refresh_s(is_over=were_over), key="comparison")
    def fragment() -> None:
        try:
            for feed in feeds:
                feed.refresh()
        except StoreUnavailable as error:
            banner.away(error, min((feed.read_at for feed in feeds if feed.read_at), default=None))
        except RunNotFound:
            st.rerun()  # deleted meanwhile: the page says which
        if are_over() != were_over:
            st.rerun()
        _parts(feeds)

    fragment()


def _records(feeds: Sequence[RunFeed]) -> list[RunRecord]:
    return [feed.record for feed in feeds if feed.record is not None]


def _parts(feeds: Sequence[RunFeed]) -> None:
    records = _records(feeds)
    logged = {key: value for record in records for key, value in record.data.metrics.items()}
    keys = [key for chart in charts(logged) for key in chart.keys]
    titles = _titles(keys)
    how = metrics.look("compare")
    chosen = st.multiselect(
        "Charts", keys, default=keys[:_FIRST], key="compared", format_func=titles.__getitem__
    )
    wanted = dict.fromkeys([*chosen, *(["epoch"] if how.axis == "epoch" else [])])
    reads = [feed.read_ahead(wanted) for feed in feeds]
    runs = [
        _drawn(RunView.of(record.data), label, metrics.known(read))
        for record, label, read in zip(records, comparison.labels(records), reads, strict=True)
    ]
    overlay.time_line(runs, how)
    with st.grid(min_column_width=380, key="overlaid"):
        for key in chosen:
            with st.container():
                st.markdown(f"**{plain(titles[key])}**")
                _chart(runs, key, how)
    _outcomes(records, runs, {key: titles[key] for key in chosen})
    _params(records, [run.label for run in runs])


def _drawn(view: RunView, label: str, series: dict[str, Series]) -> overlay.Drawn:
    place = drawing.Place.of(view, series.get("epoch"))
    return overlay.Drawn(label, place, series, markers(view.entries))


def _titles(keys: Sequence[str]) -> dict[str, str]:
    """A title of each metric that no other of them has: Streamlit tells choices apart by it."""
    titles = {key: describe(key).title for key in keys}
    count = Counter(titles.values())
    return {key: title if count[title] == 1 else f"{title} ({key})" for key, title in titles.items()}


def _chart(runs: Sequence[overlay.Drawn], key: str, how: drawing.View) -> None:
    known = describe(key)
    factor, unit = _plotted(known.unit)
    scaled = [
        replace(
            run, series={k: replace(s, values=s.values * factor) for k, s in run.series.items() if k == key}
        )
        for run in runs
    ]
    axis = "time" if known.group is Group.SYSTEM else how.axis  # MLflow counts its samples as steps
    how = replace(how, axis=axis, log_y=how.log_y and known.log)
    drawing.show(overlay.metric(scaled, key, how, unit), f"overlaid {key}", known.title)


def _plotted(unit: str) -> tuple[float, str]:
    return plotted(unit, binary=state.preferences().memory_unit == "GiB")


def _outcomes(records: Sequence[RunRecord], runs: Sequence[overlay.Drawn], titles: Mapping[str, str]) -> None:
    st.subheader("Last and best values", anchor=False)
    best_in: list[list[str]] = [[] for _ in records]
    columns: dict[str, pa.Array] = {"run": pa.array([run.label for run in runs])}
    config: dict[str, Any] = {"run": st.column_config.TextColumn("Run", pinned=True)}
    for key, title in titles.items():
        found = comparison.outcome(key, records, [run.series.get(key) for run in runs])
        factor, unit = _plotted(found.metric.unit)
        for place in found.leaders:
            best_in[place].append(title)
        for word, values in (("last", found.last), ("best", found.best)):
            if values is not None:
                # Not by way of pandas, which would make nothing of NaN.
                shown = [None if value is None else value * factor for value in values]
                columns[f"{word} {key}"] = pa.array(shown, pa.float64(), from_pandas=False)
                config[f"{word} {key}"] = st.column_config.NumberColumn(
                    f"{title}, {word}" + (f", {unit}" if unit else ""), format="%.6g"
                )
    columns["best in"] = pa.array(best_in, pa.list_(pa.string()))
    config["best in"] = st.column_config.MultiselectColumn(
        "Best in", options=list(titles.values()), color="primary"
    )
    order = ["run", "best in", *(name for name in columns if name not in ("run", "best in"))]
    st.dataframe(
        pa.table(columns),
        column_order=order,
        column_config=config,
        hide_index=True,
        placeholder="–",
        key="outcomes",
    )


def _params(records: Sequence[RunRecord], names: Sequence[str]) -> None:
    st.subheader("Parameters that differ", anchor=False)
    differences = comparison.differing_params(records)
    if not differences:
        st.caption(
            "The runs were started with the same parameters."
            if len(records) > 1
            else "One run differs in nothing."
        )
        return
    columns: dict[str, pa.Array] = {"run": pa.array(names)}
    config: dict[str, Any] = {"run": st.column_config.TextColumn("Run", pinned=True)}
    for one in differences:
        name = f"param {one.name}"
        if one.numbers is None:
            columns[name] = pa.array(one.values, pa.string())
            config[name] = st.column_config.TextColumn(one.name)
        else:
            columns[name] = pa.array(one.numbers, pa.float64())
            config[name] = st.column_config.NumberColumn(one.name, format="%.10g")
    st.dataframe(pa.table(columns), column_config=config, hide_index=True, placeholder="–", key="params")


show()
