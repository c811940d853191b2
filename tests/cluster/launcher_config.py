"""What a file for Ray's cluster launcher must hold: Ray's own check misses most of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

Config = dict[str, Any]

# EC2's table of instance types: virtual CPUs, GPUs, memory in GiB.
MACHINES = {"m5.4xlarge": (16, 0, 64), "p3.2xlarge": (8, 1, 61), "p3.16xlarge": (64, 8, 488)}
# What Ray 2.60's AWS provider reads (ray/autoscaler/_private/aws) of what its schema lets through.
PROVIDER_KEYS = {"type", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes"}
GIBIBYTE = 2**30
_UNITS = {"k": 2**10, "m": 2**20, "g": GIBIBYTE}
_SECRETS = {
    "an account number": r"(?<!\d)\d{12}(?!\d)",
    "an access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}",
    "a token": r"\b[0-9a-fA-F]{32,}\b",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KEY",
    "a web address": r"https?://",
    "an address open to all": r"0\.0\.0\.0",
    "an installation": r"\b(?:pip|apt-get|conda) install\b",
}


def problems(config: Config) -> list[str]:
    """Every requirement that a parsed file does not meet, in words; empty for a good one."""
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except Exception as error:  # whatever Ray raises (it has many kinds) is one problem
        return [f"Ray refuses it: {error}"]
    # Without the defaults that Ray would have added, so that they count as missing.
    found = [
        *_sizes(config),
        *_network(config),
        *_container(config),
        *_token(config),
        *_commands(config, prepared),
        *_pairs(config),
        *_profiles(config),
        *_secrets(prepared),
    ]
    for name, node_type in config["available_node_types"].items():
        found += [f"{name}: {problem}" for problem in _node_type(config, name, node_type)]
    return found


def workers(config: Config) -> dict[str, Config]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def _sizes(config: Config) -> Iterator[str]:
    if not 0 < config.get("max_workers", 0) <= sum(kind.get("max_workers", 0) for kind in workers(config).values()):
        yield "max_workers is 0, or more than the worker types allow together"
    if config.get("cluster_name") != "stgs":
        yield "not the name that the head's role may end machines of"
    if not 1 <= config.get("idle_timeout_minutes", 0) <= 60:
        yield "idle_timeout_minutes is not between 1 and 60"
    head = config["available_node_types"][config["head_node_type"]]
    if head["resources"] != {"CPU": 0} or head.get("max_workers") != 0:
        yield "the head takes tasks, or is multiplied"


def _network(config: Config) -> Iterator[str]:
    provider, auth = config["provider"], config.get("auth", {})
    if unknown := set(provider) - PROVIDER_KEYS:
        # security_group would be known: Ray makes one then, with port 22 open to all.
        yield f"provider has {sorted(unknown)}"
    if provider.get("type") != "aws" or not re.fullmatch(r"[a-z]{2}-[a-z]+-\d", provider.get("region", "")):
        yield "no AWS region"
    if provider.get("use_internal_ips") is not True:
        yield "public addresses"
    if provider.get("cache_stopped_nodes") is not False:
        yield "machines are stopped, not given back"
    proxy = auth.get("ssh_proxy_command", "").split()
    if proxy[:3] != ["aws", "ssm", "start-session"] or not {"%h", "portNumber=%p", "AWS-StartSSHSession"} <= set(proxy):
        yield "ssh does not go through Systems Manager"
    if provider.get("region") not in proxy:
        yield "ssh goes to another region"
    if auth.get("ssh_proxy_use_node_id") is not True or not auth.get("ssh_private_key"):
        yield "Systems Manager is asked for an address, or there is no key"


def _container(config: Config) -> Iterator[str]:
    docker = config.get("docker", {})
    if not re.fullmatch(r"stgs-bmnas:\d+\.\d+\.\d+", docker.get("image", "")):
        yield "the image is not pinned"
    if docker.get("pull_before_run") is not False:
        yield "an image would be pulled"
    if {"head_image", "worker_image"} & set(docker):
        yield "several images"
    options = docker.get("run_options", [])
    environment = environment_of(options)
    if not environment.get("STGS_STORAGE", "").startswith("s3://"):
        yield "no S3 storage"
    if environment.get("AWS_DEFAULT_REGION") != config["provider"].get("region"):
        yield "the bucket's region is not the cluster's"
    if not {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(options) or "--privileged" in options:
        yield "the container may do too much"
    if not any(option.endswith(":/spill") for option in options):
        yield "no folder to spill to"


def _token(config: Config) -> Iterator[str]:
    environment = environment_of(config["docker"].get("run_options", []))
    path, mounts = environment.get("RAY_AUTH_TOKEN_PATH", ""), config.get("file_mounts", {})
    if environment.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" in environment:
        yield "no token is asked for, or it stands in the file"
    if [path.rpartition("/")[0]] != list(mounts):
        yield "the token's folder is not what is mounted"
    if not any(f"chmod 600 {path}" in command.split(" && ") for command in config.get("setup_commands", [])):
        yield "the token may be read by others"


def _commands(config: Config, prepared: Config) -> Iterator[str]:
    head, worker = (prepared[f"{kind}_start_ray_commands"] for kind in ("head", "worker"))
    if head[0] != "ray stop" or worker[0] != "ray stop":
        yield "Ray is not stopped before it is started"
    head_start, worker_start = (next((c for c in cs if "ray start" in c), "") for cs in (head, worker))
    store = {"--object-store-memory=$STGS_OBJECT_STORE_BYTES", "--object-spilling-directory=/spill"}
    wanted = {"--head", "--port=6379", "--dashboard-host=127.0.0.1", "--dashboard-port=8265", "--num-cpus=0"}
    if missing := (wanted | store | {"--autoscaling-config=~/ray_bootstrap_config.yaml"}) - set(head_start.split()):
        yield f"the head starts without {sorted(missing)}"
    if "export RAY_enable_autoscaler_v2=1;" not in head_start:
        yield "the autoscaler is not the one that knows priorities"
    if missing := (store | {"--address=$RAY_HEAD_IP:6379"}) - set(worker_start.split()):
        yield f"workers start without {sorted(missing)}"
    watchers = [command for command in worker if "python -m cluster.spot_watch" in command]
    if len(watchers) != 1 or not (watchers[0].startswith("setsid nohup ") and watchers[0].endswith("&")):
        yield "no watcher of spot notices, or one that the start would wait for or end"
    elif worker.index(watchers[0]) < worker.index(worker_start):
        yield "the watcher is started before the raylet"


def _node_type(config: Config, name: str, node_type: Config) -> Iterator[str]:
    node, is_head = node_type["node_config"], name == config["head_node_type"]
    if not 0 <= node_type.get("min_workers", 0) <= node_type.get("max_workers", -1) <= config["max_workers"]:
        yield "min_workers and max_workers do not fit"
    if not is_head and node_type.get("min_workers") != 0:
        yield "machines run without work"
    if node.get("InstanceType") not in MACHINES:
        yield "an unknown machine"
        return
    cpus, gpus, memory = MACHINES[node["InstanceType"]]
    if not is_head and node_type["resources"] != {"CPU": cpus, "GPU": gpus}:
        yield "resources that the machine does not have"
    yield from _memory(config, node_type, memory * GIBIBYTE, is_head)
    yield from _instance(node)
    commands = node_type.get("initialization_commands") or config.get("initialization_commands", [])
    if f"docker image inspect --format present {config['docker'].get('image')}" not in commands:
        yield "a missing image is found too late"
    if not any(command.endswith("-o 1000 -g 1000 -m 700 /var/lib/stgs/spill") for command in commands):
        yield "the spill folder is not the container's"
    if gpus and not any("(570|580)" in command and "modinfo -F license nvidia" in command for command in commands):
        yield "the driver is not looked at"


def _memory(config: Config, node_type: Config, memory: int, is_head: bool) -> Iterator[str]:
    docker = config["docker"]
    options = (
        docker.get("head_run_options", []) if is_head else node_type.get("docker", {}).get("worker_run_options", [])
    )
    sizes = [_read_size(option.removeprefix("--shm-size=")) for option in options if option.startswith("--shm-size=")]
    store = int(environment_of(options).get("STGS_OBJECT_STORE_BYTES", 0))
    if len(sizes) != 1 or not 0 < store < sizes[0] <= memory // 4:
        yield "object store, /dev/shm and memory do not fit into each other"
    if not is_head and "--gpus=all" not in options:
        yield "the container sees no GPU"


def _read_size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([kmg])", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def _instance(node: Config) -> Iterator[str]:
    if not node.get("ImageId") or not node.get("KeyName"):
        yield "no machine image, or no key"
    metadata = node.get("MetadataOptions", {})
    if metadata.get("HttpTokens") != "required" or metadata.get("HttpEndpoint") != "enabled":
        yield "metadata without a session token"
    if metadata.get("HttpPutResponseHopLimit") != 2:
        yield "the container does not reach the metadata, or others do"
    interfaces = node.get("NetworkInterfaces", [])
    if len(interfaces) != 1 or interfaces[0].get("AssociatePublicIpAddress") is not False:
        yield "a public address"
    if not all(interface.get("Groups") and interface.get("SubnetId") for interface in interfaces):
        yield "Ray would make a security group that is open to all, or choose a subnet"
    if not all(disk["Ebs"].get("Encrypted") and disk["Ebs"].get("DeleteOnTermination") for disk in _disks(node)):
        yield "a disk in plain text, or one that outlives the machine"
    request = {**node, "MinCount": 1, "MaxCount": 1}
    for error in _run_instances_errors(request):
        yield f"RunInstances refuses it: {error}"


def _disks(node: Config) -> list[Config]:
    return node.get("BlockDeviceMappings") or [{"Ebs": {}}]


def _run_instances_errors(request: Mapping[str, Any]) -> list[str]:
    """What botocore's model of the API says: types, unknown names; and, which it leaves to AWS, words of an enum."""
    report = ParamValidator().validate(request, _run_instances())
    return [*report.generate_report().splitlines(), *_wrong_words(request, _run_instances(), "")]


