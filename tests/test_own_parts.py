"""Datasets, encoders, losses and probes of somebody's own that return what nothing can be done with: what is said."""

import json
import sys
from pathlib import Path

import pytest

import aavae
from aavae.errors import UserError

OWN = """
import numpy as np
import torch
from torch import nn

from aavae.datasets import Dataset, Split
from aavae.models import Model
from aavae.models.losses import NegativeELBO, ReconstructionLoss
from aavae.probes import Picture, record


class Dots(Dataset):
    name, num_classes, image_size = "dots", 4, 16
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    size, classes = (16, 16), ()

    def images(self, n):
        return torch.randint(256, (n, 3, *self.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))

    def labels(self, n):
        return torch.arange(n) % 4

    def read(self, device):
        made = {name: Split(self.images(n), self.labels(n)) for name, n in (("train", 40), ("val", 12), ("test", 14))}
        return made | {"pretrain": made["train"], "pretrain_val": made["val"]}


def dataset(name, **changes):
    globals()[name] = type(name, (Dots,), {"__module__": __name__, **changes})


def without(split):
    return lambda self, device: {k: v for k, v in Dots().read(device).items() if k != split}


dataset("Floats", images=lambda self, n: torch.rand(n, 3, 16, 16))
dataset("Grey", images=lambda self, n: torch.zeros(n, 1, 16, 16, dtype=torch.uint8))
dataset("Arrays", images=lambda self, n: np.zeros((n, 3, 16, 16), np.uint8))
dataset("Wide", size=(16, 24))
dataset("Cropping", target=lambda self, images: images[..., 4:12, 4:12])
dataset("Darker", target=lambda self, images: images / 2)
dataset("FromOne", labels=lambda self, n: torch.arange(n) % 4 + 1)
dataset("Numbers", labels=lambda self, n: np.arange(n) % 4)
dataset("Halves", labels=lambda self, n: (torch.arange(n) % 4).float())
dataset("Fewer", labels=lambda self, n: torch.arange(n - 1) % 4)
dataset("NoLabels", labels=lambda self, n: None)
dataset("NoTest", read=without("test"))
dataset("NoVal", read=without("pretrain_val"))
dataset("Nothing", read=lambda self, device: None)
dataset("Bare", read=lambda self, device: {k: v.images for k, v in Dots().read(device).items()})
dataset("Flat", std=(0.0, 0.0, 0.0))
dataset("OneMean", mean=(0.5,))
dataset("Uncounted", num_classes=None)
dataset("Names", classes=("a", "b"))
dataset("NoSuper", __init__=lambda self: None)
dataset("Unlabelled", num_classes=0, read=lambda self, device: {
    k: Split(v.images) for k, v in Dots().read(device).items() if k.startswith("pretrain")
})


class Encoder(nn.Module):
    output_dim = 8

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(768, 8)

    def forward(self, x):
        return self.linear(x.flatten(1))


def encoder(name, forward=Encoder.forward, **changes):
    globals()[name] = type(name, (Encoder,), {"__module__": __name__, "forward": forward, **changes})


encoder("Maps", lambda self, x: self.linear(x.flatten(1))[:, :, None, None])
encoder("Pair", lambda self, x: (self.linear(x.flatten(1)),) * 2)
encoder("Double", lambda self, x: self.linear(x.flatten(1)).double())
encoder("Sometimes", lambda self, x: self.linear(x.flatten(1))[:, : 8 if self.training else 4])
encoder("Wider", output_dim=9)
encoder("Text", output_dim="8")
encoder("Counts", lambda self, x: self.linear(x.flatten(1)) * float(x.mean() > -9))  # needs numbers: not tried


class NoModule:
    output_dim = 8


class Breaks(Encoder):
    def __init__(self):
        raise KeyError("width")


class Vector(ReconstructionLoss):
    def __call__(self, output, x):
        return {"loss": (output.x_hat - x).square().mean((1, 2, 3))}


class Tensors(ReconstructionLoss):
    def __call__(self, output, x):
        return (output.x_hat - x).square().mean()


class Nameless(ReconstructionLoss):
    def __call__(self, output, x):
        return {"mse": (output.x_hat - x).square().mean()}


class Detached(ReconstructionLoss):
    def __call__(self, output, x):
        return {"loss": (output.x_hat - x).square().mean().detach()}


class Silent:
    def __call__(self, output, x):
        return {"loss": (output.x_hat - x).square().mean()}


class Halfway(Silent):
    variational = True


class Fine(Silent):
    variational = False


class Small(nn.Module):
    def __init__(self, latent_dim, hidden_dim):
        super().__init__()
        self.linear = nn.Linear(latent_dim, 3)

    def forward(self, z):
        return self.linear(z)[:, :, None, None]


class Loner(Model):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def learn(self, views, x, noise):
        return {"loss": self.encoder(x).mean()}


class Probe:
    returns = None

    def run(self, encode, dataset):
        return self.returns


def probe(name, returns):
    globals()[name] = type(name, (Probe,), {"__module__": __name__, "returns": returns})


kept = record("mine", "h", "val", 0.5, 3, "p")
probe("Lost", None)
probe("One", kept)
probe("Said", "fine")
probe("Other", [{"acc": 1}])
probe("NoPicture", [Picture("curve", "bytes")])
probe("Elsewhere", [Picture("../curve", b"\\x89PNG\\r\\n\\x1a\\n")])


class Yields(Probe):
    def run(self, encode, dataset):
        yield kept
        yield Picture("curve", b"\\x89PNG\\r\\n\\x1a\\n")


class NoRun:
    pass
"""
DEBUG = (
    "--config-dir", "conf", "trainer=debug", "trainer.max_steps=2", "decoder=resnet_tiny", "latent_dim=4",
    "batch_size=8", "probe=knn", "hydra.run.dir=run",
)  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the module `mine`, and a function that writes the YAML of one of its classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine.py").write_text(OWN)

    def chosen(group: str, target: str, *, more: str = "") -> str:
        folder = Path("conf") / group
        folder.mkdir(parents=True, exist_ok=True)
        text = f"_target_: {target}\n{more}"
        (folder / "own.yaml").write_text(f"own:\n  {text}" if group == "probe" else text)
        return f"{group}=own"

    yield chosen
    for name in ("mine", "broken", "needy", "leaving", "misspelt"):
        sys.modules.pop(name, None)


