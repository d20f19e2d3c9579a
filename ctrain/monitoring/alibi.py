"""The one door to alibi-detect: its detectors as statistics on bounded samples.

What the library gets wrong by itself is met here. NaN is "no drift" to its univariate tests and "drift" to
MMD: univariate tests get the values that are there, joint ones get missing values at the reference's mean
(how many are missing is the summary's own score). A category that the reference lacks raises: it counts as
`other`.
Windows below `LEAST_ROWS` get a p-value all the same: here they get no statistic. Mixed float32 and float64
raise: both sides are float32, standardised first so that narrow ranges of large numbers keep their digits.
Online detectors keep histories that grow for ever, and LSDD's alarms on clean streams after a restart: here
each window is one fresh pass over its rows, so that there is no state to keep.

Importing it takes seconds and brings torch: only a task that lives, never a replica, comes here. It is under
the Business Source License 1.1.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.detectors import LEAST_ROWS, matrix, sample_rows
from ctrain.monitoring.summary import Columns, Layout, standardised
from ctrain.spec.monitoring import ChosenDetector

SEED = 20130101
TEST_WINDOW = 20
"""Rows of an online detector's sliding window."""

UNUSED: dict[str, Any] = {"ert": 20, "n_bootstraps": 100, "verbose": False}
"""Online detectors simulate thresholds when they are made; ours come from the stream, so: few runs."""

NUMBERS_ONLY, CATEGORIES_ONLY, BINARY_ONLY = ("ks", "cvm"), ("chi_square",), ("fet", "fet_online")
JOINT = ("mmd", "lsdd", "classifier", "mmd_online", "lsdd_online", "cvm_online")

Values = npt.NDArray[np.float32]


class AlibiDetector:
    """One detector of alibi-detect, chosen by a spec. Sees `spec.sample` rows at most on either side."""

    def __init__(self, spec: ChosenDetector) -> None:
        self._spec = spec

    def fit(self, reference: Columns) -> None:
        """Keep a sample of the features that it can take."""
        asked = {name: values for name, values in reference.items() if name in self._spec.features}
        columns = sample_rows(asked or reference, self._spec.sample)
        layout = Layout.fit(columns)
        kept = tuple(feature for feature in layout.features if self._takes(feature.name, columns))
        self._layout = Layout(layout.kind, tuple(f for f in layout.features if f in kept))
        self._reference = {f.name: columns[f.name] for f in kept}
        self._joint: Any = None
        if self._spec.type in JOINT and kept and len(columns[kept[0].name]) >= LEAST_ROWS:
            with _quiet():
                self._joint = _joint(self._spec.type, matrix(self._layout, self._reference))

    def score(self, window: Columns) -> dict[str, float]:
        """`<type>` of a joint detector, `<type>:<feature>` of a univariate one."""
        columns = {name: window[name] for name in self._reference if name in window}
        if len(columns) < len(self._reference) or not columns:
            return {}
        columns = sample_rows(columns, self._spec.sample)
        with _quiet():
            return self._jointly(columns) if self._spec.type in JOINT else self._each(columns)

    def _takes(self, name: str, columns: Columns) -> bool:
        is_text = columns[name].dtype.kind == "U"
        if self._spec.type in NUMBERS_ONLY:
            return not is_text
        if self._spec.type in CATEGORIES_ONLY:
            return is_text
        if self._spec.type in BINARY_ONLY:
            return not is_text and bool(np.isin(_there(columns[name]), (0.0, 1.0)).all())
        return True

    def _jointly(self, columns: Columns) -> dict[str, float]:
        rows = matrix(self._layout, columns)
        if self._joint is None or len(rows) < LEAST_ROWS:
            return {}
        return {self._spec.type: self._joint(rows)}

    def _each(self, columns: Columns) -> dict[str, float]:
        found = {}
        for feature in self._layout.features:
            sides = [standardised(feature, side[feature.name]) for side in (self._reference, columns)]
            if self._spec.type in BINARY_ONLY:
                sides = [_there(side[feature.name]) for side in (self._reference, columns)]
            here, there = (side[np.isfinite(side)] for side in sides)
            if min(len(here), len(there)) < LEAST_ROWS or not np.isfinite(there).all():
                continue
            if self._spec.type in BINARY_ONLY and not np.isin(there, (0.0, 1.0)).all():
                continue  # no longer binary, which the contract reports
            pair = [side.astype(np.float32).reshape(-1, 1) for side in (here, there)]
            found[f"{self._spec.type}:{feature.name}"] = _UNIVARIATE[self._spec.type](*pair)
        return found


