from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctrain.demo.picture import Move, decisions, draw, figures
from ctrain.demo.traffic import Answered


def event(kind: str, reason: str = "") -> dict[str, Any]:
    return {"at": "2013-03-15T06:02:00+00:00", "kind": kind, "data": {"reason": reason}}


def answers() -> list[Answered]:
    """A minute at ten a second; slow in the second after the tenth; v2 for three seconds."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(600):
        at = 1000.0 + number / 10
        version = "v2" if 30 <= at - 1000 < 33 else "v1"
        label = float(rng.random() < 0.5)
        made.append(
            Answered(at, 0.5 if 10 <= at - 1000 < 11 else 0.01, version, "champion", label, 0.5, label)
        )
    return made


def test_events_are_named_by_what_became_of_the_weights() -> None:
    found = decisions(
        [
            event("run_started"),
            event("promoted", "no harm"),
            event("aborted", "the challenger failed on 47 mirrored requests"),
            event("aborted", "replica r refused the weights: CorruptArtifactError"),
            event("rolled_back", "pager"),
        ]
    )
    assert [move.what for move in found] == ["promoted", "rolled back", "weights refused", "rolled back"]
    assert found[0].at == 1363327320.0


def test_the_seconds_after_a_decision_stand_apart_but_not_those_after_refused_weights() -> None:
    assert figures(answers(), [Move(1010.0, "promoted")], 1000.0).swap_p99 == pytest.approx(500)
    steady = figures(answers(), [Move(1010.0, "weights refused")], 1000.0)
    assert steady.steady_p99 == pytest.approx(500)
    assert np.isnan(steady.swap_p99)
    assert (steady.champion_auc, steady.static_auc) == (1.0, 0.5)


def test_the_picture_begins_with_the_traffic_and_shows_a_challenger_of_three_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    moves = [Move(990.0, "promoted"), Move(1030.0, "promoted"), Move(1033.0, "weights refused")]
    draw(answers(), moves, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    top, _, bottom = plt.gcf().axes
    assert bottom.get_xlim()[0] == 0
    v2 = next(bars for bars in bottom.containers if bars.get_label() == "v2")
    assert sum(bar.get_height() > 0.4 for bar in v2) == 2
    assert {text.get_text() for text in top.get_legend().get_texts()} == {
        "p50", "p99", "promoted", "weights refused"
    }  # fmt: skip
    monkeypatch.undo()
    plt.close("all")