def assert_refused(ended, said: str) -> None:
    """One sentence, exit code 2, and nothing written."""
    assert (ended.code, ended.err.count("\n")) == (2, 1) and said in ended.err, ended.err
    assert not Path("run").exists()


IMAGES = "must be a Tensor of uint8 and shape (N, 3, 16, 16), because image_size is 16, not"
LABELS = "must be a Tensor of int64 and shape (40,), not"


@pytest.mark.parametrize(
    "kind, said",
    [
        ("Floats", f"Floats: the images of train {IMAGES} a Tensor of float32 and shape (40, 3, 16, 16); aavae.dat"),
        ("Grey", f"Grey: the images of train {IMAGES} a Tensor of uint8 and shape (40, 1, 16, 16)"),
        ("Arrays", f"Arrays: the images of train {IMAGES} a ndarray of uint8 and shape (40, 3, 16, 16)"),
        ("Wide", f"Wide: the images of train {IMAGES} a Tensor of uint8 and shape (40, 3, 16, 24)"),
        ("Cropping", "Cropping: the images of train must keep their shape in target, which makes a Tensor of float32"),
        ("FromOne", "FromOne: the labels of train must be from 0 to 3, because num_classes is 4, not from 1 to 4"),
        ("Numbers", f"Numbers: the labels of train {LABELS} a ndarray of int64"),
        ("Halves", f"Halves: the labels of train {LABELS} a Tensor of float32"),
        ("Fewer", f"Fewer: the labels of train {LABELS} a Tensor of int64 and"),
        ("NoLabels", f"NoLabels: the labels of train {LABELS} None; num_classes = 0 is for images without labels"),
        ("NoTest", "NoTest.read must return a split test, because num_classes is 4; it returned train, val, pretrain"),
        ("NoVal", "NoVal.read must return a split pretrain_val; it returned"),
        ("Nothing", "Nothing.read must return a dict of splits, not None"),
        ("Bare", "Bare.read must return a Split of images and labels as train, not a Tensor of uint8"),
        ("Flat", "Flat.std must be three numbers above 0, of the channels of images in [0, 1], not (0.0, 0.0, 0.0)"),
        ("OneMean", "OneMean.mean must be three numbers, of the channels of images in [0, 1], not (0.5,)"),
        ("Uncounted", "Uncounted.num_classes must be a whole number of 0 or more, not None"),
        ("Names", "Names has 2 names in classes, and num_classes is 4"),
        ("NoSuper", "NoSuper.__init__ must call super().__init__()"),
    ],
)
@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_what_a_dataset_must_not_return_is_said_before_anything_is_trained(own, train, kind, said, dry_run):
    ended = train(*DEBUG, "encoder=resnet_tiny", own("dataset", f"mine.{kind}"), f"dry_run={dry_run}")
    assert_refused(ended, said)


