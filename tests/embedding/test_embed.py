"""`aavae-embed`, as typed, and encoders that take pictures: the same features as probes have, for images never seen."""

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from torchvision.transforms import functional as tvf

import aavae
from aavae import build
from aavae.datasets import to_float
from aavae.weights.ready import Transform

TRAIN = ("trainer=debug", "trainer.max_steps=2", "probe=[]", "hydra.run.dir=run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps."""
    from aavae.train import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["aavae-train", *TRAIN])
        with pytest.raises(SystemExit):
            main()
    return folder / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Seven pictures in two folders, of different sizes, one of them grey."""
    draw = np.random.default_rng(0)
    for n, size in enumerate([(16, 16), (40, 30), (20, 33), (16, 16), (64, 64), (17, 90), (25, 25)]):
        path = tmp_path / "photos" / ("cats" if n < 4 else "dogs") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels[..., 0] if n == 2 else pixels).save(path)
    return tmp_path / "photos"


# ---- Encoders -----------------------------------------------------------------------------------------------------


def test_an_encoder_sees_pictures_as_the_probes_did(trained):
    encoder = aavae.load_encoder(trained)
    data = build.dataset(build.compose(["trainer=debug"])).load()
    images = next(iter(data["test"].batches(8)))
    pictures = [tvf.to_pil_image(image) for image in images]
    as_probes = data.normalize(data.target(to_float(images)))
    assert torch.equal(torch.stack([*map(encoder.transform, pictures)]), as_probes)
    assert encoder.image_size == 16 and encoder.embed(pictures).shape == (8, encoder.output_dim)
    torch.testing.assert_close(encoder.embed(pictures, batch_size=3), encoder(as_probes), atol=1e-5, rtol=1e-4)


def test_a_transform_is_torchvision_s():
    draw = np.random.default_rng(1)
    image = Image.fromarray(draw.integers(0, 256, (50, 70, 3), np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    cut = tvf.center_crop(tvf.resize(image, 40, antialias=True), [32, 32])
    expected = tvf.normalize(tvf.to_tensor(cut), mean, std)
    torch.testing.assert_close(Transform(32, 40, mean, std)(image), expected, atol=1e-6, rtol=1e-5)


def test_stl10_s_pictures_are_cut_as_its_official_targets(tmp_path):
    from aavae.datasets.downloads import STL10

    draw = np.random.default_rng(2)
    image = Image.fromarray(draw.integers(0, 256, (96, 96, 3), np.uint8))
    data = STL10(str(tmp_path))
    pixels = tvf.pil_to_tensor(image)[None]
    expected = data.normalize(data.target(to_float(pixels)))[0]
    assert torch.equal(Transform(96, 105, data.mean, data.std)(image), expected)


def test_pictures_come_from_folders_paths_and_arrays(trained, photos):
    encoder = aavae.load_encoder(trained)
    paths = sorted(photos.rglob("*.png"))
    whole = encoder.embed(photos)
    assert whole.shape == (7, encoder.output_dim) and not whole.requires_grad
    torch.testing.assert_close(encoder.embed(paths), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.embed([np.asarray(Image.open(paths[0]))]), whole[:1], atol=1e-5, rtol=1e-4)
    assert encoder.embed([]).shape == (0, encoder.output_dim)
    twin = copy.deepcopy(encoder)
    torch.nn.init.zeros_(twin.conv1.weight)
    assert not torch.equal(twin.embed(paths[:1]), whole[:1])  # a copy embeds by its own weights


def test_a_checkpoint_and_an_encoder_file_give_the_same(trained, photos):
    found = [aavae.load_encoder(trained / name).embed(photos) for name in ("last.pt", "encoder.safetensors")]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


# ---- The command --------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    if path.suffix == ".parquet":
        table = pq.read_table(path).to_pydict()
        return table["file"], table["label"], np.array(table["features"], np.float32)
    if path.suffix == ".npz":
        arrays = np.load(path)
        return arrays["files"].tolist(), arrays["labels"].tolist(), arrays["features"]
    with safe_open(path, "np") as file:
        said = file.metadata()
        return json.loads(said["files"]), json.loads(said["labels"]), file.get_tensor("features")


@pytest.mark.parametrize("end", [".parquet", ".npz", ".safetensors"])
def test_features_are_written_with_names_and_labels(embed, trained, photos, end):
    ended = embed(f"run={trained}", "images=photos", f"out=f{end}", "batch_size=3", "workers=0")
    assert ended.code == 0 and f"written     f{end}: 7 features of 128 numbers" in ended.out, ended.err
    files, labels, features = read(Path(f"f{end}"))
    assert files == ["cats/0.png", "cats/1.png", "cats/2.png", "cats/3.png", "dogs/4.png", "dogs/5.png", "dogs/6.png"]
    assert labels == ["cats"] * 4 + ["dogs"] * 3
    known = aavae.load_encoder(trained).embed(photos)
    np.testing.assert_allclose(features, known.numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("features", "shape"), [("mu", (8,)), ("z", (8,)), ("layer3", (64, 4, 4)), ("map", (128, 2, 2))]
)
def test_other_features_can_be_had(embed, trained, photos, features, shape):
    assert embed(f"run={trained}", "images=photos", "out=f.npz", f"features={features}", "workers=0").code == 0
    _, _, found = read(Path("f.npz"))
    model, encoder = aavae.load_model(trained), aavae.load_encoder(trained)
    x = torch.stack([encoder.transform(Image.open(p)) for p in sorted(photos.rglob("*.png"))])
    assert found.shape == (7, *shape)
    if features in ("mu", "map"):
        known = model.encode(x).mu if features == "mu" else encoder.maps(x)[-1]
        np.testing.assert_allclose(found, known.detach().numpy(), atol=1e-5, rtol=1e-3)


def test_a_model_of_timm_s_is_embedded_with_its_own_transform(embed, photos, monkeypatch):
    torch.manual_seed(0)
    made = timm.create_model("resnet10t", pretrained=False, num_classes=0).eval()
    monkeypatch.setattr("timm.create_model", lambda *given, **named: made)
    assert embed("timm=resnet10t", "pretrained=false", "images=photos", "out=f.npz", "workers=0").code == 0
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(made))
    x = torch.stack([transform(Image.open(p).convert("RGB")) for p in sorted(photos.rglob("*.png"))])
    with torch.no_grad():
        np.testing.assert_allclose(read(Path("f.npz"))[2], made(x).numpy(), atol=1e-4, rtol=1e-3)


def test_the_nearest_are_drawn(embed, trained, photos):
    from aavae.embedding import neighbours

    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        original = neighbours.draw
        patch.setattr(neighbours, "draw", lambda *given: drawn.append(given) or original(*given))
        query = "query=photos/dogs/4.png"
        ended = embed(
            f"run={trained}", "images=photos", "out=n.png", query, "neighbours=3", "batch_size=2", "workers=0"
        )
    assert ended.code == 0, ended.err
    with Image.open("n.png") as picture:
        assert picture.width > 400
    features = torch.nn.functional.normalize(aavae.load_encoder(trained).embed(photos), dim=1)
    known = (features @ features[4]).topk(3)
    assert [cosine for cosine, _ in drawn[0][3].found] == pytest.approx(known.values.tolist(), abs=1e-4)
    assert drawn[0][3].found[0][1] == "dogs/4.png"
    assert embed(f"run={trained}", "images=photos", "out=f.npz", query, "workers=0").code == 0
    assert Path("f.npz").exists() and Path("f.png").exists()


def test_bad_images_are_named_or_left_out(embed, trained, photos):
    (photos / "cats/bad.png").write_bytes(b"nothing")
    ended = embed(f"run={trained}", "images=photos", "out=f.npz", "workers=0")
    assert ended.code == 2 and "cats/bad.png in photos is damaged" in ended.err and "on_error=skip" in ended.err
    assert not Path("f.npz").exists() and ended.err.count("\n") == 1
    ended = embed(f"run={trained}", "images=photos", "out=f.npz", "workers=0", "on_error=skip")
    assert ended.code == 0 and "left out    1 image" in ended.out and len(read(Path("f.npz"))[0]) == 7
    for image in photos.rglob("*.*"):
        image.write_bytes(b"nothing")
    ended = embed(f"run={trained}", "images=photos", "out=g.npz", "workers=0", "on_error=skip")
    assert ended.code == 2 and "no image in photos can be used" in ended.err and not Path("g.npz").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("images=photos out=f.npz", "say what makes the features"),
        ("run=run timm=x images=photos out=f.npz", "say what makes the features"),
        ("run=run out=f.npz", "say which images"),
        ("run=run images=photos", "say where to write"),
        ("run=run images=photos out=f.csv", "out= must end in .parquet, .npz, .safetensors"),
        ("run=run images=photos out=f.png", "with query= also .png"),
        ("run=run images=photos out=nowhere/f.npz", "there is no folder nowhere"),
        ("run=nowhere images=photos out=f.npz", "there is no nowhere"),
        ("run=run images=nowhere out=f.npz", "there is no nowhere; images= names a folder or a zip"),
        ("run=run images=photos out=f.npz features=k", "features must be h, mu, z, map, layer1"),
        ("run=run images=photos out=f.npz feature=h", "did you mean features=?"),
        ("run=run images=photos out=f.npz batch_size=0", "batch_size= must be a whole number of 1 or more"),
        ("run=run images=photos out=f.npz on_error=maybe", "on_error= must be fail or skip"),
        ("run=run images=photos out=f.npz query=nowhere.png", "the image nowhere.png cannot be read"),
        ("timm=resnet999 images=photos out=f.npz", "timm has no model 'resnet999'"),
        ("timm=resnet10t pretrained=false features=mu images=photos out=f.npz", "features h and map, not 'mu'"),
        ("--run=run", "there is no option --run="),
        ("--fast", "settings are written NAME=VALUE"),
        ("run", "run is not a setting"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(embed, trained, photos, words, said):
    ended = embed(*[word.replace("run=run", f"run={trained}") for word in words.split()])
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1
    assert not Path("f.npz").exists()


def test_nothing_is_replaced_unasked(embed, trained, photos):
    Path("f.npz").write_text("mine")
    ended = embed(f"run={trained}", "images=photos", "out=f.npz")
    assert ended.code == 2 and "f.npz is there already" in ended.err and Path("f.npz").read_text() == "mine"
    assert embed(f"run={trained}", "images=photos", "out=f.npz", "overwrite=true", "workers=0").code == 0
