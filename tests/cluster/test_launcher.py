"""The file for Ray's cluster launcher, the image it runs, and what the documentation says about both."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.cluster.launcher_config import Config, environment_of, problems

DELETED = object()
SPOT, ON_DEMAND = "available_node_types.v100x8-spot", "available_node_types.v100x1-on-demand"
HEAD = "available_node_types.head"


@pytest.fixture(scope="module")
def config(repository: Path) -> Config:
    content = yaml.safe_load((repository / "cluster.yaml").read_text())
    # Anchors share parts: a mutation of one must not be one of all.
    copied: Config = json.loads(json.dumps(content))
    return copied


def mutated(config: Config, path: str, value: Any) -> Config:
    changed = copy.deepcopy(config)
    part: Any = changed
    *parents, last = [int(word) if word.isdigit() else word for word in re.split(r"\.(?![a-z]*xlarge)", path)]
    for name in parents:
        part = part[name]
    if value is DELETED:
        del part[last]
    else:
        part[last] = value
    return changed


def test_it_meets_every_requirement(config: Config) -> None:
    assert problems(config) == []


MUTATIONS: list[tuple[str, Any]] = [
    ("cluster_name", DELETED),
    ("max_workers", 0),
    ("max_workers", 400),
    ("idle_timeout_minutes", DELETED),
    ("idle_timeout_minutes", 600),
    ("provider.region", "anywhere"),
    ("provider.region", "eu-west-1"),
    ("provider.use_internal_ips", False),
    ("provider.use_internal_ips", DELETED),
    ("provider.use_internal_ip", True),
    ("provider.cache_stopped_nodes", DELETED),
    ("provider.security_group", {"GroupName": "open"}),
    ("auth.ssh_proxy_command", DELETED),
    ("auth.ssh_proxy_command", "nc %h %p"),
    ("auth.ssh_proxy_use_node_id", False),
    ("auth.ssh_private_key", DELETED),
    ("docker.image", "stgs-bmnas:latest"),
    ("docker.image", "stgs-bmnas"),
    ("docker.worker_image", "other:0.1.0"),
    ("docker.pull_before_run", DELETED),
    *[(f"docker.run_options.{index}", "--init") for index in (0, 1, 2, 3, 5, 6, 7)],
    ("docker.run_options.4", "--privileged"),
    ("docker.run_options.4", "--env=RAY_AUTH_TOKEN=secret"),
    ("docker.run_options.4", "--env=AWS_ACCESS_KEY_ID=AKIAABCDEFGHIJKLMNOP"),
    ("docker.run_options.4", "--env=OWNER=123456789012"),
    ("docker.head_run_options.0", "--env=STGS_OBJECT_STORE_BYTES=10737418240"),
    ("docker.head_run_options.1", "--shm-size=40g"),
    ("file_mounts", {}),
    ("file_mounts", {"/home/ray/.ssh": "~/.ssh"}),
    ("head_node_type", "nobody"),
    (f"{HEAD}.resources", {"CPU": 16}),
    (f"{HEAD}.max_workers", 2),
    (f"{HEAD}.node_config.IamInstanceProfile", DELETED),
    (f"{HEAD}.node_config.IamInstanceProfile.Name", "stgs-worker"),
    (f"{HEAD}.node_config.NetworkInterfaces.0.Groups", ["FILL-IN-worker-security-group"]),
    (f"{HEAD}.node_config.MetadataOptions", DELETED),
    (f"{HEAD}.node_config.ImageId", DELETED),
    (f"{SPOT}.min_workers", 1),
    (f"{SPOT}.min_workers", 5),
    (f"{SPOT}.max_workers", 25),
    (f"{SPOT}.priority", 10),
    (f"{SPOT}.priority", DELETED),
    (f"{SPOT}.resources", {"CPU": 64, "GPU": 4}),
    (f"{SPOT}.resources.CPU", 32),
    (f"{SPOT}.docker", DELETED),
    (f"{SPOT}.docker.worker_run_options.0", "--init"),
    (f"{SPOT}.docker.worker_run_options.1", "--env=STGS_OBJECT_STORE_BYTES=107374182400"),
    (f"{SPOT}.docker.worker_run_options.2", "--shm-size=300g"),
    (f"{SPOT}.initialization_commands", DELETED),
    (f"{SPOT}.initialization_commands.0", "true"),
    (f"{SPOT}.initialization_commands.1", "true"),
    (f"{SPOT}.initialization_commands.2", "true"),
    (f"{SPOT}.node_config.InstanceType", "p3.2xlarge"),
    (f"{SPOT}.node_config.InstanceType", "p9.huge"),
    (f"{SPOT}.node_config.InstanceMarketOptions", DELETED),
    (f"{SPOT}.node_config.InstanceMarketOptions.MarketType", "stop"),
    (f"{SPOT}.node_config.InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", "stop"),
    (f"{SPOT}.node_config.MetadataOptions.HttpTokens", "optional"),
    (f"{SPOT}.node_config.MetadataOptions.HttpTokens", "require"),
    (f"{SPOT}.node_config.MetadataOptions.HttpPutResponseHopLimit", 64),
    (f"{SPOT}.node_config.NetworkInterfaces.0.AssociatePublicIpAddress", True),
    (f"{SPOT}.node_config.NetworkInterfaces.0.AssociatePublicIpAddress", DELETED),
    (f"{SPOT}.node_config.NetworkInterfaces.0.Groups", []),
    (f"{SPOT}.node_config.NetworkInterfaces.0.SubnetId", DELETED),
    (f"{SPOT}.node_config.KeyName", DELETED),
    (f"{SPOT}.node_config.BlockDeviceMappings", DELETED),
    (f"{SPOT}.node_config.BlockDeviceMappings.0.Ebs.Encrypted", False),
    (f"{SPOT}.node_config.Typo", 1),
    (f"{SPOT}.node_config.EbsOptimized", "yes"),
    (f"{ON_DEMAND}.node_config.InstanceMarketOptions", {"MarketType": "spot"}),
    (f"{ON_DEMAND}.node_config.IamInstanceProfile.Name", "stgs-head"),
    (f"{ON_DEMAND}.node_config.ImageId", "FILL-IN-other"),
    (f"{ON_DEMAND}.max_worker", 3),
    ("setup_commands", DELETED),
    ("setup_commands", []),
    ("setup_commands.1", "pip install ray"),
    ("head_setup_commands", DELETED),
    ("initialization_commands", []),
    ("head_start_ray_commands", DELETED),
    ("head_start_ray_commands.0", "true"),
    ("worker_start_ray_commands", DELETED),
    ("worker_start_ray_commands.2", "python -m cluster.spot_watch"),
    ("worker_start_ray_commands.2", "true"),
]


@pytest.mark.parametrize(("path", "value"), MUTATIONS, ids=str)
def test_each_requirement_is_looked_at(config: Config, path: str, value: Any) -> None:
    assert problems(mutated(config, path, value)) != []


@pytest.mark.parametrize(
    ("which", "old", "new"),
    [
        ("head", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("head", "--dashboard-host=127.0.0.1", ""),
        ("head", "--num-cpus=0", ""),
        ("head", "RAY_enable_autoscaler_v2=1", "RAY_enable_autoscaler_v2=0"),
        ("head", "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        ("head", "--object-spilling-directory=/spill", ""),
        ("worker", "--object-store-memory=$STGS_OBJECT_STORE_BYTES", ""),
        ("worker", "$RAY_HEAD_IP", "10.0.0.1"),
    ],
)
def test_each_option_of_the_start_is_looked_at(config: Config, which: str, old: str, new: str) -> None:
    changed = copy.deepcopy(config)
    command = changed[f"{which}_start_ray_commands"][1]
    assert old in command
    changed[f"{which}_start_ray_commands"][1] = command.replace(old, new)
    assert problems(changed) != []


def launched(
    config: AutoscalingConfig, bundle: dict[str, float], count: int, failed: tuple[str, ...]
) -> dict[str, int]:
    """What Ray's autoscaler starts for so many bundles on an empty cluster. failed: kinds that EC2 could not give."""
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(bundle)] * count),
        recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "head"}


