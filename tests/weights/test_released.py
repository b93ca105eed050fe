"""The released code's checkpoints: its numbers, every architecture of it, and a question where one is silent."""

import functools
import json
import warnings

import lightning_files
import numpy as np
import pytest
import released_numbers
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import aavae
from aavae import build
from aavae.convert import convert
from aavae.datasets.folder import ImageNet
from aavae.errors import UserError
from aavae.models.assemble import assemble
from aavae.models.autoencoder import Projection
from aavae.runtime import targets
from aavae.weights import checkpoint, encoder_file, released
from aavae.weights.load import load_trained

CIFAR, STL = (
    lightning_files.CIFAR,
    lightning_files.CIFAR | {"dataset": "stl10", "input_height": 96, "first_conv3x3": False},
)
SILENT = lightning_files.NO_PARAMETERS
NAMES = ("cifar10", "stl10", "imagenet")


@functools.cache
def tiny(dataset="cifar10", method="aavae"):
    """A small model that has seen some images; its state dict has the released code's keys."""
    parts = ("encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8", f"method={method}")
    data = ImageNet if dataset == "imagenet" else None
    model = assemble(build.architecture(build.compose([f"dataset={dataset}", *parts]), data))
    size = 64 if dataset == "imagenet" else model.architecture["decoder"]["image_size"]
    model.encode(2 + torch.randn(8, 3, size, size))  # in training mode, for BatchNorm's statistics
    return model.eval()


@pytest.fixture
def lightnings(tmp_path):
    """Writes Lightning checkpoints of small models: `lightnings(dataset, parameters)` → path."""

    def write(dataset="cifar10", parameters=None, **kwargs):
        return lightning_files.write(tmp_path / "released.ckpt", tiny(dataset).state_dict(), parameters, **kwargs)

    return write


def refused(load, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        load(*args, **kwargs)
    assert str(error.value).isprintable()  # one line
    return str(error.value)


# ---- Its numbers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=released_numbers.NAMES)
def loaded(request, tmp_path_factory):
    """A configuration of the parity files, and what is loaded from it as Lightning would have written it."""
    numbers = released_numbers.read(request.param)
    c = numbers.config
    said = {k: c[k] for k in ("encoder", "decoder", "h_dim", "latent_dim", "log_scale", "learn_scale")}
    said |= {"kl_coeff": c["beta"], "input_height": c["image_size"]}
    weights = released_numbers.filled_by_rule(numbers.state_dict, c["log_scale"], torch.float32)
    path = tmp_path_factory.mktemp("parity") / "released.ckpt"
    lightning_files.write(path, weights, CIFAR | said, finetuner=True)
    both = aavae.load_model(path), aavae.load_encoder(path)
    path.unlink()  # it is large
    return numbers, *both


def test_a_loaded_checkpoint_gives_the_released_numbers(loaded):
    numbers, model, _ = loaded
    objective = build.loss(build.compose([f"loss.beta={numbers.config['beta']}"]))
    found = released_numbers.evaluated(model, objective, numbers.vectors)
    assert len(found) == 7
    for name, value in found.items():
        released_numbers.assert_close(value, numbers.vectors[f"eval.{name}"], 1e-4, name)
    assert model.log_scale.requires_grad == bool(numbers.config["learn_scale"])


def test_a_loaded_encoder_gives_the_released_features_and_knows_its_facts(loaded):
    numbers, model, encoder = loaded
    with torch.no_grad():
        released_numbers.assert_close(encoder(numbers.vectors["view"]), numbers.vectors["eval.h"], 1e-4, "h")
    assert encoder.output_dim == numbers.config["h_dim"]
    assert not any(m.training for both in (model, encoder) for m in both.modules())
    mean, std = (125.3 / 255, 123 / 255, 113.9 / 255), (63 / 255, 62.1 / 255, 66.7 / 255)  # spec §1.5
    assert (encoder.mean, encoder.std) == (model.mean, model.std) == (mean, std)


# ---- However it was written ---------------------------------------------------------------------------------------


def same(a, b, size=32):
    x, noise = torch.randn(4, 3, size, size), torch.randn(4, 8)
    with torch.no_grad():
        ours, theirs = a(x, noise), b(x, noise)
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("h", "mu", "x_hat"))


