"""Skew: answers as a replica gives them are those of the batch path, or it is seen that they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from factories import spec
from safetensors.torch import save
from test_monitoring import DAY, END, HOUR, START, Days, answer, hour_of, no_version
from test_score import version

from ctrain.errors import FeatureError
from ctrain.features import Column, columns_to_json, feature_view
from ctrain.models.build import build_module
from ctrain.models.encoder import Encoder
from ctrain.models.loading import load_network, weights_of
from ctrain.monitoring.skew import SAMPLE, TOLERANCE, BatchPath, check_skew
from ctrain.monitoring.windows import judge_window
from ctrain.records import KnownFacts, ModelVersion, WindowReport, WindowRequest, from_json, to_json
from ctrain.registry import TrainedSet
from ctrain.serving.prediction_log import PredictionLog, read_log
from ctrain.serving.schemas import RequestSchema
from ctrain.serving.weights import TorchModel
from ctrain.spec.model import TabularModel
from ctrain.storage import Root

COLUMNS = {
    "carrier": Column.category(nullable=True), "when": Column.timestamp(), "distance": Column.number(),
    "weight": Column.number(nullable=True), "vip": Column.flag(nullable=True),
}  # fmt: skip


def _features(rows, away: Any = 0.0):
    hour = rows["when"].astype("datetime64[h]").astype(int) % 24
    return {
        "carrier": rows["carrier"], "hour": np.sin(hour * np.pi / 12), "vip": rows["vip"],
        "distance": np.log1p(rows["distance"]) - away, "weight": rows["weight"],
    }  # fmt: skip


@feature_view(**COLUMNS)
def sound_view(rows):
    return _features(rows)


@feature_view(**COLUMNS)
def centred_view(rows):
    """Is another for one row than for many: what a view must not be."""
    return _features(rows, np.log1p(rows["distance"]).mean())


@feature_view(**COLUMNS)
def choosy_view(rows):
    if len(rows["distance"]) > 1 or (rows["distance"] > 2000).any():
        raise RuntimeError("too far")
    return _features(rows)


ENCODER = Encoder(
    {"carrier": ("AA", "UA")},
    {"hour": (0.0, 0.7), "vip": (0.5, 0.5), "distance": (6.0, 1.0), "weight": (50.0, 20.0)},
    {name: tuple(np.linspace(-8, 4, 13)) for name in ("hour", "vip", "distance", "weight")},
)


def tabular(root: Root, view: Any) -> ModelVersion:
    """A version of ctrain's own network, with weights that make its answers differ."""
    torch.manual_seed(5)
    model = to_json(TabularModel())
    module = build_module(model, ENCODER.inputs)
    weights = weights_of(module)
    for name, tensor in weights.items():
        weights[name] = tensor + 0.1 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
    one = TrainedSet("served", save(weights), ENCODER.to_json())
    changes = {
        "features": f"{__name__}:{view.function.__name__}", "view_hash": view.hash, "model": model,
        "columns": columns_to_json(COLUMNS),
    }  # fmt: skip
    return version(root, 0.0, trained=[one], **changes)


def requests(count: int) -> list[dict[str, Any]]:
    """Requests as clients send them."""
    random = np.random.default_rng(1)
    first = datetime(2026, 3, 1)
    rows = []
    for number in range(count):
        row = {
            "carrier": str(random.choice(["AA", "UA", "ZZ"])), "distance": float(random.uniform(50, 4000)),
            "when": (first + timedelta(minutes=37 * number)).isoformat() + ("+02:00" if number % 2 else ""),
            "weight": None if number % 5 == 0 else int(random.integers(1, 99)), "vip": bool(number % 2),
        }  # fmt: skip
        if number % 7 == 0:
            del row["carrier"], row["vip"]
        rows.append(row)
    return rows


def served(folder: Path, root: Root, manifest: ModelVersion, count: int = 120) -> pa.Table:
    """Answers as a replica gives and logs them, each request on its own."""
    model = TorchModel(load_network(root, manifest, manifest.served), manifest.served.sha256)
    schema = RequestSchema(model.columns)
    log = PredictionLog(folder, "r1", flush=60, clock=lambda: START)
    for row in requests(count):
        (read,) = schema.read(json.dumps({"features": row}).encode()).rows
        (value,) = model.predict([read])
        log.append(answer(START + 1, value)._replace(version=manifest.id, features=read))
    log.close()
    return read_log(folder, START, END)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def test_what_a_replica_answers_is_what_the_batch_path_computes(root: Root, tmp_path: Path) -> None:
    answers = served(tmp_path / "log", root, tabular(root, sound_view), 600)
    values = answers.column("value").to_numpy()
    assert values.std() > 0.02
    report = check_skew(answers, BatchPath(root))
    assert (report.state, report.rows, report.skewed, report.share) == ("alike", 600, 0, 0.0)
    assert report.largest < TOLERANCE / 50
    assert report.reason.startswith("600 answers computed again in batch: all alike, within ")


def test_a_view_that_looks_at_the_other_rows_is_skewed(root: Root, tmp_path: Path) -> None:
    report = check_skew(served(tmp_path / "log", root, tabular(root, centred_view)), BatchPath(root))
    assert (report.state, report.rows) == ("skewed", 120)
    assert report.share > 0.9
    assert report.reason.startswith(f"{report.skewed} of 120 answers differ from the batch path by more than")