@pytest.mark.parametrize(
    ("bundle", "count", "failed", "kinds"),
    [
        ({"GPU": 1}, 0, (), {}),
        ({"GPU": 1}, 1, (), {"v100x1-spot": 1}),
        ({"GPU": 1}, 1, ("v100x1-spot",), {"v100x1-on-demand": 1}),
        ({"GPU": 8}, 1, (), {"v100x8-spot": 1}),
        ({"GPU": 8}, 2, ("v100x8-spot",), {"v100x8-on-demand": 2}),
        ({"CPU": 0.01, "GPU": 1}, 4, (), {"v100x1-spot": 4}),
        ({"GPU": 1}, 16, (), {"v100x8-spot": 2}),
    ],
)
def test_rays_autoscaler_takes_spot_first_and_falls_back(
    config: Config, tmp_path: Path, bundle: dict[str, float], count: int, failed: tuple[str, ...], kinds: dict[str, int]
) -> None:
    key = tmp_path / "key.pem"
    key.write_text("a key")
    autoscaling = AutoscalingConfig(mutated(config, "auth.ssh_private_key", str(key)), skip_content_hash=True)
    assert launched(autoscaling, bundle, count, failed) == kinds


def shell_commands(config: Config) -> list[str]:
    kinds = config["available_node_types"].values()
    own = [command for kind in kinds for command in kind.get("initialization_commands", [])]
    return own + [command for name, part in config.items() if name.endswith("_commands") for command in part]