@pytest.mark.parametrize("finetuner", [True, False])
@pytest.mark.parametrize("kind", ["AttributeDict", "Namespace", "dict", "nothing"])
def test_the_model_comes_back_whatever_holds_its_hyper_parameters(tmp_path, kind, finetuner):
    model, path = tiny(), tmp_path / "a.ckpt"
    how = {"parameters": SILENT} if kind == "nothing" else {"kind": kind}
    lightning_files.write(path, model.state_dict(), finetuner=finetuner, **how)
    assert same(aavae.load_model(path), model)
    assert torch.equal(aavae.load_encoder(str(path)).conv1.weight, model.encoder.conv1.weight)


def test_an_autoencoder_of_ae_py_comes_back(tmp_path):
    model = tiny(method="ae")
    theirs = {
        k.replace("projection.first_layer", "projection.projection_head").replace("n.mu", "n.projection_head.3"): v
        for k, v in model.state_dict().items()
    }
    assert sum("projection_head" in k for k in theirs) == 8
    path = lightning_files.write(tmp_path / "ae.ckpt", theirs, CIFAR | {"denoising": False})
    loaded = aavae.load_model(path)
    assert not loaded.variational and loaded.log_scale is None and same(loaded, model)
    assert "ae on cifar10" in convert(path, tmp_path / "ae.pt", "checkpoint")


@pytest.mark.parametrize("counted", [{"epoch": "last"}, {"global_step": None}, {"epoch": float("nan")}, {}])
def test_a_file_need_not_say_how_long_it_was_trained(tmp_path, counted):
    torch.save({"state_dict": tiny().state_dict()} | counted, tmp_path / "a.ckpt", pickle_protocol=3)
    with warnings.catch_warnings(record=True, action="always") as said:  # by torch, of that protocol
        assert same(aavae.load_model(tmp_path / "a.ckpt"), tiny())
    assert not said


# ---- Its architectures --------------------------------------------------------------------------------------------

SIZES = ("resnet18", "resnet34", "resnet50", "resnet50w2", "resnet50w4")


def described(size, dataset):
    cfg = build.compose(["dataset=cifar10", f"encoder={size}", f"decoder={size}"])
    return build.architecture(cfg, released.DATASETS[dataset])


def under(name, module):
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


@pytest.mark.parametrize("dataset", NAMES)
def test_every_pair_of_encoder_and_decoder_is_recognised(dataset):
    wanted = {size: described(size, dataset) for size in SIZES}
    with torch.device("meta"):
        encoders = {size: targets.component(wanted[size]["encoder"]) for size in SIZES}
        facts = {"latent_dim": 128, "hidden_dim": 512}  # of its linear layers, which are not looked at
        decoders = {size: targets.component(wanted[size]["decoder"], **facts) for size in SIZES}
        heads = {e.output_dim: Projection(e.output_dim, 128, True) for e in encoders.values()}
    for one, encoder in encoders.items():
        for other, decoder in decoders.items():
            weights = under("encoder", encoder) | under("decoder", decoder)
            weights |= under("projection", heads[encoder.output_dim]) | {"log_scale": torch.zeros(1)}
            file = {"state_dict": weights, "hyper_parameters": {}}
            found = released.translate(file, "it", stem=None, image_size=None, dataset=dataset)["architecture"]
            assert found["encoder"] | {"output_dim": None, "pool": 1} == wanted[one]["encoder"]
            assert found["decoder"] | {"skip_order": "commuted"} == wanted[other]["decoder"]
            assert (found["latent_dim"], found["variational"]) == (128, True)


# ---- What cannot be seen is asked for -----------------------------------------------------------------------------

ASKS = "does not say whether it was trained on STL-10 or ImageNet, whose stems look alike; say dataset=stl10 or"


@pytest.mark.parametrize("load", [aavae.load_model, aavae.load_encoder])
@pytest.mark.parametrize("said", [{}, {"image_size": 96}, {"stem": "cifar"}, {"stem": "stl", "dataset": "imagenet"}])
def test_a_silent_7x7_stem_is_asked_for(lightnings, load, said):
    assert ASKS in refused(load, lightnings("stl10", SILENT), **said)


ANSWERS = (
    ({"dataset": "stl10"}, "stl", 96, 0.43),
    ({"stem": "stl"}, "stl", 96, 0.43),
    ({"stem": "imagenet"}, "imagenet", 224, 0.485),
    ({"dataset": "imagenet"}, "imagenet", 224, 0.485),
    ({"dataset": "imagenet", "image_size": 64}, "imagenet", 64, 0.485),
    ({"dataset": "stl10", "stem": "stl", "image_size": 96}, "stl", 96, 0.43),
)