def _there(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    numbers = values.astype(np.float64)
    there: npt.NDArray[np.float64] = numbers[np.isfinite(numbers)]
    return there


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without alibi-detect's progress bars and warnings, and without touching the process's own seeds."""
    import torch

    state, before = np.random.get_state(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
            torch.random.fork_rng(devices=[]),
        ):
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
    finally:
        np.random.set_state(state)
        logging.disable(before)


def _ks(reference: Values, window: Values) -> float:
    from alibi_detect.cd import KSDrift

    return float(KSDrift(reference).predict(window)["data"]["distance"][0])


def _cvm(reference: Values, window: Values) -> float:
    from alibi_detect.cd import CVMDrift

    return float(CVMDrift(reference).predict(window)["data"]["distance"][0])


def _chi_square(reference: Values, window: Values) -> float:
    from alibi_detect.cd import ChiSquareDrift

    _, counts = np.unique(np.concatenate([reference, window]), return_inverse=True)
    codes = counts.reshape(-1, 1)
    here, there = codes[: len(reference)], codes[len(reference) :]
    values = {0: list(range(int(codes.max()) + 1))}
    if len(values[0]) < 2:
        return 0.0  # one category on both sides
    # The reference must have seen every category; a row of each is added to it where it lacks some.
    lacking = np.setdiff1d(np.arange(len(values[0])), here).reshape(-1, 1)
    here = np.concatenate([here, lacking])
    return float(ChiSquareDrift(here, categories_per_feature=values).predict(there)["data"]["distance"][0])


def _fet(reference: Values, window: Values) -> float:
    from alibi_detect.cd import FETDrift

    found = FETDrift(reference.astype(int), alternative="two-sided").predict(window.astype(int))["data"]
    # Its distance is an odds ratio, 0 to infinite; the p-value's size orders both directions alike.
    return float(-np.log10(max(float(found["p_val"][0]), 1e-300)))


def _fet_online(reference: Values, window: Values) -> float:
    from alibi_detect.cd import FETDriftOnline

    both = []
    for flip in (False, True):  # it looks for rises only
        here, there = (np.logical_xor(side, flip).astype(int) for side in (reference, window))
        detector = FETDriftOnline(here, window_sizes=[TEST_WINDOW], **UNUSED | {"n_bootstraps": 400})
        try:
            both.append(_passed(detector, there))
        except ValueError:  # its book-keeping of windows fails now and then: no opinion
            both.append(float("nan"))
    return float(np.max(both))


def _passed(detector: Any, rows: npt.NDArray[Any]) -> float:
    """Largest statistic of a fresh pass over the rows."""
    detector.reset_state()
    largest = -np.inf
    for row in rows:
        statistic = np.asarray(detector.predict(row)["data"]["test_stat"], dtype=np.float64)
        if np.isfinite(statistic).any():
            largest = max(largest, float(np.nanmax(statistic)))
    return largest if np.isfinite(largest) else float("nan")


def _joint(kind: str, reference: Values) -> Callable[[Values], float]:
    """A detector that is made once; only its statistic is asked for, so one permutation is enough."""
    from alibi_detect.cd import (
        ClassifierDrift,
        CVMDriftOnline,
        LSDDDrift,
        LSDDDriftOnline,
        MMDDrift,
        MMDDriftOnline,
    )

    if kind == "classifier":
        from sklearn.linear_model import LogisticRegression

        made: Any = ClassifierDrift(
            reference,
            LogisticRegression(max_iter=200),
            backend="sklearn",
            preds_type="probs",
            n_folds=3,
            seed=SEED,
        )
        return lambda rows: float(made.predict(rows)["data"]["distance"])
    if kind == "cvm_online":
        made = CVMDriftOnline(reference, window_sizes=[TEST_WINDOW], **UNUSED | {"n_bootstraps": 400})
        return lambda rows: _passed(made, rows)
    if kind in ("mmd_online", "lsdd_online"):
        online = MMDDriftOnline if kind == "mmd_online" else LSDDDriftOnline
        made = online(reference, window_size=TEST_WINDOW, backend="pytorch", **UNUSED)
        return lambda rows: _passed(made, rows)
    made = (MMDDrift if kind == "mmd" else LSDDDrift)(reference, backend="pytorch", n_permutations=1)
    return lambda rows: float(made.predict(rows)["data"]["distance"])


_UNIVARIATE: dict[str, Callable[[Values, Values], float]] = {
    "ks": _ks,
    "cvm": _cvm,
    "chi_square": _chi_square,
    "fet": _fet,
    "fet_online": _fet_online,
}