@pytest.mark.parametrize("kind", ["Dots", "Darker", "Unlabelled"])
def test_datasets_that_keep_the_rules_are_trained_on(own, train, kind):
    ended = train(*DEBUG, "encoder=resnet_tiny", own("dataset", f"mine.{kind}"))
    assert ended.code == 0, ended.err


def test_another_dataset_is_judged_only_if_it_keeps_the_rules(own, train, evaluate):
    chosen = own("dataset", "mine.Floats")
    assert train(*DEBUG, "encoder=resnet_tiny", "dataset=synthetic").code == 0
    before = Path("run/results.json").read_bytes()
    ended = evaluate("--config-dir", "conf", "run=run", "probe=knn", chosen)
    assert ended.code == 2 and "Floats: the images of train must be a Tensor of uint8" in ended.err
    assert Path("run/results.json").read_bytes() == before


MAKES = "must make float32 features of shape (B, 8) of B images, because its output_dim is 8; in {} mode it makes"


@pytest.mark.parametrize(
    "kind, said",
    [
        ("Maps", f"the encoder Maps {MAKES.format('eval')} a Tensor of float32 and shape (4, 8, 1, 1)"),
        ("Pair", f"the encoder Pair {MAKES.format('eval')} a tuple"),
        ("Double", f"the encoder Double {MAKES.format('eval')} a Tensor of float64 and shape (4, 8)"),
        ("Sometimes", f"the encoder Sometimes {MAKES.format('eval')} a Tensor of float32 and shape (4, 4)"),
        ("Wider", "the encoder Wider must make float32 features of shape (B, 9) of B images"),
        ("Text", "the encoder Text must have output_dim, the number of its features, as a whole number, not '8'"),
        ("NoModule", "the encoder NoModule must be a torch.nn.Module"),
        ("Breaks", "mine.Breaks cannot be built: KeyError: 'width' (mine.py, line "),
    ],
)
def test_what_an_encoder_must_not_return_is_said_before_anything_is_trained(own, train, kind, said):
    ended = train(*DEBUG, "dataset=synthetic", own("encoder", f"mine.{kind}"))
    assert_refused(ended, said)


@pytest.mark.parametrize("kind", ["Encoder", "Counts"])
def test_encoders_that_keep_the_rules_are_trained_even_if_they_look_at_numbers(own, train, kind):
    ended = train(*DEBUG, "dataset=synthetic", own("encoder", f"mine.{kind}"))
    assert ended.code == 0, ended.err


def test_a_model_of_torchvision_is_refused_in_words(own, train):
    ended = train(*DEBUG, "dataset=synthetic", own("encoder", "torchvision.models.resnet18"))
    assert ended.code == 2 and "the encoder ResNet must have output_dim" in ended.err
    assert "encoder=timm builds the models of timm" in ended.err


def test_a_sweep_finds_an_encoder_that_cannot_work_before_its_first_job(own, train):
    own("encoder", "mine.Maps")
    words = (word for word in DEBUG if "hydra.run" not in word)
    ended = train("-m", *words, "dataset=synthetic", "encoder=resnet_tiny,own", "hydra.sweep.dir=sweep")
    assert ended.code == 2 and "encoder=own: the encoder Maps must make float32 features" in ended.err
    assert not Path("sweep").exists()


@pytest.mark.parametrize(
    "kind, said",
    [
        ("Vector", "the loss Vector must return scalar tensors, such as means over the batch; its loss is a Tensor"),
        ("Tensors", "the loss Tensors must return a dict of scalars, loss among them, not a Tensor of float32"),
        ("Nameless", "the loss Nameless must return a dict of scalars, loss among them, not one of mse"),
        ("Detached", "the loss Detached returns a loss without a gradient"),
        ("Silent", "mine.Silent must say whether z is drawn: variational = True or False"),
        ("Halfway", "the loss Halfway is variational, and so it needs a method log_px_given_z(output, x)"),
    ],
)
def test_what_a_loss_must_not_return_is_said_before_anything_is_trained(own, train, kind, said):
    ended = train(*DEBUG, "dataset=synthetic", "encoder=resnet_tiny", own("loss", f"mine.{kind}"))
    assert_refused(ended, said)


def test_a_loss_needs_no_class_of_aavae(own, train):
    ended = train(*DEBUG, "dataset=synthetic", "encoder=resnet_tiny", own("loss", "mine.Fine"))
    assert ended.code == 0, ended.err