def _wrong_words(value: Any, shape: Any, where: str) -> Iterator[str]:
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for name, part in value.items():
            if name in shape.members:
                yield from _wrong_words(part, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list" and isinstance(value, list):
        for part in value:
            yield from _wrong_words(part, shape.member, where)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where} is {value!r}"


_SHAPES: list[Any] = []


def _run_instances() -> Any:
    if not _SHAPES:  # reading EC2's model takes a second
        model = botocore.session.Session().get_service_model("ec2")
        _SHAPES.append(model.operation_model("RunInstances").input_shape)
    return _SHAPES[0]


def _pairs(config: Config) -> Iterator[str]:
    """Every machine is there as spot and as on-demand, alike in all but price and priority."""
    kinds = workers(config)
    for machine in {kind["node_config"].get("InstanceType") for kind in kinds.values()}:
        group = [kind for kind in kinds.values() if kind["node_config"].get("InstanceType") == machine]
        spot = [kind for kind in group if is_spot(kind)]
        other = [kind for kind in group if "InstanceMarketOptions" not in kind["node_config"]]
        if len(group) != 2 or len(spot) != 1 or len(other) != 1:
            yield f"{machine}: not one spot and one on-demand type"
            continue
        if spot[0].get("priority", 0) <= other[0].get("priority", 0):
            yield f"{machine}: on-demand is taken before spot"
        if _without_market(spot[0]) != _without_market(other[0]):
            yield f"{machine}: the fallback is another machine"
    if {kind["node_config"].get("InstanceType") for kind in kinds.values()} != {"p3.16xlarge", "p3.2xlarge"}:
        yield "not the two kinds of machines"