def test_every_command_is_good_shell(config: Config) -> None:
    commands = shell_commands(config)
    assert len(commands) > 10
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize(
    ("driver", "license_name", "good"),
    [
        ("580.95.05", "NVIDIA", True),
        ("570.172.08", "NVIDIA", True),
        ("580.95.05", "Dual MIT/GPL", False),
        ("595.71.05", "NVIDIA", False),
        ("535.57000", "NVIDIA", False),
        ("", "NVIDIA", False),
    ],
)
def test_a_worker_with_another_driver_does_not_join(
    config: Config, tmp_path: Path, driver: str, license_name: str, good: bool
) -> None:
    for name, answer in (("nvidia-smi", "\n".join([driver] * 8)), ("modinfo", license_name)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    command = config["available_node_types"]["v100x8-spot"]["initialization_commands"][2]
    done = subprocess.run(
        ["bash", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == good
    assert ("needs a driver of branch 570 or 580" in done.stderr) == (not good)


def test_what_is_to_be_filled_in_is_documented(repository: Path) -> None:
    page = (repository / "docs" / "cluster.md").read_text()
    wanted = set()
    for name in ("cluster.yaml", "cluster/kuberay.yaml"):
        wanted |= set(re.findall(r"FILL-IN-[a-z-]+", (repository / name).read_text()))
    assert len(wanted) >= 6
    assert set(re.findall(r"`(FILL-IN-[a-z-]+)`", page)) == wanted


def policies(repository: Path) -> list[dict[str, Any]]:
    page = (repository / "docs" / "cluster.md").read_text()
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]


def test_the_roles_may_do_what_they_must_and_no_more(repository: Path) -> None:
    head, worker = (policy["Statement"] for policy in policies(repository))
    actions = {action for statement in worker for action in statement["Action"]}
    assert actions == {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucket"}
    bucket = {"arn:aws:s3:::FILL-IN-bucket", "arn:aws:s3:::FILL-IN-bucket/*"}
    assert {statement["Resource"] for statement in worker} == bucket
    assert worker == [statement for statement in head if statement in worker]
    for statement in head:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
    (passing,) = [statement for statement in head if statement["Action"] == ["iam:PassRole"]]
    assert passing["Resource"].endswith(":role/stgs-worker")
    (ending,) = [statement for statement in head if "ec2:TerminateInstances" in statement["Action"]]
    assert ending["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "stgs"}}


def test_the_image_is_built_from_the_lock(repository: Path, config: Config) -> None:
    text = (repository / "cluster" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    (base,) = [line for line in lines if line.startswith("FROM")]
    assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-[a-z]+", base)
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("--no-deps" in line for line in installs)
    assert "-r /opt/stgs/requirements.lock" in installs[0]
    assert not re.search(r"https?://|index-url|trusted-host", text)
    assert not re.search(r"^(ARG|ADD)\b", text, re.MULTILINE)
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    # Only the allow-list of the build context can be copied.
    allowed = {line[1:].removesuffix("/**") for line in _ignore_lines(repository) if line.startswith("!")}
    copied = {source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]}
    assert copied == allowed
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert config["docker"]["image"] == f"{project['name']}:{project['version']}"
    assert f"--tag {config['docker']['image']} " in text
    home = re.search(r"HOME=(\S+)", text)
    assert home is not None
    assert environment_of(config["docker"]["run_options"])["RAY_AUTH_TOKEN_PATH"].startswith(f"{home[1]}/")


def _ignore_lines(repository: Path) -> list[str]:
    lines = (repository / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    assert kept[0] == "*"
    return kept
