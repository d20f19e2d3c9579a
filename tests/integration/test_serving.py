import os
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
import ray
import safetensors.torch
import torch

from ctrain.features.statistics import PartitionStatistics
from ctrain.features.view import columns_to_json
from ctrain.models.build import build_module
from ctrain.models.encoder import Encoder
from ctrain.records import LiveDocument, Slot, from_json, to_json
from ctrain.registry.versions import TrainedSet, write_version
from ctrain.serving import read_log
from ctrain.spec import parse_spec
from ctrain.storage import Root
from ctrain.storage.code import load_attribute, store_code

VIEW = """
from ctrain.features import Column, feature_view

@feature_view(kind=Column.category(), size=Column.number(minimum=0))
def view(rows):
    return {"kind": rows["kind"], "size": rows["size"]}
"""
MODEL = {
    "type": "tabular",
    "hidden": [8],
    "dropout": 0.0,
    "numbers": "piecewise",
    "bins": 8,
    "minimum_count": 1,
}
SOURCE = {"type": "files", "path": "/data", "partition": "day", "event_time": "t"}
ASKED = {"key": "k", "features": {"kind": "a", "size": 3}}


def register(root: Root, code: str, seed: int) -> Slot:
    view = load_attribute(root, code, "shop:view")
    seen = {"kind": np.array(["a", "b"] * 50), "size": np.arange(100.0)}
    encoder = Encoder.fit(PartitionStatistics.of(seen), 8, 1)
    torch.manual_seed(seed)
    data = safetensors.torch.save(build_module(MODEL, encoder.inputs).state_dict())
    fields = {
        "pipeline": "shop", "run_id": f"r{seed}", "code": code, "features": "shop:view",
        "view_hash": view.hash, "columns": columns_to_json(view.columns), "model": MODEL, "label": "y",
        "threshold": 0.5, "dataset_version": 0, "partitions": (), "blocks": (), "seed": seed, "workers": 1,
        "parent": "", "rows": 100, "spec_sha256": "", "environment": {}, "metrics": {},
    }  # fmt: skip
    version = write_version(root, fields, [TrainedSet("served", data, encoder.to_json())])
    return Slot(version.id, f"v{seed}", version.served.sha256)


class Steerer:
    """Stands where the controller's actor stands: RayServing inside a Ray actor."""

    def __init__(self, root: str, namespace: str) -> None:
        from ctrain.serving.deploy import RayServing

        fields = {"pipeline": "shop", "owner": "o", "source": SOURCE, "features": "shop:view"}
        spec = parse_spec({**fields, "label": {"name": "y"}, "serving": {"replicas": 1}})
        self.serving = RayServing("shop", Root(Path(root)), spec, namespace)

    def call(self, verb: str, document: dict) -> None:
        getattr(self.serving, verb)(from_json(LiveDocument, document))

    def generations(self) -> list[int]:
        return [report.generation for report in self.serving.observe().reports]

    def remove(self) -> None:
        self.serving.remove()


def until(done, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s")


def test_app_serves_swaps_refuses_and_survives_bad_input(ray_session, tmp_path):
    root = Root(tmp_path / "root")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "shop.py").write_text(VIEW)
    code = store_code(root, tmp_path / "code", [])
    one, two, bad = (register(root, code, seed) for seed in (1, 2, 3))
    port = os.environ.get("CTRAIN_HTTP_PORT", "8000")
    options = {
        "runtime_env": {"env_vars": {"CTRAIN_HTTP_PORT": port, "PYTHONPATH": str(Path(__file__).parent)}},
        "num_cpus": 0,
    }
    steerer = ray.remote(Steerer).options(**options).remote(str(root.path), "nobody")

    def steer(verb, generation, epoch=1, **changes):
        document = LiveDocument("shop", epoch, generation, **changes)
        ray.get(steerer.call.remote(verb, to_json(document)), timeout=60)

    # where no controller ever wrote a document, Serve's own `user_config` (epoch 0) is what serves
    steer("deploy", 7, epoch=0, champion=one)
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}/shop", timeout=10)

    def healthy():
        try:
            return client.get("/health").status_code == 200
        except httpx2.HTTPError:
            return False

    def predicts(label):
        return client.post("/predict", json=ASKED).json().get("version") == label

    try:
        until(healthy, 60)
        until(lambda: predicts("v1"))
        many = client.post("/predict", json={"rows": [ASKED["features"]] * 100})
        assert len(many.json()["predictions"]) == 100
        for body in (b"{", b'{"features":{}}', b'{"features":{"kind":"a","size":NaN}}', b"x" * 2_000_000):
            assert 400 <= client.post("/predict", content=body).status_code < 500

        steer("apply", 2, champion=one, challenger=two, rollout="r", split=1.0)
        until(lambda: predicts("v2"))
        steer("apply", 3, champion=two, previous=one)
        until(lambda: 3 in ray.get(steerer.generations.remote()))
        assert predicts("v2")
        steer("settle", 3, champion=two, previous=one)
        assert predicts("v2")

        name = f"{bad.version}/served.safetensors"
        root.models.write(name, root.models.read(name)[:-1] + b"\x01")
        steer("apply", 4, champion=bad, previous=two)
        until(lambda: bad.version in client.get("/status").json()["replica"]["refused"])
        assert predicts("v2")
        until(lambda: read_log(root.pipeline("shop").log, 0, 9e9).num_rows >= 5)
    finally:
        ray.get(steerer.remove.remote(), timeout=60)
        ray.kill(steerer)
