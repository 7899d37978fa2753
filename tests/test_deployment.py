"""Tests of the alert rules, the Kubernetes manifests and the example settings, without the programs that read them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.middleware.http import HEALTH_PATHS
from server.settings import PREFIX, Settings
from tests.docker_image import DOCKER, ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ALERTS: list[dict[str, Any]] = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"][0]["rules"]
KUBERNETES = DOCKER / "kubernetes"
EXAMPLE = ROOT / "examples" / "onlyseen.toml"


def test_alerts_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[sm]", rule.get("for", "1m"))
        for setting in re.findall(r"--([\w-]+)", rule["annotations"]["description"]):
            assert setting.replace("-", "_") in Settings.model_fields


def test_prometheus_loads_the_rules_and_keeps_its_data() -> None:
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    volumes = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["prometheus"]["volumes"])
    assert volumes["./docker/alerts.yml"] in config["rule_files"]
    assert volumes["prometheus-data"] == "/prometheus"
    assert {each["job_name"] for each in config["scrape_configs"]} == {"onlyseen"}


def load_manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def check_container(container: dict[str, Any], volumes: set[str]) -> None:
    """Check environment, probes, ports, mounts and privileges of a container of ours."""
    for variable in container["env"]:
        name = variable["name"]
        assert not name.startswith(PREFIX) or name.removeprefix(PREFIX).lower() in Settings.model_fields, name
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")]
    assert probes
    assert all(probe["port"] in {*ports, *ports.values()} for probe in probes)
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert "memory" in container["resources"]["limits"]
    assert re.search(r"/onlyseen-\w+:\d+\.\d+\.\d+$", container["image"])


def test_manifest_has_probes_and_a_volume_for_each_server() -> None:
    kinds = {manifest["kind"]: manifest for manifest in load_manifests("onlyseen.yaml")}
    spec = kinds["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    own = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    check_container(container, {volume["name"] for volume in pod["volumes"]} | own)
    probes = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
    assert probes == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    assert set(probes.values()) == set(HEALTH_PATHS)
    assert container["ports"][0]["containerPort"] == Settings.model_fields["port"].default
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    (pause,) = re.findall(r"\d+", str(container["lifecycle"]["preStop"]))
    shutdown = Settings.model_fields["shutdown_timeout"].default
    assert pod["terminationGracePeriodSeconds"] > int(pause) + shutdown
    data_dir = next(each["value"] for each in container["env"] if each["name"] == "ONLYSEEN_DATA_DIR")
    (mounted,) = [mount for mount in container["volumeMounts"] if mount["name"] in own]
    assert mounted["mountPath"] == data_dir
    keys_file = next(each["value"] for each in container["env"] if each["name"] == "ONLYSEEN_API_KEYS_FILE")
    (keys,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "keys"]
    assert keys_file.rpartition("/")[2] in {item["path"] for item in keys["items"]}
    labels = spec["template"]["metadata"]["labels"]
    for manifest in load_manifests("onlyseen.yaml"):
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"] == labels
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} == {container["ports"][0]["name"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, when it is imported
def test_ray_service_names_the_application_and_its_arguments() -> None:
    pytest.importorskip("ray")
    from importlib.metadata import version

    from server import ray_serve

    (manifest,) = load_manifests("rayservice.yaml")
    serve = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert module == ray_serve.__name__
    assert callable(getattr(ray_serve, attribute))
    arguments = ray_serve.DeploymentArguments.model_validate(application["args"])
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["maxReplicas"] >= (arguments.max_replicas or 1)
    limits = {}
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        check_container(container, {volume["name"] for volume in pod["volumes"]})
        assert serve["http_options"]["port"] in {port["containerPort"] for port in container["ports"]}
        limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] >= arguments.gpus
    assert "ARG EXTRAS=" in (DOCKER / "hf.Dockerfile").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, when it is imported
def test_ray_service_passes_the_schema_of_ray_serve() -> None:
    pytest.importorskip("ray")
    from ray.serve.schema import ServeDeploySchema

    (manifest,) = load_manifests("rayservice.yaml")
    ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))


def test_example_settings_are_loaded() -> None:
    settings = Settings.load(["--config", str(EXAMPLE)])
    assert settings.model_fields_set > {"port", "strategy"}
    assert settings.model_dump(exclude={"config"}) == Settings().model_dump(exclude={"config"})


def test_commented_example_settings_are_valid(tmp_path: Path) -> None:
    lines = re.findall(r"^# (\w+ = .+)$", EXAMPLE.read_text(), re.MULTILINE)
    lines = [line for line in lines if not line.startswith("name = ")]
    assert len(lines) > 15
    for file in ("template.jinja", "keys"):
        (tmp_path / file).write_text("key")
    fields = Settings.model_fields
    for line in lines:
        ((name, value),) = tomllib.loads(line).items()
        assert name in fields, name
        if name not in ("ssl_certfile", "ssl_keyfile", "rate_limit", "model"):  # they need other settings or folders
            value = str(tmp_path / Path(value).name) if str(value).startswith("/etc") else value
            Settings(**{name: value})
