"""`deploy/`: the Kubernetes manifest and the image say what the rest of the tree says."""

import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import avatarforge
from avatarforge.settings import load_settings, variables

TREE = Path(avatarforge.__file__).parents[1]
DOCKERFILE = (TREE / "deploy" / "Dockerfile").read_text(encoding="utf-8")
CLUSTER = (TREE / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    text = (TREE / "deploy" / "kuberay.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def cluster(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = manifests["RayService"]["spec"]["rayClusterConfig"]
    return config


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Head and workers, by name."""
    return {"head": cluster["headGroupSpec"], **{g["groupName"]: g for g in cluster["workerGroupSpecs"]}}


def containers(manifests: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from manifests["Job"]["spec"]["template"]["spec"]["containers"]
    for group in groups(manifests["RayService"]["spec"]["rayClusterConfig"]).values():
        yield from group["template"]["spec"]["containers"]


def test_kubernetes_serves_what_serve_config_says(manifests: dict[str, dict[str, Any]]) -> None:
    there = yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"])
    assert there == yaml.safe_load((TREE / "serve_config.yaml").read_text(encoding="utf-8"))
    ServeDeploySchema.model_validate(there)


def test_the_manifest_and_the_image_are_of_the_same_ray(cluster: dict[str, Any]) -> None:
    assert cluster["rayVersion"] == version("ray")


def test_every_variable_is_a_setting(manifests: dict[str, dict[str, Any]]) -> None:
    named = {entry["name"] for container in containers(manifests) for entry in container["env"]}
    ours = {name for name in named if name.startswith("AVATARFORGE_")}
    assert ours <= variables().keys()
    load_settings(environ={"AVATARFORGE_DATABASE_URL": "mysql+pymysql://a:b@c/d"})


@pytest.mark.parametrize("file", ["cluster.yaml", "serve_config.yaml", "deploy/kuberay.yaml"])
def test_the_instructions_make_a_key_after_the_tables_and_before_the_start(file: str) -> None:
    text = (TREE / file).read_text(encoding="utf-8")
    tables, key = text.index("avatarforge db upgrade"), text.index("avatarforge keys create")
    assert tables < key
    for start in ("serve deploy serve_config.yaml'", "kubectl apply -f"):
        assert start not in text or key < text.index(start)


def test_secrets_are_only_referred_to(manifests: dict[str, dict[str, Any]], cluster: dict[str, Any]) -> None:
    entries = [entry for container in containers(manifests) for entry in container["env"]]
    entries.append(cluster["gcsFaultToleranceOptions"]["redisPassword"])
    plain = {entry["name"] for entry in entries if "value" in entry}
    assert plain == {"AVATARFORGE_DATA_DIR"}
    referred = [entry["valueFrom"]["secretKeyRef"]["name"] for entry in entries if "valueFrom" in entry]
    assert set(referred) == {"avatarforge"}


def test_nothing_runs_as_root_or_may_become_it(manifests: dict[str, dict[str, Any]]) -> None:
    pods = [manifests["Job"]["spec"]["template"]["spec"]]
    pods += [
        group["template"]["spec"]
        for group in groups(manifests["RayService"]["spec"]["rayClusterConfig"]).values()
    ]
    assert [pod["securityContext"]["runAsNonRoot"] for pod in pods] == [True] * len(pods)
    assert [pod["securityContext"]["runAsUser"] for pod in pods] == [1000] * len(pods)
    for container in containers(manifests):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        written = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert written == {"/tmp", "/home/avatarforge"}
    assert [[volume["name"] for volume in pod["volumes"]] for pod in pods] == [["scratch"]] * len(pods)
    assert all("sizeLimit" in pod["volumes"][0]["emptyDir"] for pod in pods)


def test_a_drain_leaves_a_pod_that_takes_uploads(
    manifests: dict[str, dict[str, Any]], cluster: dict[str, Any]
) -> None:
    budget = manifests["PodDisruptionBudget"]["spec"]
    [group] = budget["selector"]["matchLabels"].values()
    assert 0 < budget["minAvailable"] < groups(cluster)[group]["minReplicas"]


def test_the_job_of_the_tables_can_be_applied_with_every_image(manifests: dict[str, dict[str, Any]]) -> None:
    tag = next(containers(manifests))["image"].rpartition(":")[2]
    assert manifests["Job"]["metadata"]["name"].endswith(f"-{tag}")


def test_no_second_cluster_is_made_beside_the_first(manifests: dict[str, dict[str, Any]]) -> None:
    assert manifests["RayService"]["spec"]["upgradeStrategy"] == {"type": "None"}


def test_every_pod_uses_the_same_image_and_has_bounds(manifests: dict[str, dict[str, Any]]) -> None:
    assert len({container["image"] for container in containers(manifests)}) == 1
    for container in containers(manifests):
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_ray_asks_for_a_token_and_keeps_its_record_in_redis(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"]


def test_the_head_runs_no_replicas_and_only_the_gpu_group_has_gpus(cluster: dict[str, Any]) -> None:
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
        for name, group in groups(cluster).items()
    }
    assert gpus == {"head": 0, "cpu": 0, "gpu": 1}


def test_the_groups_hold_the_replicas_that_the_serve_config_wants(cluster: dict[str, Any]) -> None:
    [application] = yaml.safe_load((TREE / "serve_config.yaml").read_text(encoding="utf-8"))["applications"]
    wanted = {deployment["name"]: deployment for deployment in application["deployments"]}
    cpu, gpu = groups(cluster)["cpu"], groups(cluster)["gpu"]
    assert gpu["maxReplicas"] == application["args"]["scaling"]["max_replicas"]
    cores = int(cpu["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    ingress = wanted["Ingress"]
    needed = ingress["num_replicas"] * ingress["ray_actor_options"]["num_cpus"]
    assert cpu["minReplicas"] * cores >= needed
    head = groups(cluster)["head"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert int(head["cpu"]) >= application["args"]["tracker"]["shards"] + 2, "as docs/sizing.md says"
    of_gpu = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert of_gpu >= wanted["StableDiffusion"]["ray_actor_options"]["num_cpus"]


def test_every_node_is_probed_and_workers_are_ready_when_they_can_serve(cluster: dict[str, Any]) -> None:
    for name, group in groups(cluster).items():
        [container] = group["template"]["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/api/healthz"
        assert container["startupProbe"]["httpGet"] == container["livenessProbe"]["httpGet"]
        if name != "head":
            assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}


def test_the_image_is_pinned_runs_as_nobody_special_and_holds_no_secret() -> None:
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    assert "USER 1000:1000" in lines
    assert re.search(r"^ARG BASE=python:3\.11-", DOCKERFILE, re.MULTILINE)
    assert "@sha256:" in DOCKERFILE, "it says how the base is pinned"
    assert "-c /tmp/constraints.txt" in DOCKERFILE
    assert not re.search(r"AVATARFORGE_[A-Z_]*(SECRET|PASSWORD|URL|KEY)", DOCKERFILE)


def test_a_login_shell_in_the_image_finds_the_commands() -> None:
    """`ray up` starts one, in which Debian's `/etc/profile` sets PATH and reads this file."""
    [line] = re.findall(r"^RUN (echo .*) > /etc/profile.d/\w+\.sh$", DOCKERFILE, re.MULTILINE)
    written = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    shell = f"PATH=/usr/local/bin:/usr/bin:/bin\n{written}\necho $PATH"
    found = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert found.split(":")[0] == "/opt/avatarforge/bin"
    assert {"rsync", "wget", "procps"} <= set(DOCKERFILE.split())


def test_the_image_copies_only_what_its_context_lets_in() -> None:
    context = (TREE / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert context[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE)
    assert {f"!{name}" for name in copied} == set(context[1:])


def test_the_image_and_the_cluster_file_set_rays_variables_alike() -> None:
    pattern = re.compile(r"\b(RAY_(?:SERVE|ROTATION)_\w+)=(\S+?)(?=\s|\\|$)")
    image, cluster = dict(pattern.findall(DOCKERFILE)), dict(pattern.findall(CLUSTER))
    assert image
    assert image == cluster
