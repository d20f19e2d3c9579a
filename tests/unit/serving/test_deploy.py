import threading

import pytest
from ray.serve.schema import ServeDeploySchema

from ctrain.records import LiveDocument, to_json
from ctrain.serving import deploy
from ctrain.serving.deploy import RayServing
from ctrain.spec import parse_spec
from ctrain.storage import Root

FIELDS = {
    "pipeline": "shop",
    "owner": "o",
    "source": {"type": "files", "path": "/data", "partition": "day", "event_time": "t"},
    "features": "a:b",
    "label": {"name": "y"},
}
DOCUMENT = LiveDocument("shop", 1, 1)


class FakeServe:
    """Serve's declarative client: keeps the apps that were put, as Serve gives them back."""

    def __init__(self):
        self.apps, self.puts = {}, 0

    def get_serve_details(self):
        apps = {name: {"status": "RUNNING", "deployed_app_config": app} for name, app in self.apps.items()}
        return {"applications": apps}

    def deploy_apps(self, config: ServeDeploySchema):
        self.puts += 1
        self.apps = {app.name: app.model_dump(exclude_unset=True) for app in config.applications}

    def predictor(self):
        return self.apps["shop"]["deployments"][0]


@pytest.fixture
def serve(monkeypatch):
    client = FakeServe()
    monkeypatch.setattr(deploy, "_client", lambda: client)
    return client


def serving(tmp_path, **changes):
    return RayServing("shop", Root(tmp_path), parse_spec({**FIELDS, **changes}), "ns")


def test_deploying_the_same_spec_again_writes_nothing(serve, tmp_path):
    serving(tmp_path).deploy(DOCUMENT)
    serving(tmp_path).deploy(DOCUMENT)
    assert serve.puts == 1


def test_a_changed_spec_reaches_a_running_app(serve, tmp_path):
    serving(tmp_path).deploy(DOCUMENT)
    changed = {
        "serving": {"replicas": 3, "max_in_flight": 7, "cpus_per_replica": 0.5},
        "label": {"name": "y", "horizon": "2d"},
    }
    serving(tmp_path, **changed).deploy(DOCUMENT)
    args, predictor = serve.apps["shop"]["args"], serve.predictor()
    assert (predictor["num_replicas"], predictor["ray_actor_options"]["num_cpus"]) == (3, 0.5)
    assert (args["max_in_flight"], args["horizon"]) == (7, 2 * 86400.0)
    assert predictor["user_config"] == to_json(DOCUMENT)


def test_options_that_an_operator_set_outlive_a_changed_spec(serve, tmp_path):
    serving(tmp_path).deploy(DOCUMENT)
    serve.apps["other"] = {**serve.apps["shop"], "name": "other", "route_prefix": "/other"}
    serve.predictor().update(health_check_period_s=3, logging_config={"log_level": "DEBUG"})
    serve.predictor()["ray_actor_options"]["resources"] = {"rack": 1}
    serving(tmp_path, serving={"replicas": 5}).deploy(DOCUMENT)
    predictor = serve.predictor()
    assert predictor["num_replicas"] == 5
    assert predictor["health_check_period_s"] == 3
    assert predictor["logging_config"] == {"log_level": "DEBUG"}
    assert predictor["ray_actor_options"]["resources"] == {"rack": 1}
    assert set(serve.apps) == {"shop", "other"}


def test_an_app_that_scales_by_itself_keeps_its_replicas(serve, tmp_path):
    serving(tmp_path).deploy(DOCUMENT)
    del serve.predictor()["num_replicas"]
    serve.predictor()["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 4}
    serving(tmp_path, serving={"replicas": 5, "max_in_flight": 7}).deploy(DOCUMENT)
    assert "num_replicas" not in serve.predictor()
    assert serve.apps["shop"]["args"]["max_in_flight"] == 7


class BrokenStorage:
    """A root whose live document cannot be written, `faults` times."""

    def __init__(self, root, faults):
        self.root, self.faults, self.path, self.store = root, faults, root.path, ""

    def write_live(self, document):
        self.faults -= 1
        if self.faults >= 0:
            raise OSError("storage is away")
        self.root.write_live(document)


@pytest.fixture
def sent(monkeypatch):
    """Generations that were broadcast, and an event that says so."""
    generations, done = [], threading.Event()

    def note(self, document):
        generations.append(document.generation)
        done.set()

    monkeypatch.setattr(RayServing, "_broadcast", note)
    return generations, done


def test_a_document_is_broadcast_where_storage_cannot_be_written(tmp_path, sent):
    generations, done = sent
    broken = BrokenStorage(Root(tmp_path), 2)
    one = RayServing("shop", broken, parse_spec(FIELDS), "ns")
    with pytest.raises(OSError, match="away"):
        one.apply(DOCUMENT)
    assert done.wait(5)
    assert generations == [1]


def test_a_document_is_written_at_the_second_try(tmp_path, sent):
    root = Root(tmp_path)
    RayServing("shop", BrokenStorage(root, 1), parse_spec(FIELDS), "ns").apply(DOCUMENT)
    assert root.read_live("shop") == DOCUMENT
    assert sent[1].wait(5)
