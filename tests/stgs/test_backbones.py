"""Frozen backbones: taps and pooling against torchvision's own extractor, weights, refusals. Random weights only."""

import hashlib
import json
from pathlib import Path
from typing import ClassVar
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from stgs.backbone_base import Backbone, build_backbone, weights_digest
from stgs.backbone_resnet import ResNet18
from stgs.backbones import (
    BACKBONES,
    IMAGE_DEVIATION,
    IMAGE_MEAN,
    BackboneConfig,
    FeatureExtractor,
    fetch_weights,
)
from stgs.config import InputError

T, SIZE, S, F = 4, 64, 96, 65
CHANNELS = {"resnet18": (128, 256, 512), "resnet34": (128, 256, 512), "resnet50": (512, 1024, 2048)}


def config(architecture: str = "resnet18", **changes: object) -> BackboneConfig:
    fields = {
        "visual": architecture,
        "audio": architecture,
        "visual_weights": "random:1",
        "audio_weights": "random:2",
        "length": T,
    }
    return BackboneConfig(**{**fields, **changes})


def clips(count: int) -> tuple[Tensor, Tensor]:
    frames = torch.randint(0, 256, (count, T, 3, SIZE, SIZE), dtype=torch.uint8)
    return frames, torch.rand(count, S, F) * 5


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(config())


