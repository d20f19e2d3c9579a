"""Our endpoint against a bare Serve deployment of the same network, on one Ray, in turn.

Ours: strict validation of 32 named fields, feature view, encoder, two resident models with a sticky split,
prediction ids, prediction log. Bare: a plain `__call__` that reads the JSON, runs the network and answers.
One replica each, behind the same HAProxy, the same generator with the same connections (closed loop). The
ratio is the median over pairs. CPU is that of every process of the cluster; `stages_us` are measured
afterwards in this process, with the cluster stopped, and say where ours goes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np


def deploy(root: Any, replicas: int, port: int) -> str:
    """Both applications; gives the path of each route."""
    import ray
    from ray import serve
    from remote import Bare, Steerer

    from ctrain.records import LiveDocument, to_json

    slots = common.register(root, 2)
    variables = {"CTRAIN_NAMESPACE": common.NAMESPACE}
    made: Any = ray.remote(Steerer).options(num_cpus=0, runtime_env={"env_vars": variables})
    steerer = made.remote(common.spec(replicas), str(root.path), common.NAMESPACE)
    document = LiveDocument(
        common.PIPELINE, 1, 1, champion=slots[0], challenger=slots[1], rollout="r", split=0.5
    )
    root.write_live(document)
    ray.get(steerer.call.remote("deploy", to_json(document)), timeout=60)
    weights = root.path / "models" / slots[0].version / "served.safetensors"
    application = Bare.options(num_replicas=replicas).bind(str(weights))
    serve.run(application, name="bare", route_prefix="/bare")
    for path in (f"/{common.PIPELINE}/predict", "/bare"):
        common.until(f"{path} answers", lambda path=path: common.answers(port, path), every=0.2)
    return str(weights)


def one_run(port: int, path: str, rate: float, connections: int, seconds: float) -> dict[str, Any]:
    cpu = common.Cpu()
    load = common.Load(port, path, rate, connections, seconds)
    rows = load.result(stop=False)
    ended = float((rows[:, 0] + rows[:, 1]).max())
    used = cpu.since()
    total, by_role = common.micros(used, len(rows))
    return {
        "failed": common.failed(rows),
        "requests": len(rows),
        "rps": len(rows) / (ended - load.began),
        "p50": common.quantile(rows, 0.5),
        "p99": common.quantile(rows, 0.99),
        "cpu_us": total,
        "by_role": by_role,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {
        name: round(statistics.median(run[name] for run in runs), 2)
        for name in ("rps", "p50", "p99", "cpu_us")
    }
    largest: dict[str, list[float]] = {}
    for run in runs:
        for role, micros in run["by_role"].items():
            largest.setdefault(role, []).append(micros)
    roles = {role: round(statistics.median(values), 1) for role, values in largest.items()}
    return {
        **middle,
        "failed": sum(run["failed"] for run in runs),
        "cpu_us_by_process": dict(sorted(roles.items(), key=lambda item: -item[1])[:6]),
    }


def stages(repeats: int = 3000) -> dict[str, float]:
    """Microseconds of each part of a prediction, in this process, without HTTP."""
    import torch
    from network import bodies

    from ctrain.records import LiveDocument
    from ctrain.serving.http import answer
    from ctrain.serving.predictor import Predictor
    from ctrain.serving.split import challenger_answers
    from ctrain.storage import Root

    class Nobody:
        def call(self, *arguments: Any, **named: Any) -> None:
            return None

    with tempfile.TemporaryDirectory() as folder:
        root = Root(Path(folder))
        root.path.mkdir(exist_ok=True)
        slot = common.register(root, 1)[0]
        root.write_live(LiveDocument(common.PIPELINE, 1, 1, champion=slot))
        predictor: Any = Predictor(common.PIPELINE, root, replica="here", link=Nobody())
        live, body = predictor.weights.now, bodies(1)[0]
        schema = live.schema
        model = live.champion
        rows = schema.read(body).rows
        arrays = model._read(rows)
        features = model._view(arrays)
        matrix = torch.from_numpy(model._encoder.encode(features))
        asked = schema.read(body)

        def network() -> None:
            with torch.inference_mode():
                torch.sigmoid(model._module(matrix)).tolist()

        parts = {
            "validate": lambda: schema.read(body),
            "split": lambda: challenger_answers("r", "user-1", 0.5),
            "rows_to_arrays": lambda: model._read(rows),
            "feature_view": lambda: model._view(arrays),
            "encode": lambda: model._encoder.encode(features),
            "network": network,
            "id_log_and_answer": lambda: predictor._answer(live, asked, model, "champion", [0.5], 0.0),
            "json_response_alone": lambda: answer(200, {"value": 0.5, "prediction_id": "x" * 40}),
        }
        found = {}
        for name, part in parts.items():
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                part()
                times.append(time.perf_counter() - start)
            found[name] = round(float(np.median(times)) * 1e6, 1)
        predictor.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=200, help="of the open-loop runs that give p50 and p99")
    parser.add_argument("--replicas", type=int, default=1)
    asked = parser.parse_args()
    paths = {"ctrain": f"/{common.PIPELINE}/predict", "bare": "/bare"}
    full: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
    calm: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
    with common.cluster() as (root, port):
        deploy(root, asked.replicas, port)
        for path in paths.values():
            one_run(port, path, 0, asked.connections, 3)
        cpu = common.Cpu()
        time.sleep(3)
        idle = sum(cpu.since().values()) / 3
        for repeat in range(asked.repeats):
            for name in list(paths)[:: 1 if repeat % 2 else -1]:
                full[name].append(one_run(port, paths[name], 0, asked.connections, asked.seconds))
                calm[name].append(one_run(port, paths[name], asked.rate, 0, asked.seconds / 2))
            common.say(f"{repeat + 1}: " + ", ".join(f"{n} {r[-1]['rps']:,.0f}/s" for n, r in full.items()))
    pairs = [a["rps"] / b["rps"] for a, b in zip(full["ctrain"], full["bare"], strict=True)]
    ours, bare = summary(full["ctrain"]), summary(full["bare"])
    common.report(
        {
            "rps_ratio_to_bare_serve": round(statistics.median(pairs), 3),
            "pairs": [round(pair, 3) for pair in pairs],
            "cpu_ratio_of_bare_to_ours": round(bare["cpu_us"] / ours["cpu_us"], 3),
            "failed": sum(run["failed"] for runs in (*full.values(), *calm.values()) for run in runs),
            "ctrain": ours,
            "bare": bare,
            f"open_loop_{asked.rate:g}_per_s": {name: summary(runs) for name, runs in calm.items()},
            "idle_cpu_share_of_a_core": round(idle, 3),
            "stages_us": stages(),
            "connections": asked.connections,
            "replicas": asked.replicas,
        }
    )


if __name__ == "__main__":
    main()