def is_spot(kind: Config) -> bool:
    market = kind["node_config"].get("InstanceMarketOptions", {})
    options = market.get("SpotOptions", {})
    return bool(
        market.get("MarketType") == "spot"
        and options.get("SpotInstanceType") == "one-time"
        and options.get("InstanceInterruptionBehavior") == "terminate"
    )


def _without_market(kind: Config) -> Config:
    node = {name: value for name, value in kind["node_config"].items() if name != "InstanceMarketOptions"}
    rest = {name: value for name, value in kind.items() if name not in ("priority", "node_config", "max_workers")}
    return {**rest, "node_config": node}


def _profiles(config: Config) -> Iterator[str]:
    head = config["available_node_types"][config["head_node_type"]]["node_config"]
    others = [kind["node_config"] for kind in workers(config).values()]
    profiles = {json.dumps(node.get("IamInstanceProfile")) for node in others}
    # By name: an ARN would hold the account's number. Without one at the head, Ray makes one that may do everything.
    if profiles != {'{"Name": "stgs-worker"}'} or head.get("IamInstanceProfile") != {"Name": "stgs-head"}:
        yield "not one profile for the head and one for the workers"
    groups = {json.dumps([i.get("Groups") for i in node.get("NetworkInterfaces", [])]) for node in others}
    if len(groups) != 1 or json.dumps([i.get("Groups") for i in head.get("NetworkInterfaces", [])]) in groups:
        yield "not one security group for the head and one for the workers"


def _secrets(prepared: Config) -> Iterator[str]:
    text = json.dumps(prepared)
    yield from (f"{what} stands in it" for what, pattern in _SECRETS.items() if re.search(pattern, text))


def environment_of(options: list[str]) -> dict[str, str]:
    """The variables that options of `docker run` set."""
    return dict(option.removeprefix("--env=").split("=", 1) for option in options if option.startswith("--env="))