@pytest.mark.parametrize(("said", "stem", "size", "mean"), ANSWERS)
def test_the_answer_is_taken(lightnings, said, stem, size, mean):
    path = lightnings("stl10", SILENT)
    model = aavae.load_model(path, **said)
    pooled = isinstance(model.encoder.maxpool, torch.nn.MaxPool2d)
    assert (model.architecture["encoder"]["stem"], pooled) == (stem, stem == "imagenet")
    assert (model.decoder.image_size, model.mean[0]) == (size, mean)
    its = load_trained(path, **said).config["dataset"]  # what it would be judged on
    assert its.get("image_size") == (size if stem == "imagenet" else None)


HINTS = (
    ({"dataset": "stl10"}, "stl"),
    ({"dataset": "imagenet"}, "imagenet"),
    ({"remove_first_maxpool": True}, "stl"),
    ({"remove_first_maxpool": False}, "imagenet"),
)


@pytest.mark.parametrize(("parameters", "stem"), HINTS)
def test_hyper_parameters_answer_it_too(lightnings, parameters, stem):
    assert aavae.load_model(lightnings("stl10", parameters)).architecture["encoder"]["stem"] == stem


CONTRADICTIONS = (
    ("cifar10", CIFAR, {"stem": "imagenet"}, "was trained with stem cifar, not imagenet"),
    ("cifar10", CIFAR, {"image_size": 64}, "was trained with image_size 32, not 64"),
    ("stl10", STL, {"dataset": "imagenet"}, "was trained with stem stl, not imagenet"),
    ("stl10", STL, {"dataset": "cifar10"}, "was trained with stem stl, not cifar"),
    ("cifar10", CIFAR, {"dataset": "cifar"}, "dataset= must be one of cifar10, stl10, imagenet, not 'cifar'"),
    ("stl10", SILENT, {"dataset": "svhn"}, "dataset= must be one of cifar10, stl10, imagenet, not 'svhn'"),
    ("cifar10", STL, {}, "a first convolution of 3×3, which does not fit stl10"),
    ("cifar10", STL, {"dataset": "cifar10"}, "a first convolution of 3×3, which does not fit stl10"),
    ("stl10", CIFAR, {"dataset": "stl10"}, "a first convolution of 7×7, which does not fit cifar10"),
    ("stl10", STL | {"input_height": 100}, {}, "a multiple of 16"),
)


