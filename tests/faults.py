"""Faults with a known answer, injected into windows of the real streams of `tests.datasets`.

A case is what `ctrain.monitoring.diagnosis.diagnose` is asked: the judged window, the contiguous windows
before it, and the events known without statistics. The champion is a boosted model trained on the windows
before those, so that it has seen none of them; it scores the rows as the fault left them. Where a fault
must be drawn (feature, share, segment), it is drawn from the case's seed.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from ctrain.monitoring.diagnosis import Events, Frame
from ctrain.monitoring.diagnosis.frames import LabelKind
from tests.datasets import load

Columns = dict[str, npt.NDArray[Any]]

TRAINED, PAST = 10, 16
"""Least number of windows that the champion learns from; windows between them and the judged one."""
LEARNT_AT_MOST = 30_000
"""Rows that the champion learns from: the newest ones before the past."""

SPANS = {"flights": 7, "hotel": 14, "bike": 14}
"""Days of a window; weeks, so that weekdays are in each alike."""
ROWS = 700
"""Rows of a window of bank, whose blocks have no even calendar; made of whole blocks."""


@dataclass(frozen=True)
class Case:
    window: Frame
    past: tuple[Frame, ...]
    events: Events
    note: str
    """What was drawn."""


@dataclass
class _Draft:
    """A case under construction: the fault changes it before the champion scores."""

    name: str
    index: int
    random: np.random.Generator
    past: list[Frame]
    columns: Columns
    labels: npt.NDArray[np.float64]
    events: Events
    champion: Any
    note: str = ""
    scores: npt.NDArray[np.float64] | None = None
    """Set by faults of the scores themselves."""


@functools.cache
def windows(name: str) -> tuple[slice, ...]:
    """Contiguous windows of a set, as slices of its rows."""
    data = load(name)
    if name in SPANS:
        step = SPANS[name]
        return tuple(data.rows(day, day + step) for day in range(0, data.days - step + 1, step))
    starts, found = np.searchsorted(data.day, np.arange(data.days + 1)), [0]
    for start in starts:
        if start - found[-1] >= ROWS:
            found.append(int(start))
    return tuple(slice(a, b) for a, b in pairwise(found))


def judged(name: str) -> range:
    """Numbers of the windows that have a champion and a past."""
    return range(TRAINED + PAST, len(windows(name)))


@functools.cache
def columns_of(name: str) -> tuple[Columns, npt.NDArray[np.float64]]:
    data = load(name)
    columns: Columns = {}
    for column, values in data.features.items():
        text = values.dtype.kind not in "fiu"
        columns[str(column)] = (
            values.astype(object).fillna("").to_numpy(str) if text else values.to_numpy(float)
        )
    return columns, data.label


def _rows(name: str, rows: Any) -> tuple[Columns, npt.NDArray[np.float64]]:
    columns, labels = columns_of(name)
    return {column: values[rows] for column, values in columns.items()}, labels[rows].copy()


class Champion:
    """A boosted model of one set: raw columns in, probabilities or predicted values out."""

    def __init__(self, columns: Columns, labels: npt.NDArray[np.float64], kind: str, seed: int = 0) -> None:
        self.kind = kind
        self._known = {name: np.unique(v) for name, v in columns.items() if v.dtype.kind == "U"}
        mask = [name in self._known and len(self._known[name]) <= 200 for name in columns]
        settings: dict[str, Any] = {
            "max_iter": 100, "max_leaf_nodes": 15, "random_state": seed, "categorical_features": mask,
        }  # fmt: skip
        self._dead: set[str] = set()
        matrix = self._matrix(columns)
        self._dead = {n for n, column in zip(columns, matrix.T, strict=True) if np.isnan(column).all()}
        matrix = self._matrix(columns)
        if kind == "binary":
            self.model: Any = HistGradientBoostingClassifier(**settings).fit(matrix, labels)
        else:
            self.model = HistGradientBoostingRegressor(loss="poisson", **settings).fit(matrix, labels)

    def _matrix(self, columns: Columns) -> npt.NDArray[np.float64]:
        encoded = []
        for name, values in columns.items():
            if name in self._known:
                place = np.minimum(np.searchsorted(self._known[name], values), len(self._known[name]) - 1)
                known = self._known[name][place] == values
                encoded.append(np.where(known, place, np.nan))
            else:
                # an all-missing column makes the binning raise
                encoded.append(np.zeros(len(values)) if name in self._dead else values.astype(float))
        return np.column_stack(encoded)

    def scores(self, columns: Columns) -> npt.NDArray[np.float64]:
        matrix = self._matrix(columns)
        return self.model.predict_proba(matrix)[:, 1] if self.kind == "binary" else self.model.predict(matrix)


def _learnt(name: str, index: int) -> npt.NDArray[np.int64]:
    end = windows(name)[index - PAST].start
    return np.arange(max(0, end - LEARNT_AT_MOST), end)


@functools.lru_cache(maxsize=64)
def _champion(name: str, index: int, seed: int = 0) -> Champion:
    rows = _learnt(name, index)
    if seed:  # another model of the same procedure
        rows = np.sort(np.random.default_rng(seed).choice(rows, len(rows)))
    columns, labels = _rows(name, rows)
    return Champion(columns, labels, load(name).kind, seed)


def case(name: str, fault: str, index: int, seed: int) -> Case:
    """Make a case.

    Args:
        name: Set.
        fault: One of `FAULTS`.
        index: Number of the judged window, one of `judged(name)`.
        seed: What is drawn depends on it, on the set, the fault and the window.
    """
    key = zlib.crc32(f"{name} {fault} {index}".encode())
    random = np.random.default_rng([seed, key])
    cut = windows(name)
    columns, labels = _rows(name, cut[index])
    draft = _Draft(
        name, index, random, list(_past(name, index)), columns, labels, Events(), _champion(name, index)
    )
    FAULTS[fault](draft)
    scores = draft.champion.scores(draft.columns) if draft.scores is None else draft.scores
    kind, previous = draft.past[0].kind, None
    if draft.events.promoted_windows_ago is not None:  # the version before stays in shadow
        previous = _champion(name, index).scores(draft.columns)
    window = Frame(draft.columns, draft.labels, scores, kind, previous)
    return Case(window, tuple(draft.past), draft.events, draft.note)


def _scored(name: str, index: int, rows: Any) -> Frame:
    columns, labels = _rows(name, rows)
    kind: LabelKind = "binary" if load(name).kind == "binary" else "number"
    return Frame(columns, labels, _champion(name, index).scores(columns), kind)


@functools.lru_cache(maxsize=8)
def _past(name: str, index: int) -> tuple[Frame, ...]:
    return tuple(_scored(name, index, rows) for rows in windows(name)[index - PAST : index])


# --- which feature ------------------------------------------------------------------------------


def _missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return values == "" if values.dtype.kind == "U" else np.isnan(values)


def _usable(draft: _Draft, text: bool | None = None, distinct: int = 2) -> list[str]:
    """Features that are present in 80 % of the rows and are not nearly constant (no value above 90 %)."""
    found = []
    for name, values in draft.columns.items():
        present = values[~_missing(values)]
        if len(present) < 0.8 * len(values) or (text is not None and (values.dtype.kind == "U") != text):
            continue
        counts = np.unique(present, return_counts=True)[1]
        if len(counts) >= distinct and counts.max() <= 0.9 * len(present):
            found.append(name)
    return found


def _pick(draft: _Draft, names: list[str]) -> str:
    assert names, f"no feature of {draft.name} fits"
    return names[int(draft.random.integers(len(names)))]


# --- faults of inputs ---------------------------------------------------------------------------


def none(draft: _Draft) -> None:
    """Nothing."""


def missing(draft: _Draft) -> None:
    """20 to 60 % of a feature is missing."""
    name, share = _pick(draft, _usable(draft)), draft.random.uniform(0.2, 0.6)
    values = draft.columns[name].copy()
    values[draft.random.random(len(values)) < share] = "" if values.dtype.kind == "U" else np.nan
    draft.columns[name], draft.note = values, f"{name} {share:.2f}"


UNITS: tuple[Callable[[Any], Any], ...] = (
    lambda x: x * 1.609344, lambda x: x / 1.609344, lambda x: x * 0.3048, lambda x: x * 2.54,
    lambda x: (x - 32) / 1.8, lambda x: x * 1.8 + 32,
)  # fmt: skip
SCALES = (0.01, 0.1, 10.0, 100.0, 1000.0)


def unit(draft: _Draft) -> None:
    """A number comes in another unit (miles, feet, inches, degrees)."""
    name = _pick(draft, _usable(draft, text=False, distinct=5))
    which = int(draft.random.integers(len(UNITS)))
    draft.columns[name], draft.note = UNITS[which](draft.columns[name]), f"{name} unit {which}"


def scale(draft: _Draft) -> None:
    """A number comes times a power of ten."""
    name = _pick(draft, _usable(draft, text=False, distinct=5))
    factor = float(draft.random.choice(SCALES))
    draft.columns[name], draft.note = draft.columns[name] * factor, f"{name} x{factor}"


def new_category(draft: _Draft) -> None:
    """A category of 5 to 60 % of the rows gets a new name; bike, without text, a code never seen."""
    if draft.name == "bike":
        name = _pick(draft, [n for n in ("season", "weekday", "weathersit", "mnth") if n in _usable(draft)])
        values, fresh = draft.columns[name], 99.0
    else:
        name = _pick(draft, [n for n in _usable(draft, text=True) if _levels(draft.columns[n])])
        values, fresh = draft.columns[name].astype("<U40"), "renamed in the source"
    old = _levels(values)[int(draft.random.integers(len(_levels(values))))]
    draft.columns[name] = np.where(values == old, fresh, values)
    draft.note = f"{name}={old}"


def _levels(values: npt.NDArray[Any], low: float = 0.05, high: float = 0.6) -> list[Any]:
    found, counts = np.unique(values[~_missing(values)], return_counts=True)
    shares = counts / len(values)
    return list(found[(shares >= low) & (shares <= high)])


def stuck(draft: _Draft) -> None:
    """From some moment in the first 40 % of the window, a feature repeats its last value."""
    choices = []
    start = int(draft.random.uniform(0, 0.4) * len(draft.labels))
    for name in _usable(draft):
        values = draft.columns[name]
        if not _missing(values)[start] and (values[start:] != values[start]).mean() >= 0.3:
            choices.append(name)
    name = _pick(draft, choices)
    values = draft.columns[name].copy()
    values[start:] = values[start]
    draft.columns[name], draft.note = values, f"{name}={values[start]} from {start}"


def _tilt(draft: _Draft, index: int, name: str, upper: Any, keep: float) -> Any:
    """Half of the rows of a window and the one after it, those of one side of a feature preferred."""
    cut = windows(draft.name)
    end = cut[min(index + 1, len(cut) - 1)].stop
    columns, _ = _rows(draft.name, np.arange(cut[index].start, end))
    chance = np.where(_side(columns[name], upper), 1.0, keep)
    size = len(chance) // 2
    keys = np.log(draft.random.random(len(chance))) / chance  # without replacement, in proportion
    return cut[index].start + np.sort(np.argsort(-keys)[:size])


def _side(values: npt.NDArray[Any], upper: Any) -> npt.NDArray[np.bool_]:
    if values.dtype.kind == "U":
        return np.isin(values, upper)
    side: npt.NDArray[np.bool_] = (values >= upper[0]) & (values <= upper[1])
    return side


def _half(draft: _Draft) -> tuple[str, Any]:
    """A feature and a side of it that holds 30 to 65 % of the rows of the window."""
    for _ in range(200):
        name = _pick(draft, _usable(draft))
        values = draft.columns[name]
        if values.dtype.kind == "U":
            levels = np.unique(values)
            upper: Any = levels[draft.random.random(len(levels)) < 0.5]
        else:
            middle = float(np.nanmedian(values))
            upper = (middle, np.inf) if draft.random.random() < 0.5 else (-np.inf, middle)
        if 0.3 <= _side(values, upper).mean() <= 0.65:
            return name, upper
    raise AssertionError(f"no half of {draft.name}")


def covariate(draft: _Draft) -> None:
    """Rows of one half of a feature are five to twenty times as likely to be drawn, without replacement."""
    name, upper, keep = _visible(draft)
    draft.columns, draft.labels = _rows(draft.name, _tilt(draft, draft.index, name, upper, keep))
    draft.note = f"{name} {upper} {keep:.2f}"


def _visible(draft: _Draft) -> tuple[str, Any, float]:
    """A half whose preference moves its share 1.5 times as far as any two past windows in a row are apart.

    A smaller one is weather: nobody could tell it from what the stream does by itself. Of 30 draws, the first
    such; else the last.
    """
    for _ in range(30):
        name, upper = _half(draft)
        keep = 1 / draft.random.uniform(5, 20)
        shares = [float(_side(frame.columns[name], upper).mean()) for frame in draft.past]
        rows = _tilt(draft, draft.index, name, upper, keep)
        now = float(_side(columns_of(draft.name)[0][name][rows], upper).mean())
        if abs(now - shares[-1]) > 1.5 * np.abs(np.diff(shares)).max():
            break
    return name, upper, keep


def traffic_mix(draft: _Draft) -> None:
    """The same, and an event says so: a campaign, a new market."""
    covariate(draft)
    draft.events = replace(draft.events, traffic_mix=(draft.note.split()[0],))


def season(draft: _Draft) -> None:
    """The same shift came every 4 to 7 windows before; in half of the cases a good version came with it."""
    name, upper, keep = _visible(draft)
    period = int(draft.random.integers(4, 8))
    for back in range(period, PAST + 1, period):
        rows = _tilt(draft, draft.index - back, name, upper, keep)
        draft.past[PAST - back] = _scored(draft.name, draft.index, rows)
    draft.columns, draft.labels = _rows(draft.name, _tilt(draft, draft.index, name, upper, keep))
    if draft.random.random() < 0.5:
        good_version(draft)
    draft.note = f"{name} {upper} every {period} {draft.events.promoted_windows_ago}"


# --- faults of the relation and of labels -------------------------------------------------------


def _mirrored(draft: _Draft, rows: npt.NDArray[np.bool_]) -> None:
    """Turn the relation round: the other class, or the count at the mirrored rank."""
    labels = draft.labels
    if load(draft.name).kind == "binary":
        labels[rows] = 1 - labels[rows]
    else:
        order = np.sort(labels)
        rank = np.searchsorted(order, labels[rows])
        labels[rows] = order[len(order) - 1 - rank]


def concept(draft: _Draft) -> None:
    """The relation is inverted on half of the space."""
    name, upper = _half(draft)
    _mirrored(draft, _side(draft.columns[name], upper))
    draft.note = f"{name} {upper}"


def concept_local(draft: _Draft) -> None:
    """The relation is inverted in one segment of 10 to 50 % of the rows."""
    choices = [
        (name, level)
        for name in load(draft.name).segments
        for level in _levels(draft.columns[name], 0.1, 0.5)
    ]
    name, level = choices[int(draft.random.integers(len(choices)))]
    _mirrored(draft, draft.columns[name] == level)
    draft.note = f"{name}={level}"


@functools.lru_cache(maxsize=8)
def _oracle(name: str) -> Champion:
    columns, labels = _rows(name, slice(0, None))
    return Champion(columns, labels, load(name).kind)


def concept_drifted(draft: _Draft) -> None:
    """Labels are drawn from a model of the whole set that sees one feature reversed.

    The feature is one whose reversal moves the expected label by at least 0.1 in the mean (of its
    standard deviation, for a count), so that there is something to see.
    """
    oracle = _oracle(draft.name)
    before = oracle.scores(draft.columns)
    unit = 1.0 if load(draft.name).kind == "binary" else float(draft.labels.std())
    choices = []
    for name in _usable(draft):
        moved = oracle.scores(draft.columns | {name: _reversed(draft.columns[name])})
        if np.abs(moved - before).mean() / unit >= 0.1:
            choices.append((name, moved))
    if not choices:
        concept(draft)
        return
    name, moved = choices[int(draft.random.integers(len(choices)))]
    if load(draft.name).kind == "binary":
        draft.labels = (draft.random.random(len(moved)) < moved).astype(float)
    else:
        draft.labels = np.maximum(np.round(draft.labels * moved / np.maximum(before, 1e-9)), 0)
    draft.note = f"{name} moves {np.abs(moved - before).mean() / unit:.2f}"


def _reversed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The value at the mirrored rank; for text, of the levels in order of frequency."""
    present = ~_missing(values)
    turned = values.copy()
    if values.dtype.kind == "U":
        levels, counts = np.unique(values[present], return_counts=True)
        levels = levels[np.argsort(counts)]
        swap = dict(zip(levels.tolist(), levels[::-1].tolist(), strict=True))
        turned[present] = [swap[value] for value in values[present].tolist()]
    else:
        order = np.sort(values[present])
        turned[present] = order[len(order) - 1 - np.searchsorted(order, values[present])]
    return turned