def plain_taps(architecture: str, seed: int, x: Tensor) -> dict[str, Tensor]:
    """Maps of layer2, layer3, layer4 of a torchvision ResNet with random weights; a picture of 1 channel made grey."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(torchvision.models, architecture)(weights=None).eval()
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    with torch.no_grad():
        return create_feature_extractor(network, ["layer2", "layer3", "layer4"])(x)


@pytest.mark.parametrize("architecture", CHANNELS)
def test_features_equal_torchvisions_maps_pooled_plainly(architecture: str) -> None:
    extractor = FeatureExtractor(config(architecture))
    frames, spectrogram = clips(2)
    found = extractor(frames, spectrogram)
    sizes = dict(zip(("layer2", "layer3", "layer4"), CHANNELS[architecture], strict=True))
    sizes["pooled"] = sizes["layer4"]
    assert extractor.features == {
        f"{sense}.{tap}": size for sense in ("visual", "audio") for tap, size in sizes.items()
    }
    assert list(found) == list(extractor.features)

    for clip in range(2):
        pictures = frames[clip].float() / 255
        pictures = (pictures - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_DEVIATION)[:, None, None]
        sound = spectrogram[clip]
        sound = (sound - sound.mean()) / sound.std()
        visual, audio = plain_taps(architecture, 1, pictures), plain_taps(architecture, 2, sound[None, None])
        for tap, size in sizes.items():
            maps, sounds = visual["layer4" if tap == "pooled" else tap], audio["layer4" if tap == "pooled" else tap][0]
            if tap == "pooled":
                expected = {"visual": maps.mean(dim=(0, 2, 3)), "audio": sounds.mean(dim=(1, 2))}
            else:
                times = sounds.shape[1]
                # Bin i of the adaptive pooling holds floor(i n / T) to ceil((i + 1) n / T) - 1.
                bins = [sounds[:, i * times // T : -(-(i + 1) * times // T)].amax(dim=(1, 2)) for i in range(T)]
                expected = {
                    "visual": torch.stack([frame.amax(dim=(1, 2)) for frame in maps], dim=1),
                    "audio": torch.stack(bins, dim=1),
                }
            for sense, value in expected.items():
                half = found[f"{sense}.{tap}"][clip]
                assert half.dtype == torch.float16
                assert half.shape == ((size,) if tap == "pooled" else (size, T))
                # Half precision keeps 11 bits; rounding of a convolution adds a little where values are small.
                assert torch.allclose(half.float(), value, rtol=2.0**-10, atol=1e-4 * float(value.abs().max()))


def test_taps_are_chosen_and_ordered() -> None:
    extractor = FeatureExtractor(config(taps=("pooled", "layer3")))
    assert list(extractor.features) == ["visual.layer3", "visual.pooled", "audio.layer3", "audio.pooled"]
    assert list(extractor(*clips(1))) == list(extractor.features)


def test_one_channel_is_the_response_to_a_grey_picture() -> None:
    grey = torch.randn(2, 1, 48, 48)
    one, three = (build_backbone(ResNet18, "random:5", in_channels) for in_channels in (1, 3))
    assert one.conv1.weight.shape == (64, 1, 7, 7)
    expected = three(grey.expand(-1, 3, -1, -1))
    for tap, maps in one(grey).items():
        assert torch.allclose(maps, expected[tap], rtol=1e-4, atol=1e-4)


def test_segments_of_a_spectrogram_are_pictures_of_their_own() -> None:
    segments = 3
    extractor = FeatureExtractor(config(length=segments, audio_segments=segments))
    frames, spectrogram = clips(2)
    found = extractor(frames[:, :segments], spectrogram)
    size = S // segments
    for clip in range(2):
        sound = (spectrogram[clip] - spectrogram[clip].mean()) / spectrogram[clip].std()
        maps = [plain_taps("resnet18", 2, sound[None, None, i * size : (i + 1) * size]) for i in range(segments)]
        for tap in ("layer2", "layer3", "layer4"):
            expected = torch.stack([taps[tap][0].amax(dim=(1, 2)) for taps in maps], dim=1)
            assert torch.allclose(found[f"audio.{tap}"][clip].float(), expected, rtol=2.0**-10, atol=1e-3)
        mean = torch.stack([taps["layer4"][0].mean(dim=(1, 2)) for taps in maps]).mean(dim=0)
        assert torch.allclose(found["audio.pooled"][clip].float(), mean, rtol=2.0**-10, atol=1e-3)
    with pytest.raises(InputError, match=f"95 frames, which audio_segments {segments} does not divide"):
        extractor(frames[:, :segments], spectrogram[:, :95])


class Stripes(Backbone):
    """An own backbone: one convolution, two taps."""

    taps: ClassVar = {"edges": 6, "pooled": 6}

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.convolution = torch.nn.Conv2d(in_channels, 6, kernel_size=5, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = torch.relu(self.convolution(x))
        return {"edges": maps, "pooled": maps}


def test_an_own_backbone_needs_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BACKBONES, "stripes", Stripes)
    chosen = config(visual="stripes", taps=("edges", "layer3", "pooled"))
    assert chosen.features == {"visual.edges": 6, "visual.pooled": 6, "audio.layer3": 256, "audio.pooled": 512}
    frames, spectrogram = clips(1)
    extractor = FeatureExtractor(chosen)
    found = extractor(frames, spectrogram)
    assert list(found) == list(chosen.features)
    pictures = (frames[0] / 255 - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_DEVIATION)[
        :, None, None
    ]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = torch.nn.Conv2d(3, 6, kernel_size=5, stride=2)
    edges = torch.relu(plain(pictures)).amax(dim=(2, 3)).T
    assert torch.allclose(found["visual.edges"][0].float(), edges, rtol=2.0**-10, atol=1e-4)

    torch.save(extractor.visual.state_dict(), tmp_path / "stripes.pt")
    path = str(tmp_path / "stripes.pt")
    again = FeatureExtractor(config(visual="stripes", visual_weights=path, taps=("edges", "pooled")))
    with pytest.raises(
        InputError, match="taps is \\['layer4'\\], but stripes has none of these; choose from edges, pooled"
    ):
        config(visual="stripes", taps=("layer4",))
    assert torch.equal(again(frames, spectrogram)["visual.edges"], found["visual.edges"])
    with pytest.raises(InputError, match="Stripes has no imagenet weights"):
        fetch_weights(config(visual="stripes", visual_weights="imagenet", taps=("pooled",)))


def test_clip_alone_equals_clip_in_a_batch(extractor: FeatureExtractor) -> None:
    frames, spectrogram = clips(3)
    together = extractor(frames, spectrogram)
    for clip in range(3):
        alone = extractor(frames[clip : clip + 1], spectrogram[clip : clip + 1])
        again = extractor(frames[clip : clip + 1].clone(), spectrogram[clip : clip + 1].clone())
        for name, value in alone.items():
            assert torch.equal(value, again[name])
            # A convolution may sum in another order in a batch: one unit of half precision.
            assert torch.allclose(together[name][clip].float(), value[0].float(), rtol=2.0**-10, atol=1e-4)


def test_loudness_does_not_matter_with_statistics_of_the_clip(extractor: FeatureExtractor) -> None:
    frames, spectrogram = clips(1)
    quiet, loud = extractor(frames, spectrogram), extractor(frames, 100 * spectrogram + 3)
    for name in quiet:
        assert torch.allclose(quiet[name].float(), loud[name].float(), rtol=2.0**-9, atol=1e-3)


def test_silence_gives_finite_features(extractor: FeatureExtractor) -> None:
    frames, _ = clips(1)
    assert all(bool(torch.isfinite(x).all()) for x in extractor(frames, torch.zeros(1, S, F)).values())


def test_named_statistics_are_used(extractor: FeatureExtractor, tmp_path: Path) -> None:
    frames, spectrogram = clips(1)
    mean, deviation = torch.rand(F), 0.5 + torch.rand(F)
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"mean": mean.tolist(), "deviation": deviation.tolist()}))
    normalising = FeatureExtractor(config(spectrogram_statistics=str(path)))
    found = normalising(frames, spectrogram)
    maps = plain_taps("resnet18", 2, ((spectrogram - mean) / deviation)[:, None])
    expected = functional.adaptive_max_pool1d(maps["layer3"].amax(dim=3), T)
    assert torch.allclose(found["audio.layer3"].float(), expected, rtol=2.0**-10, atol=1e-3)
    # They go where the backbones go, and are no part of a state.
    assert normalising.state_dict().keys() == extractor.state_dict().keys()
    assert all(buffer.device.type == "meta" for buffer in normalising.to("meta").buffers())


def test_the_pooling_passes_gradients_and_forward_does_not(extractor: FeatureExtractor) -> None:
    inputs = clips(2)
    cached = extractor(*inputs)
    trained = FeatureExtractor(config()).requires_grad_(True)
    pooled = trained.pooled_taps(*inputs)
    assert not any(x.requires_grad for x in trained(*inputs).values())
    for name, value in pooled.items():
        assert value.dtype == torch.float32
        assert torch.equal(value.half(), cached[name])
    sum(value.sum() for value in pooled.values()).backward()
    assert all(bool((p.grad != 0).any()) for p in trained.parameters())


def test_backbones_are_frozen_and_in_evaluation(extractor: FeatureExtractor) -> None:
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not any(module.training for module in (*extractor.visual.modules(), *extractor.audio.modules()))
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    features = extractor(*clips(1))
    assert not any(tensor.requires_grad for tensor in features.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (build_backbone(ResNet18, f"random:{seed}", 3) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.layer4[1].conv2.weight, two.layer4[1].conv2.weight)
    assert not torch.equal(one.layer4[1].conv2.weight, other.layer4[1].conv2.weight)


@pytest.mark.parametrize("layout", ["torchvision", "AutoSpeech", "one channel"])
def test_weights_from_a_file(layout: str, tmp_path: Path) -> None:
    source = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    state = source.state_dict()
    if layout == "AutoSpeech":
        state = {name.replace("fc.", "classifier."): tensor for name, tensor in state.items()}
        stored = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    elif layout == "one channel":
        stored = {**state, "conv1.weight": state["conv1.weight"].sum(dim=1, keepdim=True)}
    else:
        stored = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "weights.pt"
    torch.save(stored, path)
    source.fc = torch.nn.Identity()
    grey = torch.randn(1, 1, 48, 48)
    with torch.no_grad():
        expected = source(grey.expand(-1, 3, -1, -1))
    found = build_backbone(ResNet18, str(path), 1)(grey)["pooled"].mean(dim=(2, 3))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert weights_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights_digest("random:0") == "random:0"


class Untrusted:
    """An object that a weights file must not bring to life."""


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = torchvision.models.resnet18(weights=None).state_dict()
    for stored, named in (
        (torchvision.models.resnet50(weights=None).state_dict(), "do not fit ResNet18"),
        (torchvision.models.resnet34(weights=None).state_dict(), "unexpected"),
        ({name: t for name, t in state.items() if not name.startswith("layer3")}, "missing"),
        ({"model": state}, r"no conv1\.weight"),
        ([1, 2], r"no conv1\.weight"),
        ({**state, "extra": Untrusted()}, "cannot be read"),
    ):
        torch.save(stored, path)
        with pytest.raises(InputError, match=named):
            build_backbone(ResNet18, str(path), 3)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        build_backbone(ResNet18, str(path), 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"visual": "resnet101"}, "visual is 'resnet101'"),
        ({"audio": "vgg"}, "audio is 'vgg'"),
        ({"taps": ()}, "taps"),
        ({"taps": ("layer1",)}, "taps"),
        ({"length": 0}, "length"),
        ({"audio_segments": 3}, "audio_segments is 3, but it must be 0, or the length, 4"),
        ({"visual_weights": "random:"}, "visual_weights"),
        ({"visual_weights": "random:-1"}, "visual_weights"),
        ({"audio_weights": "nowhere.pt"}, "audio_weights is 'nowhere.pt'"),
    ],
)
def test_wrong_configurations_are_refused(change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        config(**change)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "mean"),
        ("mean", "cannot be read"),
        ('{"mean": [1.0, 2.0], "deviation": [1.0]}', "one number a frequency"),
        ('{"mean": [1.0], "deviation": [0.0]}', "above 0"),
        ('{"mean": 1.0, "deviation": 1.0}', "lists"),
    ],
)
def test_wrong_statistics_are_refused(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        FeatureExtractor(config(spectrogram_statistics=str(path)))


def test_statistics_of_other_frequencies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"mean": [0.0], "deviation": [1.0]}))
    with pytest.raises(InputError, match="1 frequencies, but the spectrogram has 65"):
        FeatureExtractor(config(spectrogram_statistics=str(path)))(*clips(1))


def test_wrong_clips_are_refused(extractor: FeatureExtractor) -> None:
    frames, spectrogram = clips(2)
    for wrong_frames, wrong_spectrogram, named in (
        (frames[:, :3], spectrogram, "3 frames, but length is 4"),
        (frames.float(), spectrogram, "uint8"),
        (frames[:, :, :1], spectrogram, "uint8"),
        (frames[0], spectrogram, "uint8"),
        (frames, spectrogram[:1], "spectrogram"),
        (frames, spectrogram[:, None], "spectrogram"),
        (frames, spectrogram.int(), "spectrogram"),
    ):
        with pytest.raises(InputError, match=named):
            extractor(wrong_frames, wrong_spectrogram)


def test_features_beyond_half_precision_are_refused(extractor: FeatureExtractor) -> None:
    loud = FeatureExtractor(config())
    loud.audio.bn1.weight.mul_(1e6)
    with pytest.raises(InputError, match=r"'audio\.layer2' reaches"):
        loud(*clips(1))


def test_imagenet_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"resnet18 cannot be downloaded \(no network\); give a file"):
        fetch_weights(BackboneConfig(visual="resnet18", visual_weights="imagenet", audio_weights="random:0"))
    fetch_weights(BackboneConfig(visual_weights="random:0", audio_weights="random:0"))