@pytest.mark.parametrize(("dataset", "parameters", "said", "words"), CONTRADICTIONS)
def test_what_contradicts_the_file_is_refused(lightnings, tmp_path, dataset, parameters, said, words):
    path = lightnings(dataset, parameters)
    assert words in refused(aavae.load_model, path, **said)
    assert words in refused(aavae.load_encoder, path, **said)
    assert words in refused(convert, path, tmp_path / "out.pt", "checkpoint", **said)
    assert words in refused(convert, path, tmp_path / "out.safetensors", "encoder", **said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["released.ckpt"]


def test_our_own_files_are_held_to_what_one_says_of_them(tmp_path):
    model = tiny("imagenet")
    architecture = model.architecture | {"decoder": model.architecture["decoder"] | {"image_size": 64}}
    facts = {"mean": list(ImageNet.mean), "std": list(ImageNet.std)}
    state = {"architecture": architecture, "model": model.state_dict(), "step": 1}
    checkpoint.save(tmp_path / "last.pt", state | facts)
    own = facts | {"architecture": architecture["encoder"], "image_size": 64}
    encoder_file.save(tmp_path / "encoder.safetensors", model.encoder, own)
    for load, path in ((aavae.load_model, tmp_path), (aavae.load_encoder, tmp_path / "encoder.safetensors")):
        for said in ({}, {"dataset": "imagenet"}, {"stem": "imagenet", "image_size": 64}):
            assert load(path, **said).mean == ImageNet.mean
        assert "was trained with stem imagenet, not stl" in refused(load, path, stem="stl")
        assert "was trained with image_size 64, not 224" in refused(load, path, image_size=224)
        assert "dataset= must be one of" in refused(load, path, dataset="digits")


# ---- What is no model of the released code ------------------------------------------------------------------------


def without(prefix, state):
    return {k: v for k, v in state.items() if not k.startswith(prefix)}


FOREIGN = {
    "nothing": (lambda s: {}, "it has no encoder.conv1.weight"),
    "no first layer": (lambda s: without("encoder.conv1", s), "it has no encoder.conv1.weight"),
    "no projection": (lambda s: without("projection", s), "it has no projection.mu.weight"),
    "no decoder": (lambda s: without("decoder", s), "it has no decoder."),
    "no last stage": (lambda s: without("encoder.layer4", s), "four positive depths"),
    "more layers": (lambda s: s | {"encoder.fc.weight": torch.ones(1)}, "unknown encoder.fc.weight"),
    "fewer layers": (lambda s: without("encoder.layer1.0.bn1.bias", s), "missing encoder.layer1.0.bn1.bias"),
    "other shapes": (lambda s: s | {"encoder.bn1.bias": torch.ones(9)}, "encoder.bn1.bias is (9,), not (16,)"),
    "a number for a filter": (lambda s: s | {"encoder.conv1.weight": torch.ones(())}, "its tensors have other shapes"),
    "keys without names": (lambda s: dict(enumerate(s.values())), "it has no encoder.conv1.weight"),
    "linear evaluation": (
        lambda s: {f"backbone.{k}": v for k, v in s.items()} | {"linear_layer.weight": torch.ones(2, 2)},
        "it has no encoder.conv1.weight",
    ),
    "solo-learn": (
        lambda s: {k.replace("encoder", "backbone"): v for k, v in without("decoder", s).items()},
        "it has no encoder.conv1.weight",
    ),
    "solo-learn, of old": (
        lambda s: {k: v for k, v in s.items() if "encoder" in k} | {"classifier.weight": torch.ones(2, 2)},
        "it has no decoder.",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_model_of_the_released_code_is_said_to_be_none(tmp_path, name):
    change, words = FOREIGN[name]
    path = lightning_files.write(tmp_path / "a.ckpt", change(tiny().state_dict()))
    assert words in refused(aavae.load_model, path)


# ---- Judged and continued -----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Writes ten classes of pictures in class folders, 12 to train with and 4 to test with."""

    def write(size):
        rng = np.random.default_rng(0)
        for i in range(160):
            part, label = "train" if i < 120 else "test", i % 10
            path = tmp_path / "photos" / part / f"class{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 180, (size, size, 3)) + 7 * label * (np.arange(3) == label % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        return "dataset.path=photos"

    return write


def results(folder):
    records = json.loads((folder / "results.json").read_text())
    return {(r["probe"], r["feature"], r["split"]): r["value"] for r in records}


PROBES = ("probe=[knn,similarity]", "probe.similarity.images=4", "probe.similarity.shown=3")


def test_a_released_checkpoint_is_judged_directly(lightnings, photos, evaluate, tmp_path):
    path, images = lightnings(finetuner=True), photos(32)
    ended = evaluate("checkpoint=released.ckpt", images, *PROBES)
    assert ended.code == 0, ended.err
    assert "aavae, 400 epochs" in ended.out and "h_untrained is left out" in ended.out
    found = results(tmp_path / "evaluate_released")
    data, encoder = build.dataset(build.compose(["dataset=cifar10", images])), aavae.load_encoder(path)
    with torch.no_grad():
        h = {s: encoder(data.normalize(data[s].images.float() / 255)).double().numpy() for s in ("train", "test")}
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    score = oracle.fit(h["train"], data["train"].labels).score(h["test"], data["test"].labels)
    assert found["knn", "h", "test"] == pytest.approx(score, abs=0.026) and score > 0.15  # chance is 0.1
    assert ("similarity", "h") in {key[:2] for key in found}


def test_a_silent_checkpoint_is_judged_on_what_one_names(lightnings, photos, evaluate, tmp_path):
    lightnings("stl10", SILENT)
    ended = evaluate("checkpoint=released.ckpt", *PROBES)
    assert ended.code == 2 and ASKS in ended.err and ended.err.count("\n") == 1
    how = ("dataset=imagenet", photos(64), "dataset.image_size=64", "dataset.workers=0", "dataset.in_memory=true")
    ended = evaluate("checkpoint=released.ckpt", *how, "probe=knn")
    assert ended.code == 0, ended.err
    assert "aavae or vae" in ended.out and ("knn", "h", "test") in results(tmp_path / "evaluate_released")


def test_a_released_model_cannot_be_trained_further(lightnings, train, tmp_path):
    convert(lightnings(), tmp_path / "converted.pt", "checkpoint")
    for name, words in (("converted.pt", "holds a model to evaluate"), ("released.ckpt", "cannot be read")):
        ended = train("trainer=debug", "hydra.run.dir=run", f"resume={name}")
        assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1