def test_answers_of_other_weights_than_the_stored_ones_are_skewed(root: Root, tmp_path: Path) -> None:
    answers = served(tmp_path / "log", root, tabular(root, sound_view), 40)
    other = answers.column("value").to_numpy().copy()
    other[:3] += 3 * TOLERANCE
    other[3:6] += TOLERANCE / 3
    report = check_skew(answers.set_column(9, "value", pa.array(other)), BatchPath(root))
    assert (report.skewed, report.share) == (3, 0.075)
    assert report.largest == pytest.approx(3 * TOLERANCE, rel=0.02)


def test_rows_that_the_view_refuses_in_batch_are_computed_one_by_one_and_counted(
    root: Root, tmp_path: Path
) -> None:
    answers = served(tmp_path / "log", root, tabular(root, sound_view), 60)
    choosy = tabular(root, choosy_view)
    renamed = answers.set_column(4, "version", pa.array([choosy.id] * 60))
    far = sum(json.loads(text)["distance"] > 2000 for text in answers.column("features").to_pylist())
    report = check_skew(renamed, BatchPath(root))
    assert (report.state, report.rows, report.refused, report.skewed) == ("alike", 60 - far, far, 0)
    assert report.reason.endswith(f"; {far} rows that it cannot compute (RuntimeError)")
    assert "too far" not in report.reason


def test_versions_whose_files_are_gone_or_damaged_are_named(root: Root, tmp_path: Path) -> None:
    manifest = tabular(root, sound_view)
    answers = served(tmp_path / "log", root, manifest, 40)
    versions = [manifest.id] * 30 + ["0123456789ab"] * 10
    report = check_skew(answers.set_column(4, "version", pa.array(versions)), BatchPath(root))
    assert (report.state, report.rows, report.gone) == ("alike", 30, 10)
    assert "10 of a version that cannot be loaded (0123456789ab: MissingArtifactError)" in report.reason
    (root.path / "models" / manifest.id / "served.safetensors").write_bytes(b"damaged")
    report = check_skew(answers, BatchPath(root))
    assert (report.state, report.rows, report.gone, report.share) == ("not_computed", 0, 40, 0.0)
    assert report.reason.startswith("none of 40 answers could be computed again; 40 of a version that cannot")


def test_an_answer_that_is_no_number_in_batch_is_skewed() -> None:
    answers = pa.table({"version": ["v"], "value": [0.4], "features": ["{}"]})
    report = check_skew(answers, lambda _: lambda rows: np.array([np.nan]))
    assert (report.state, report.largest) == ("skewed", 1.0)


# --- in a window ---


def judge(
    folder: Path, batch_path: Callable[[str], Any], number: int = 0, facts: KnownFacts | None = None
) -> WindowReport:
    end = END + number * HOUR
    asked = spec(label={"name": "y", "horizon": 30 * DAY}, monitoring={"minimum_rows": 10})
    request = WindowRequest(
        "k", "p", "/root", asked.to_json(), "v7", end - HOUR, end, end, facts=facts or KnownFacts()
    )
    return judge_window(request, asked, folder, Days(), batch_path)


def log_hour(folder: Path, number: int, each: int = 60) -> None:
    log = PredictionLog(folder, f"r{number}", flush=60, clock=lambda: END + (number - 1) * HOUR)
    for one in hour_of(number, each=each):
        log.append(one)
    log.close()


def otherwise(version: str) -> Callable[[list[Any]], np.ndarray]:
    return lambda rows: np.full(len(rows), 2.0)


def test_a_window_that_begins_to_be_skewed_is_diagnosed_and_the_next_one_is_no_news(tmp_path: Path) -> None:
    log_hour(tmp_path, 0)
    log_hour(tmp_path, 1)
    report = judge(tmp_path, otherwise)
    assert report.skew is not None
    assert (report.skew.state, report.skew.rows) == ("skewed", 60)
    assert report.diagnosis is not None
    assert (report.diagnosis.verdict, report.diagnosis.action) == ("serving_skew", "escalate")
    assert judge(tmp_path, otherwise, 1, KnownFacts(skewed=True)).diagnosis is None
    assert from_json(WindowReport, to_json(report)) == report
    older = {name: value for name, value in to_json(report).items() if name != "skew"}
    assert from_json(WindowReport, older).skew is None


def test_a_window_of_few_answers_is_checked_too_and_versions_that_are_gone_stop_nothing(
    tmp_path: Path,
) -> None:
    log_hour(tmp_path, 0, each=3)
    report = judge(tmp_path, no_version)
    assert (report.state, report.drift) == ("not_enough_rows", ())
    assert report.skew is not None
    assert (report.skew.state, report.skew.gone) == ("not_computed", 3)


def test_the_sample_is_bounded_and_the_same_each_time(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, "r", flush=60, clock=lambda: START)
    for number in range(SAMPLE + 300):
        log.append(answer(START + 1 + number, 0.5, size=float(number), kind="a"))
    log.close()
    asked: list[list[float]] = []

    def batch_path(version: str) -> Callable[[list[Any]], np.ndarray]:
        def compute(rows: list[Any]) -> np.ndarray:
            asked.append([row["size"] for row in rows])
            return np.full(len(rows), 0.5)

        return compute

    for _ in range(2):
        judge(tmp_path, batch_path)
    assert len(set(asked[0])) == SAMPLE
    assert asked[0] == asked[1]


def test_a_view_that_fails_on_all_rows_gives_no_answer_and_no_crash() -> None:
    def refuses(rows: list[Any]) -> np.ndarray:
        raise FeatureError("view", "is broken")

    answers = pa.table({"version": ["v"] * 3, "value": [0.4] * 3, "features": ["{}"] * 3})
    report = check_skew(answers, lambda _: refuses)
    assert (report.state, report.refused) == ("not_computed", 3)
