from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from ctrain.records import LiveDocument, from_json
from ctrain.serving.deploy import RayServing
from ctrain.spec import parse_spec
from ctrain.storage import Root

CONFIGS = Path(__file__).parents[3] / "serve_configs"


def test_every_serve_config_file_loads():
    files = sorted(CONFIGS.glob("*.yaml"))
    assert files
    for file in files:
        config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
        for app in config.applications:
            document = from_json(LiveDocument, app.deployments[0].user_config)
            assert (document.pipeline, document.epoch) == (app.name, 0)


def test_application_config_is_what_serve_takes(tmp_path):
    source = {"type": "files", "path": "/data", "partition": "day", "event_time": "t"}
    spec = parse_spec(
        {"pipeline": "shop", "owner": "o", "source": source, "features": "a:b", "label": {"name": "y"}}
    )
    config = RayServing("shop", Root(tmp_path), spec, "ns").app_config(LiveDocument("shop", 1, 1))
    app = ServeDeploySchema(applications=[config]).applications[0]
    assert app.route_prefix == "/shop"
    assert app.deployments[0].num_replicas == spec.serving.replicas