def noise_symmetric(draft: _Draft) -> None:
    """20 to 30 % of the labels are flipped; of counts, twice as many exchanged among rows."""
    share = draft.random.uniform(0.2, 0.3)
    if load(draft.name).kind == "binary":
        flipped = draft.random.random(len(draft.labels)) < share
        draft.labels[flipped] = 1 - draft.labels[flipped]
    else:
        rows = np.flatnonzero(draft.random.random(len(draft.labels)) < 2 * share)
        draft.labels[rows] = draft.labels[draft.random.permutation(rows)]
    draft.note = f"{share:.2f}"


def noise_one_class(draft: _Draft) -> None:
    """30 to 50 % of one class (drawn) is labelled as the other; of counts, from above the median to below."""
    share, labels = draft.random.uniform(0.3, 0.5), draft.labels
    if load(draft.name).kind == "binary":
        one = float(draft.random.integers(2))
        flipped = (labels == one) & (draft.random.random(len(labels)) < share)
        labels[flipped] = 1 - one
        draft.note = f"{one:.0f} {share:.2f}"
    else:
        middle = np.median(labels)
        flipped = (labels > middle) & (draft.random.random(len(labels)) < share)
        labels[flipped] = draft.random.choice(labels[labels <= middle], int(flipped.sum()))
        draft.note = f"{share:.2f}"


