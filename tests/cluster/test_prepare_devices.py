"""Where faces are looked for: the choice of the device, how actors share a GPU, and what is refused."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster import prepare as prepare_module
from cluster import shards
from cluster.prepare import PrepareWorker, prepare
from data_prep import boxes
from data_prep.clip import PrepareConfig
from data_prep.manifest import MANIFEST_COLUMNS, write_manifest
from data_prep.storage import InputError

MEBIBYTE = 2**20


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    row = dict.fromkeys(MANIFEST_COLUMNS) | {"clip_id": "a", "video_path": "toy/a.mp4", "label": 0, "category": "A"}
    (tmp_path / "clips").mkdir()
    write_manifest(
        str(tmp_path / "manifest"),
        [row | {"dataset": "toy", "subject": "s"}],
        {"toy": str(tmp_path / "clips")},
        {},
    )
    return str(tmp_path / "manifest")


def cluster_of(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], gpu_memory: int | None = None) -> None:
    """What Ray tells of a cluster of these machines, whose smallest GPU has `gpu_memory` bytes besides a context."""
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr("ray.cluster_resources", lambda: {name: value for name, value in total.items() if value})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(prepare_module, "device_memory", lambda kind: gpu_memory)


def begun_with(out: Path, manifest: str, config: PrepareConfig, **settings: Any) -> str:
    """The sentence that refuses to go on with a corpus whose faces were looked for on an unknown device."""
    digest = boxes.read_meta(manifest, boxes.MANIFEST).digest
    boxes.begin(str(out), boxes.CORPUS, asdict(config) | {"face_device": "another"}, digest, resume=True)
    with pytest.raises(InputError) as refused:
        prepare(manifest, str(out), config, **settings)
    return str(refused.value)


def test_the_device_is_the_clusters_and_part_of_what_a_corpus_was_begun_with(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, {"CPU": 8})
    sentence = begun_with(tmp_path / "1", manifest, PrepareConfig())
    assert 'was begun with config face_device "another", not "cpu"; give another --out.' in sentence
    sentence = begun_with(tmp_path / "2", manifest, PrepareConfig(faces="none"), face_device="cuda")
    assert 'face_device "another", not null;' in sentence
    cluster_of(monkeypatch, {"CPU": 8, "GPU": 1})
    assert '"another", not "cuda";' in begun_with(tmp_path / "3", manifest, PrepareConfig())
    assert '"another", not "cpu";' in begun_with(tmp_path / "4", manifest, PrepareConfig(), face_device="cpu")


@pytest.mark.parametrize(
    ("nodes", "device", "told"),
    [
        ([{"CPU": 8}], "cpu", ""),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 4, "GPU": 2}, {"memory": 1}], "cuda", ""),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 64}, {"CPU": 64}], "cpu", "because 2 of 3 machines with CPUs have no GPU; "),
        ([{"GPU": 1}, {"CPU": 64}], "cpu", "because 1 of 1 machines with CPUs have no GPU; "),
    ],
)
def test_no_machine_stays_idle_for_want_of_a_gpu(
    nodes: list[dict[str, float]],
    device: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster_of(monkeypatch, *nodes)
    assert prepare_module._resolved_device("auto", PrepareConfig()) == device
    said = capsys.readouterr().err
    assert said.count("\n") == bool(told)
    assert told in said
    assert ("--face-device cuda" in said) == bool(told)
    assert prepare_module._resolved_device("cpu", PrepareConfig()) == "cpu"
    assert capsys.readouterr().err == ""


def test_a_device_that_is_not_there_is_refused_before_work(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_of(monkeypatch, {"CPU": 8})
    with pytest.raises(InputError, match="face_device is 'tpu'; choose from auto, cpu, cuda"):
        prepare(manifest, str(tmp_path / "out"), PrepareConfig(), face_device="tpu")
    with pytest.raises(InputError, match="face_device is 'cuda', but the cluster has no GPU; give --face-device cpu"):
        prepare(manifest, str(tmp_path / "out"), PrepareConfig(), face_device="cuda")
    assert not (tmp_path / "out").exists()


def test_a_gpu_without_cuda_is_told_by_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    worker = PrepareWorker(str(tmp_path), {}, PrepareConfig(), "cuda")
    with pytest.raises(InputError, match=r"face_device is 'cuda', but torch finds no CUDA on .*; give --face-device"):
        list(worker.work({"name": boxes.shard_name(0), "rows": [{"clip_id": "a"}], "position": 0}))


@pytest.mark.parametrize(
    ("nodes", "mebibytes", "actors"),
    [
        ([{"CPU": 16, "GPU": 1}], 100_000, 16),  # one for each CPU
        ([{"CPU": 16, "GPU": 1}], 7_500, 7),  # as many as have 1 GiB each
        ([{"CPU": 16, "GPU": 1}], 200, 1),
        ([{"CPU": 16, "GPU": 1}], None, 1),  # nothing tells the memory
        ([{"CPU": 14, "GPU": 2}], 100_000, 14),  # 7 on each GPU
        ([{"CPU": 64, "GPU": 8}], 15_400, 64),
        ([{"CPU": 16}, {"CPU": 4, "GPU": 1}], 100_000, 4),  # the CPUs that lie beside a GPU
        ([{"CPU": 2, "GPU": 4}], 100_000, 2),
    ],
)
def test_actors_share_gpus_as_far_as_memory_and_cpus_allow(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], mebibytes: int | None, actors: int
) -> None:
    cluster_of(monkeypatch, *nodes, gpu_memory=None if mebibytes is None else mebibytes * MEBIBYTE)
    share = prepare_module.gpu_share()
    assert shards._number_of_actors(None, 1000, 1, share, "") == actors
    # No GPU is promised to more actors than it has shares, in Ray's steps of 0.0001.
    assert share == round(share, 4)
    assert share * -(-actors // max(1, sum(int(node.get("GPU", 0)) for node in nodes))) <= 1


def test_no_machine_has_room_for_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, {"CPU": 16}, {"CPU": 0, "GPU": 1})
    expected = r"an actor needs 1 CPUs and 0\.5 GPUs on one machine, which this cluster does not have; give up\.$"
    with pytest.raises(InputError, match=expected):
        shards._number_of_actors(None, 10, 1, 0.5, "give up")


def test_the_way_out_is_one_of_this_command(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, {"CPU": 16}, {"CPU": 0, "GPU": 1})
    with pytest.raises(InputError, match=r"which this cluster does not have; give --face-device cpu\.$"):
        prepare(manifest, str(tmp_path / "1"), PrepareConfig(), face_device="cuda")


def test_versions_of_all_that_decides_on_the_bytes_are_told() -> None:
    assert set(shards.versions(prepare_module._PACKAGES)) == {
        *("audiomentations", "av", "facenet-pytorch", "librosa", "numpy", "pyarrow", "pyroomacoustics", "scipy"),
        *("soxr", "torch", "torchvision"),
    }
