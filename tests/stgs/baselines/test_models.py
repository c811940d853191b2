"""MRDF and its relatives: sizes and outputs of the released ones, masks, what trains, labels and scores."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stgs.baselines import BASELINES, Baseline, BaselineConfig, make_baseline
from stgs.baselines.batch import Labels
from stgs.baselines.cost import macs
from stgs.baselines.weights import Loaded, load_av_hubert, load_released, read_checkpoint
from stgs.config import InputError
from tests.stgs.baselines.released import golden, golden_state, saved, with_aliases

# Of the released models, without transformer layers; 12 of them add 12 * 7,087,872.
PARAMETERS = {
    "mrdf_ce": 19_967_342,
    "mrdf_margin": 19_964_266,
    "avdf": 19_964_266,
    "avdf_ensemble": 19_375_212,
    "avdf_multilabel": 19_964_266,
    "avdf_multiclass": 19_965_804,
}
# Labels of one clip each of A, B, C, D.
EACH = Labels(visual_fake=torch.tensor([0, 0, 1, 1]), audio_fake=torch.tensor([0, 1, 0, 1]))
SMALL = BaselineConfig(layers=2, width=48)


def small(name: str, config: BaselineConfig = SMALL) -> Baseline:
    """A small model whose running statistics and scales are not those that it starts with."""
    torch.manual_seed(3)
    model = make_baseline(name, config)
    for array in model.state_dict().values():
        if array.is_floating_point():
            array.add_(0.1 * torch.rand(array.shape))
    return model.eval()


def clips(lengths: list[int], side: int = 36) -> tuple[Tensor, Tensor, Tensor]:
    """Clips of noise, zero behind their ends."""
    video = torch.randn(len(lengths), 3, max(lengths), side, side)
    audio = torch.randn(len(lengths), 104, max(lengths))
    for clip, frames in enumerate(lengths):
        video[clip, :, frames:], audio[clip, :, frames:] = 0.0, 0.0
    return video, audio, torch.tensor(lengths)


def test_the_released_models_are_baselines() -> None:
    assert PARAMETERS.keys() <= BASELINES.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_released_models(name: str) -> None:
    counts = []
    for layers in (0, 12):
        with torch.device("meta"):
            model = make_baseline(name, BaselineConfig(layers=layers))
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert counts == [PARAMETERS[name], PARAMETERS[name] + 85_054_464]


@pytest.mark.parametrize(
    ("name", "file"), [("mrdf_margin", "MRDF_Margin"), ("avdf", "AVDF"), ("avdf_multilabel", "AVDF_Multilabel")]
)
def test_outputs_and_losses_are_those_of_the_released_model(name: str, file: str, shared: Path) -> None:
    expected = golden(shared, file)
    state = golden_state(expected)
    model = make_baseline(name, BaselineConfig(layers=0)).eval()
    loaded = load_released(model, with_aliases(state), "released.ckpt")
    assert (loaded.missing, loaded.left_over, loaded.adapted) == ((), (), ())
    assert len(state) == 165
    assert all(torch.equal(array, state[name]) for name, array in model.state_dict().items())

    random = np.random.default_rng(20)
    video, audio = random.standard_normal((4, 3, 20, 100, 100)), random.standard_normal((4, 104, 20))
    with torch.no_grad():
        outputs = model(torch.from_numpy(video).float(), torch.from_numpy(audio).float(), torch.full((4,), 20))
    names = {key.removeprefix("T20.") for key in expected if key.startswith("T20.")}
    assert outputs.keys() == names
    for key in names:
        values = expected[f"T20.{key}"]
        assert np.abs(outputs[key].numpy() - values).max() < 1e-5 * np.abs(values).max(), key
    # The golden labels are 1 = real.
    losses = model.loss(outputs, Labels(1 - torch.tensor([1, 0, 1, 0]), 1 - torch.tensor([1, 1, 0, 0])))
    assert losses["loss"].item() == pytest.approx(expected["loss.loss"].item(), rel=1e-5)
    assert losses.get("clip_loss", losses["loss"]).item() == pytest.approx(expected["loss.mm_loss"].item(), rel=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_outputs_depend_neither_on_padding_nor_on_company(name: str) -> None:
    model = small(name)
    video, audio, lengths = clips([3, 11, 7])
    with torch.no_grad():
        together = model(video, audio, lengths)
        for clip, frames in enumerate(lengths.tolist()):
            alone = model(video[clip, None, :, :frames], audio[clip, None, :, :frames], torch.tensor([frames]))
            for key, output in alone.items():
                torch.testing.assert_close(together[key][clip, None], output, rtol=1e-4, atol=1e-5)


def test_more_padding_changes_nothing_in_training_either() -> None:
    config = BaselineConfig(layers=1, width=48, dropout=0.0)
    video, audio, lengths = clips([4, 6])
    results = []
    for padding in (0, 5):
        model = small("mrdf_margin", config).train()
        outputs = model(functional.pad(video, (0, 0, 0, 0, 0, padding)), functional.pad(audio, (0, padding)), lengths)
        results.append((outputs, model.state_dict()))
    (outputs, state), (padded_outputs, padded_state) = results
    torch.testing.assert_close(dict(padded_outputs), dict(outputs))
    torch.testing.assert_close(dict(padded_state), dict(state))


def test_batch_normalisation_sees_the_clips_own_frames_alone() -> None:
    model = make_baseline("avdf", BaselineConfig(layers=0, width=48)).train()
    video, audio, lengths = clips([2, 7])
    model(video, audio, lengths)
    stem = model.get_submodule("model.feature_extractor_video.resnet.frontend3D")
    alone = [
        functional.conv3d(video[clip, None, :, :frames], stem[0].weight, stride=(1, 2, 2), padding=(2, 3, 3))
        for clip, frames in enumerate(lengths.tolist())
    ]
    pixels = torch.cat([maps.transpose(0, 1).flatten(1) for maps in alone], dim=1)
    torch.testing.assert_close(stem[1].running_mean, 0.1 * pixels.mean(dim=1))
    torch.testing.assert_close(stem[1].running_var, 0.9 + 0.1 * pixels.var(dim=1))


# Parameters that training leaves alone: of AV-HuBERT's own training, and of heads that a model does not use.
UNUSED = {"model.mask_emb", "model.final_proj"}
PROJECTIONS = {"project_audio", "project_video"}
FUSION = {"model.post_extract_proj", "model.layer_norm", "model.encoder"}


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("mrdf_ce", UNUSED),
        ("mrdf_margin", UNUSED),
        ("avdf", UNUSED | PROJECTIONS),
        ("avdf_ensemble", UNUSED | FUSION),
        ("avdf_multilabel", UNUSED | PROJECTIONS),
        ("avdf_multiclass", UNUSED | PROJECTIONS),
    ],
)
def test_everything_that_an_output_depends_on_trains_the_stem_included(name: str, unused: set[str]) -> None:
    model = make_baseline(name, SMALL).train()
    losses = model.loss(model(*clips([3, 5, 4, 3])), EACH)
    losses["loss"].backward()
    still = {key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert still == {key for key, _ in model.named_parameters() if key.startswith(tuple(unused))}


def test_the_layers_fused_path_gives_what_the_plain_one_gives() -> None:
    model = small("avdf")
    batch = clips([3, 9])
    with torch.no_grad():
        fused = model(*batch)["m_logits"]
    torch.testing.assert_close(fused, model(*batch)["m_logits"].detach(), rtol=1e-4, atol=1e-5)


def test_a_longer_clip_is_heard_to_its_end_by_position_0() -> None:
    # With transformer layers alone: the position convolution reaches 63 frames ahead.
    video, audio, _ = clips([80], side=8)
    changed = audio.clone()
    changed[:, :, 75] += 1.0
    differences = {}
    for layers in (0, 1):
        model = small("avdf", BaselineConfig(layers=layers, width=48))
        with torch.no_grad():
            first, second = (model(video, sound, torch.tensor([80]))["m_logits"] for sound in (audio, changed))
        differences[layers] = (first - second).abs().max().item()
    assert differences[0] == 0.0
    assert differences[1] > 1e-6


def test_training_lowers_the_loss_of_its_own_clips() -> None:
    model = make_baseline("mrdf_ce", BaselineConfig(layers=1, width=48, dropout=0.0)).train()
    batch = clips([3, 4, 3, 4])
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = model.loss(model(*batch), EACH)["loss"]
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    assert model.scores(model(*batch)).argmin() == 0  # the one real clip


def two_columns(fake: list[float]) -> Tensor:
    """Logits of these P(fake)."""
    probability = torch.tensor(fake, dtype=torch.float64)
    return torch.stack([probability, 1 - probability], dim=1).log()


@pytest.mark.parametrize("name", ["mrdf_ce", "mrdf_margin", "avdf"])
def test_score_of_a_clip_logit_is_that_of_its_first_column(name: str) -> None:
    scores = small(name).scores({"m_logits": two_columns([0.1, 0.75])})
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor([0.1, 0.75], dtype=torch.float64))


def test_a_clip_is_as_fake_as_the_faker_of_its_senses() -> None:
    audio, visual = [0.1, 0.9, 0.2], [0.3, 0.4, 0.05]
    expected = torch.tensor([0.3, 0.9, 0.2], dtype=torch.float64)
    ensemble = {"a_logits": two_columns(audio), "v_logits": two_columns(visual)}
    torch.testing.assert_close(small("avdf_ensemble").scores(ensemble), expected)
    real = 1 - torch.tensor([audio, visual], dtype=torch.float64).T
    torch.testing.assert_close(small("avdf_multilabel").scores({"av_logits": real.logit()}), expected)


def test_multiclass_takes_the_categories_in_the_released_order() -> None:
    model = small("avdf_multiclass")
    a_c_b_d = torch.tensor([[0.7, 0.1, 0.05, 0.15]], dtype=torch.float64).log()
    torch.testing.assert_close(model.scores({"m_logits": a_c_b_d}), torch.tensor([0.3], dtype=torch.float64))
    for clip, probability in enumerate([0.7, 0.05, 0.1, 0.15]):  # of A, B, C, D
        loss = model.loss({"m_logits": a_c_b_d}, Labels(EACH.visual_fake[clip, None], EACH.audio_fake[clip, None]))
        assert loss["loss"].item() == pytest.approx(-np.log(probability))


@pytest.mark.parametrize("name", ["mrdf_ce", "avdf_ensemble"])
def test_each_sense_has_its_own_labels(name: str) -> None:
    sure = {False: [1e-6, 1e-6, 1 - 1e-6, 1 - 1e-6], True: [1e-6, 1 - 1e-6, 1e-6, 1 - 1e-6]}
    outputs = {
        "v_logits": two_columns(sure[False]),
        "a_logits": two_columns(sure[True]),
        "m_logits": two_columns([0.5] * 4),
        "v_cross": torch.ones(4, 2, dtype=torch.float64),
        "a_cross": torch.ones(4, 2, dtype=torch.float64),
    }
    losses = small(name).loss(outputs, EACH)
    assert losses["audio_loss"].item() == pytest.approx(0.0, abs=1e-5)
    assert losses["visual_loss"].item() == pytest.approx(0.0, abs=1e-5)
    if name == "mrdf_ce":  # three fakes whose senses agree cost 1 each
        assert losses["contrast_loss"].item() == pytest.approx(0.75)
        assert losses["loss"].item() == pytest.approx(np.log(2) + 0.75, abs=1e-4)


def test_margins_come_from_the_config() -> None:
    config = BaselineConfig(layers=0, width=48, margin_contrast=0.1, margin_audio=0.2, margin_visual=0.3)
    alike = torch.ones(4, 2)
    outputs = dict.fromkeys(("v_cross", "a_cross", "v_embeds", "a_embeds"), alike) | {"m_logits": torch.zeros(4, 2)}
    losses = make_baseline("mrdf_margin", config).loss(outputs, EACH)
    assert losses["contrast_loss"].item() == pytest.approx(0.75 * 0.9)
    assert losses["audio_loss"].item() == pytest.approx(0.5 * 0.8)
    assert losses["visual_loss"].item() == pytest.approx(0.5 * 0.7)


def test_half_precision_outputs_give_a_float32_loss() -> None:
    for name in BASELINES:
        model = small(name)
        outputs = {key: value.detach().half() for key, value in model(*clips([2, 3, 2, 2], side=8)).items()}
        losses = model.loss(outputs, EACH)
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values()), name
        assert model.scores(outputs).dtype == torch.float64


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", -1, "layers is -1"),
        ("width", 64, "a multiple of 48"),
        ("width", 0, "a multiple of 48"),
        ("dropout", 1.0, "dropout is 1.0"),
        ("margin_audio", float("nan"), "margin_audio is nan"),
    ],
)
def test_what_no_model_can_be_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BaselineConfig(**{field: value})


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'mrdf'; choose one of mrdf_ce, mrdf_margin, avdf,"):
        make_baseline("mrdf", BaselineConfig())


def test_a_small_models_released_file_loads_by_its_own_names_too() -> None:
    model, other = small("mrdf_ce"), make_baseline("mrdf_ce", SMALL)
    data = saved({"state_dict": model.state_dict()})
    assert load_released(other, read_checkpoint(data, "own.ckpt"), "own.ckpt").missing == ()
    assert all(torch.equal(array, other.state_dict()[name]) for name, array in model.state_dict().items())


class Loudness(Baseline):
    """A baseline that has nothing of AV-HuBERT's."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.scale = torch.nn.Linear(104, 1)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return {"logit": self.scale(audio.sum(dim=2) / lengths.to(audio.device)[:, None])[:, 0]}

    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        return {"loss": functional.binary_cross_entropy_with_logits(outputs["logit"], labels.fake.float())}

    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["logit"].double().sigmoid()


def test_a_further_baseline_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, "loudness", Loudness)
    model, other = (make_baseline("loudness", SMALL) for _ in range(2))
    assert model.published is None
    assert macs(model) == 104
    assert load_released(other, model.state_dict(), "file") == Loaded((), (), ())
    assert torch.equal(other.scale.weight, model.scale.weight)
    with pytest.raises(InputError, match="Loudness has no encoder of AV-HuBERT"):
        load_av_hubert(model, {}, "base.pt")


def test_the_published_figures_are_mrdf_ces() -> None:
    kinds = {name: BASELINES[name] for name in PARAMETERS}
    published = {name: kind.published for name, kind in kinds.items() if kind.published is not None}
    assert published.keys() == {"mrdf_ce"}
    assert (published["mrdf_ce"].accuracy, published["mrdf_ce"].auc) == (0.9405, 0.9243)