def prior(draft: _Draft) -> None:
    """Label shift: two thirds of the rows of one class (drawn) are left out; of counts, all grow by half."""
    if load(draft.name).kind == "binary":
        one = float(draft.random.integers(2))
        kept = (draft.labels != one) | (draft.random.random(len(draft.labels)) < 1 / 3)
        draft.columns = {name: values[kept] for name, values in draft.columns.items()}
        draft.labels = draft.labels[kept]
        draft.note = f"class {one:.0f}"
    else:
        draft.labels = np.round(draft.labels * 1.5)


def label_delay(draft: _Draft) -> None:
    """60 to 95 % of the labels have not come; in half of the cases those of one class come last."""
    share = draft.random.uniform(0.6, 0.95)
    late = draft.random.random(len(draft.labels)) < share
    if draft.random.random() < 0.5:
        late |= draft.labels > np.median(draft.labels)
    draft.labels[late] = np.nan
    draft.events = replace(draft.events, unlabelled_share=float(late.mean()))
    draft.note = f"{late.mean():.2f}"


# --- faults of versions, serving and sources ----------------------------------------------------


def good_version(draft: _Draft) -> None:
    """A promotion, of another model of the same procedure."""
    draft.champion = _champion(draft.name, draft.index, int(draft.random.integers(1, 4)))
    draft.events = replace(draft.events, promoted_windows_ago=0)


