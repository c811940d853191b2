"""Files of AV-HuBERT and of released baselines: what is read, what is refused, and that nothing of them runs."""

import argparse
import io
import os
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stgs.baselines import Baseline, BaselineConfig, make_baseline
from stgs.baselines.weights import Loaded, load_av_hubert, load_released, read_checkpoint
from stgs.config import InputError
from tests.stgs.baselines.released import saved, with_aliases

WIDTH = 48


@pytest.fixture
def their_class() -> Iterator[type]:
    """A class of a module that is not there any more when the file is read."""
    module = types.ModuleType("their_training")
    kind = type("TheirSettings", (), {"__module__": module.__name__})
    module.TheirSettings = kind  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield kind
    sys.modules.pop(module.__name__, None)


class Runs:
    """What runs a command where it is unpickled."""

    def __init__(self, function: object, command: str) -> None:
        self.reduced = (function, (command,))

    def __reduce__(self) -> tuple:
        return self.reduced


def av_hubert_file(layers: int, width: int = WIDTH, *, prefix: str = "") -> dict[str, Tensor]:
    """An encoder's arrays by fairseq's names, of random numbers."""
    random = torch.Generator().manual_seed(layers)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    with torch.device("meta"):
        own = make_baseline("avdf", BaselineConfig(layers=0, width=width)).get_submodule("model").state_dict()
    state = {name: some(*array.shape) for name, array in own.items() if not name.endswith("num_batches_tracked")}
    state["feature_extractor_video.resnet.frontend3D.0.weight"] = some(width // 12, 1, 5, 7, 7)
    state |= {"label_embs_concat": some(20, 8), "final_proj.weight": some(8, width), "final_proj.bias": some(8)}
    for layer in range(layers):
        shapes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        shapes |= {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
        for part, shape in shapes.items():
            state[f"encoder.layers.{layer}.{part}.weight"] = some(*shape)
            state[f"encoder.layers.{layer}.{part}.bias"] = some(shape[0])
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            state[f"encoder.layers.{layer}.{part}.weight"] = some(width)
            state[f"encoder.layers.{layer}.{part}.bias"] = some(width)
    return {prefix + name: array for name, array in state.items()}


def without(state: dict[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {name: array for name, array in state.items() if not name.startswith(begin)}


def model_of(layers: int, width: int = WIDTH, name: str = "mrdf_ce") -> Baseline:
    return make_baseline(name, BaselineConfig(layers=layers, width=width)).eval()


class PlainLayer(nn.Module):
    """fairseq's layer, normalisations behind, written from its names: q, k, v apart, one head after the other."""

    def __init__(self, state: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.arrays = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.linear(f"self_attn.{part}_proj", x).chunk(12, dim=-1) for part in "qkv")
        heads = []
        for query, key, value in zip(q, k, v, strict=True):
            weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
            heads.append(weights @ value)
        x = self.norm("self_attn_layer_norm", x + self.linear("self_attn.out_proj", torch.cat(heads, dim=-1)))
        inner = self.linear("fc1", x)
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        return self.norm("final_layer_norm", x + self.linear("fc2", inner))


@pytest.mark.parametrize("prefix", ["", "encoder.w2v_model."])
def test_an_av_hubert_file_fills_the_encoder(prefix: str) -> None:
    file = av_hubert_file(12, prefix=prefix)
    further = {"encoder.proj.weight": torch.zeros(3), "decoder.layers.0.fc1.weight": torch.zeros(3)} if prefix else {}
    model = model_of(12)
    heads = {name: array.clone() for name, array in model.state_dict().items() if not name.startswith("model.")}
    loaded = load_av_hubert(model, file | further, "base.pt")

    own = model.state_dict()
    assert all(torch.equal(own[name], array) for name, array in heads.items())
    stem = "feature_extractor_video.resnet.frontend3D.0.weight"
    for name, array in file.items():
        name = name.removeprefix(prefix)
        if f"model.{name}" in own and not name.startswith("final_proj") and name != stem:
            assert torch.equal(own[f"model.{name}"], array), name
    assert loaded.adapted == (f"model.{stem}",)
    unfit = {f"{name}" for name in ("label_embs_concat", "final_proj.weight", "final_proj.bias")}
    assert set(loaded.left_over) == unfit | further.keys()
    counts = {name for name in own if name.startswith("model.") and name.endswith("num_batches_tracked")}
    assert set(loaded.missing) == heads.keys() | counts | {"model.final_proj.weight", "model.final_proj.bias"}


def test_an_av_hubert_layer_computes_what_its_arrays_say() -> None:
    file = av_hubert_file(2)
    model = model_of(2)
    load_av_hubert(model, file, "base.pt")
    x = torch.randn(2, 9, WIDTH)
    for number in range(2):
        layer = model.get_submodule(f"model.encoder.layers.{number}")
        plain = PlainLayer(file, f"encoder.layers.{number}.")
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_grey_picture_gives_what_the_grey_stem_gave() -> None:
    file = av_hubert_file(0)
    model = model_of(0)
    load_av_hubert(model, file, "base.pt")
    name = "feature_extractor_video.resnet.frontend3D.0"
    grey = torch.randn(1, 1, 6, 20, 20)
    expected = nn.functional.conv3d(grey, file[f"{name}.weight"], stride=(1, 2, 2), padding=(2, 3, 3))
    found = model.get_submodule(f"model.{name}")(grey.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_without_layers_leaves_those_of_the_file_over() -> None:
    loaded = load_av_hubert(model_of(0), av_hubert_file(2), "base.pt")
    assert {"encoder.layers.0.fc1.weight", "encoder.layers.1.self_attn.q_proj.bias"} < set(loaded.left_over)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (av_hubert_file(3), "base.pt has 3 transformer layers, but the model has 2; give --layers 3."),
        (
            model_of(2).state_dict(),
            "base.pt is the file of a whole baseline, not of AV-HuBERT; give it as --checkpoint.",
        ),
        (av_hubert_file(2, 96), "base.pt has width 96, but the model has 48; give --width 96."),
        (
            without(av_hubert_file(2), "feature_extractor_video.proj."),
            "base.pt lacks 2 arrays of MrdfCe, model.feature_extractor_video.proj.bias among them",
        ),
        (
            {
                name: array
                for name, array in av_hubert_file(2).items()
                if name != "encoder.layers.1.self_attn.k_proj.bias"
            },
            "base.pt lacks 1 arrays of MrdfCe, model.encoder.layers.1.self_attn.in_proj_bias among them",
        ),
        (av_hubert_file(2) | {"feature_extractor_audio.proj.bias": torch.zeros(7)}, "is (7,), but must be (48,)"),
        (
            av_hubert_file(2) | {"post_extract_proj.bias": torch.zeros(())},
            "does not fit MrdfCe: model.post_extract_proj.bias is (), but must be (48,)",
        ),
        (
            av_hubert_file(2) | {"feature_extractor_video.resnet.frontend3D.0.weight": torch.zeros(())},
            "frontend3D.0.weight is (), but must be (4, 3, 5, 7, 7)",
        ),
        (
            av_hubert_file(2) | {"encoder.layers.1.self_attn.k_proj.weight": torch.zeros(48, 7)},
            "does not fit MrdfCe: model.encoder.layers.1.self_attn.k_proj.weight is (48, 7), but must be (48, 48)",
        ),
        (
            av_hubert_file(2) | {f"encoder.layers.0.self_attn.{part}_proj.bias": torch.zeros(()) for part in "qkv"},
            "model.encoder.layers.0.self_attn.q_proj.bias is (), but must be (48,)",
        ),
    ],
    ids=["layers", "released", "width", "lacking", "half a layer", "shape", "no width", "stem", "key", "no dimensions"],
)
def test_an_av_hubert_file_that_does_not_fit_is_refused(file: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_av_hubert(model_of(2), file, "base.pt")
    assert message in str(caught.value)


def test_a_released_file_needs_every_array_and_names_what_it_has_beside_them() -> None:
    source = model_of(0, name="mrdf_ce")
    file = source.state_dict()
    target = model_of(0, name="mrdf_margin")
    loaded = load_released(target, with_aliases(file), "ce.ckpt")
    heads = tuple(f"{sense}_classifier.0.{kind}" for sense in ("audio", "video") for kind in ("bias", "weight"))
    assert loaded == Loaded(missing=(), left_over=heads, adapted=())
    with pytest.raises(
        InputError, match=r"margin\.ckpt lacks 4 arrays of MrdfCe, audio_classifier\.0\.bias among them"
    ):
        load_released(source, target.state_dict(), "margin.ckpt")
    with pytest.raises(InputError, match=r"ce\.ckpt has 0 transformer layers, but the model has 2; give --layers 0\."):
        load_released(model_of(2), file, "ce.ckpt")


def test_an_alias_that_cannot_be_joined_is_refused() -> None:
    file = av_hubert_file(1, prefix="model.")
    name = "layers.0.self_attn.v_proj.weight"
    del file[f"model.encoder.{name}"]
    with pytest.raises(
        InputError, match=r"ce\.ckpt does not fit MrdfCe: .*v_proj\.weight is \(\), but must be \(48, 48\)"
    ):
        load_released(model_of(1), file | {f"fusion_encoder_hubert.{name}": torch.zeros(())}, "ce.ckpt")


def test_an_array_that_is_joined_by_its_name_alone_is_left_over() -> None:
    odd = {f"encoder.layers.0.self_attn.{part}_proj.scale": torch.zeros(()) for part in "qkv"}
    loaded = load_av_hubert(model_of(1), av_hubert_file(1) | odd, "base.pt")
    assert odd.keys() < set(loaded.left_over)


def test_an_alias_takes_the_place_of_an_array_that_is_missing() -> None:
    source, target = model_of(0), model_of(0)
    file = {
        name: array
        for name, array in with_aliases(source.state_dict()).items()
        if not name.startswith(("model.encoder.", "model.layer_norm."))
    }
    assert load_released(target, file, "file.ckpt").missing == ()
    assert all(torch.equal(array, target.state_dict()[name]) for name, array in source.state_dict().items())


def test_arrays_are_read_from_among_other_peoples_objects(their_class: type) -> None:
    array = torch.arange(3.0)
    settings = their_class()
    settings.inner = [argparse.Namespace(learning_rate=1e-3), their_class]
    by_name: defaultdict[str, list] = defaultdict(list, {"a": [their_class()]})
    lightning = {
        "state_dict": {"w": array, "step": 3},
        "hyper_parameters": argparse.Namespace(path=Path("x"), settings=settings),
        "callbacks": {their_class: by_name},
    }
    fairseq = {"args": argparse.Namespace(a=1), "cfg": {"task": settings}, "model": {"w": array}, "extra": ("b", None)}
    files = [saved(lightning), saved(fairseq)]
    del sys.modules["their_training"]
    for file in files:
        state = read_checkpoint(file, "file")
        assert state.keys() == {"w"}
        assert torch.equal(state["w"], array)
    assert "their_training" not in sys.modules


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.bool]
)
def test_arrays_of_every_real_type_are_read_floats_as_float32(dtype: torch.dtype) -> None:
    array = torch.nn.Parameter(torch.tensor([[0.0, 1.0, 1.0]]).to(dtype), requires_grad=False)
    found = read_checkpoint(saved({"model": {"w": array.T}}), "file")["w"]
    expected = array.T.to(torch.float32 if dtype.is_floating_point else dtype)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("content", [{"a": 1}, {"a": 1, "b": [2]}, [1], [1, 2]])
@pytest.mark.parametrize("attributes", [{}, {"a": 1}])
def test_classes_of_mappings_and_lists_are_read_as_others(
    content: dict | list, attributes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type("Easy", (type(content),), {"__module__": "their_training"})
    module = types.ModuleType(kind.__module__)
    module.Easy = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    settings = kind(content)
    vars(settings).update(attributes)
    file = saved({"hyper_parameters": settings, "model": {"w": torch.ones(1)}})
    monkeypatch.delitem(sys.modules, module.__name__)
    if isinstance(content, list) and attributes:
        with pytest.raises(InputError, match=r"Can only build .*, but got <class 'list'>\); give"):
            read_checkpoint(file, "file")
    else:
        assert read_checkpoint(file, "file").keys() == {"w"}


def test_attributes_of_a_files_objects_take_the_place_of_no_method() -> None:
    class Stored:
        """An OrderedDict with attributes of its own."""

        def __init__(self, **items: object) -> None:
            self.items = items

        def __reduce__(self) -> tuple:
            names = ("get", "items", "keys", "__iter__")
            return OrderedDict, (), dict.fromkeys(names, 3), None, iter(self.items.items())

    array = nn.Parameter(torch.ones(2))
    vars(array).update(dict.fromkeys(("numel", "detach", "untyped_storage", "is_floating_point", "isfinite", "to"), 3))
    state = read_checkpoint(saved(Stored(model=Stored(w=array))), "file")
    assert state.keys() == {"w"}
    assert torch.equal(state["w"], torch.ones(2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_arrays_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(InputError, match=r"x\.pt has an array w of torch\.float32"):
        read_checkpoint(saved({"model": {"w": nested}}), "x.pt")


@pytest.mark.parametrize(
    ("function", "command", "refused"),
    [
        (os.system, "mkdir {}", True),
        (os.mkdir, "{}", True),
        # Answered by the stand-in, as any other name is.
        (eval, "__import__('os').mkdir('{}')", False),
    ],
)
def test_nothing_in_a_file_runs(function: object, command: str, refused: bool, tmp_path: Path) -> None:
    made = tmp_path / "made"
    file = saved({"model": {"w": torch.ones(1)}, "args": Runs(function, command.format(made))})
    if refused:
        told = r"cannot be read as weights \(UnpicklingError: Trying to load unsupported GLOBAL posix\.\w+ whose module"
        with pytest.raises(InputError, match=told):
            read_checkpoint(file, "bad.pt")
    else:
        assert read_checkpoint(file, "bad.pt").keys() == {"w"}
    assert not made.exists()
    torch.load(io.BytesIO(file), weights_only=False)
    assert made.exists()  # the file does what it is meant to where it may


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.pt cannot be read as weights"),
        (b"no checkpoint", "x.pt cannot be read as weights"),
        (saved({"model": {"w": torch.ones(500)}})[:-300], "x.pt cannot be read as weights"),
        (saved({"weights": {"w": torch.ones(1)}}), "holds no arrays under 'model' or 'state_dict'"),
        (saved([torch.ones(1)]), "holds no arrays under"),
        (saved({"model": {}, "state_dict": {"w": 3}}), "holds no arrays under"),
        (saved({"model": {"w": torch.tensor([1.0, float("nan")])}}), "x.pt has an array w with numbers that are not"),
        (saved({"model": {"w": torch.tensor([1e300]).double() * 1e300}}), "not finite in float32"),
        (saved({"model": {"w": torch.tensor(1e300, dtype=torch.float64)}}), "not finite in float32"),
        (saved({"model": {"w": torch.ones(2).to(torch.float8_e4m3fn)}}), "x.pt has an array w of torch.float8_e4m3fn"),
        (saved({"model": {"w": torch.ones(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}}), "float4_e2m1fn_x2"),
        (saved({"model": {"w": torch.ones(2) * 1j}}), "of torch.complex64"),
        (saved({"model": {"w": torch.eye(2).to_sparse()}}), "torch.sparse_coo"),
        (saved({"model": {"w": torch.ones(2, device="meta")}}), "meta"),
        (saved({"model": {"w": torch.zeros(1).expand(2**42)}}), "w of shape (4398046511104,) that holds fewer numbers"),
        (saved({"model": {"w": torch.ones(2)}}, zipped=False), "x.pt is in the format of torch before 1.6"),
    ],
    ids=[
        *("empty", "text", "cut off", "other place", "list", "no arrays", "nan", "infinite", "too large", "float8"),
        *("float4", "complex", "sparse", "meta", "expanded", "before 1.6"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_checkpoint(data, "x.pt")
    assert message in str(caught.value)
    assert str(caught.value).count(". ") == 0