def test_what_a_decoder_and_a_model_must_not_return_is_said(own, train):
    words = [word for word in DEBUG if "decoder" not in word]
    ended = train(*words, "dataset=synthetic", "encoder=resnet_tiny", own("decoder", "mine.Small"))
    assert ended.code == 2 and "the decoder Small must make images of shape (B, 3, 16, 16) of latents" in ended.err
    model = own("model", "mine.Loner", more="takes: []\n")
    ended = train(*words, "dataset=synthetic", "encoder=resnet_tiny", model)
    assert ended.code == 2 and "Loner.learn must return its output and a dict of scalars, not a dict" in ended.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "kind, said",
    [
        ("Lost", "probe own must return a list of records and pictures from run, not None"),
        ("One", "probe own must return a list of records and pictures from run, not a dict"),
        ("Said", "probe own must return a list of records and pictures from run, not a str"),
        ("Other", "probe own must return records as aavae.probes.record makes them, and pictures, not {'acc': 1}"),
        ("NoPicture", "probe own must return a Picture of a file's name and the bytes of a PNG"),
        ("Elsewhere", "probe own must return a Picture of a file's name and the bytes of a PNG"),
    ],
)
def test_what_a_probe_must_not_return_is_said_and_the_others_are_kept(own, train, kind, said):
    own("probe", f"mine.{kind}")
    words = (word for word in DEBUG if "probe=" not in word)
    ended = train(*words, "dataset=synthetic", "encoder=resnet_tiny", "probe=[knn,own]")
    assert (ended.code, ended.err.count("\n")) == (2, 1) and said in ended.err, ended.err
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == {"knn"}
    assert not Path("curve.png").exists()


def test_a_probe_may_yield_its_records_and_pictures(own, train):
    ended = train(
        *DEBUG[:-2], "hydra.run.dir=run", "dataset=synthetic", "encoder=resnet_tiny", own("probe", "mine.Yields")
    )
    assert ended.code == 0, ended.err
    assert "mine" in {r["probe"] for r in json.loads(Path("run/results.json").read_text())}
    assert Path("run/curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_probe_without_run_is_refused_before_anything_is_trained(own, train):
    ended = train(
        *DEBUG[:-2], "hydra.run.dir=run", "dataset=synthetic", "encoder=resnet_tiny", own("probe", "mine.NoRun")
    )
    assert ended.code == 2 and "mine.NoRun is no probe: it must have a method run(encode, dataset)" in ended.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "target, source, said",
    [
        ("broken.A", "raise RuntimeError('no licence')\n", "RuntimeError: no licence (broken.py, line 1)"),
        ("needy.A", "\nimport not_here_at_all\n", "No module named 'not_here_at_all' (needy.py, line 2)"),
        ("leaving.A", "import sys\nsys.exit(3)\n", "SystemExit: 3 (leaving.py, line 2)"),
        ("misspelt.A", "class A(:\n", "SyntaxError: invalid syntax (misspelt.py, line 1)"),
        ("mine.Encoderr", "", "there is no mine.Encoderr (module 'mine' has no attribute 'Encoderr')"),
        ("nowhere_.A", "", "there is no nowhere_.A (No module named 'nowhere_'); PYTHONPATH=. finds modules"),
        ("mine", "", "_target_: mine names no class in a module; write it as MODULE.CLASS"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_says_where_and_why(own, train, target, source, said):
    if source:
        Path(target.split(".")[0]).with_suffix(".py").write_text(source)
    ended = train(*DEBUG, "dataset=synthetic", own("encoder", target))
    said = f"{target.split('.')[0]} cannot be imported: {said}" if source else said
    assert_refused(ended, said)


@pytest.mark.parametrize("group, base", [("schedule", "constant"), ("optimizer", "adam")])
def test_groups_that_take_no_class_of_ones_own_say_so(own, train, group, base):
    ended = train(*DEBUG, "dataset=synthetic", own(group, "torch.optim.RMSprop", more=f"defaults: [{base}]\n"))
    assert ended.code == 2 and f"{group} chooses among what aavae has, and takes no class of your own" in ended.err


def test_trust_may_be_one_name(own, train):
    assert train(*DEBUG, "dataset=synthetic", own("encoder", "mine.Encoder")).code == 0
    for load in (aavae.load_encoder, aavae.load_model):
        with pytest.raises(UserError, match=r"trust=\[mine\], and in Python trust=\['mine'\]"):
            load("run")
        assert load("run", trust="mine") is not None
    assert aavae.load_encoder("run", trust=["mine"]).output_dim == 8