def bad_version(draft: _Draft) -> None:
    """A promotion, of a spoiled model: of shuffled labels, of labels half inverted, or overconfident.

    Of the three ways in a drawn order, the first that costs at least a tenth of the labels' variance against
    the version before; where the stream explains so little that none does, the scores are inverted.
    """
    truth = draft.labels
    before = draft.champion.scores(draft.columns)
    ways = [("shuffled", "half inverted", "overconfident")[way] for way in draft.random.permutation(3)]
    for way in (*ways, "inverted"):
        draft.scores, draft.note = _spoiled(draft, way, before), way
        harm = np.mean((truth - draft.scores) ** 2) - np.mean((truth - before) ** 2)
        if harm / truth.var() >= 0.1:
            break
    draft.events = replace(draft.events, promoted_windows_ago=0)


def _spoiled(draft: _Draft, way: str, before: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    binary = load(draft.name).kind == "binary"
    if way == "inverted":
        return 1 - before if binary else np.sort(before)[::-1][np.argsort(np.argsort(before))]
    if way == "overconfident":
        if not binary:
            return before * draft.random.choice([0.4, 2.0])
        chance = np.clip(before, 1e-6, 1 - 1e-6)
        logit = np.log(chance / (1 - chance))
        return 1 / (1 + np.exp(-(3 * logit + draft.random.choice([-2.0, 2.0]))))
    columns, labels = _rows(draft.name, _learnt(draft.name, draft.index))
    if way == "shuffled":
        labels = draft.random.permutation(labels)
    else:
        rows = draft.random.random(len(labels)) < 0.5
        labels[rows] = np.sort(labels)[::-1][np.argsort(np.argsort(labels, kind="stable"))][rows]
    return Champion(columns, labels, load(draft.name).kind).scores(draft.columns)


def serving_skew(draft: _Draft) -> None:
    """A feature is shuffled on the way to the model, so that online and batch differ; the check saw it."""
    name = _pick(draft, _usable(draft))
    broken = draft.columns | {name: draft.random.permutation(draft.columns[name])}
    draft.scores = draft.champion.scores(broken)
    draft.events = replace(draft.events, skewed_share=float(draft.random.uniform(0.05, 1.0)))
    draft.note = name


def schema(draft: _Draft) -> None:
    """A column is gone upstream, or comes as another kind; the contract reports it."""
    name = _pick(draft, _usable(draft))
    values = draft.columns[name]
    draft.columns[name] = np.full_like(values, "" if values.dtype.kind == "U" else np.nan)
    draft.events = replace(draft.events, schema_changes=(f"{name}: column is gone",))
    draft.note = name


FAULTS: dict[str, Callable[[_Draft], None]] = {
    fault.__name__: fault
    for fault in (
        none, missing, unit, scale, new_category, stuck, covariate, traffic_mix, season, concept,
        concept_local, concept_drifted, noise_symmetric, noise_one_class, prior, label_delay,
        good_version, bad_version, serving_skew, schema,
    )
}  # fmt: skip
