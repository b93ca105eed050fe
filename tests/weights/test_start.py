"""Training from other weights than random ones: what is read, what is refused, and how such runs go on."""

import json
import shutil

import lightning_files
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder

from aavae import build
from aavae.errors import UserError
from aavae.models.encoders.timm_model import timm_model
from aavae.runs.identity import identity
from aavae.weights import checkpoint, encoder_file
from aavae.weights.load import load_encoder, load_trained

SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8")
RUN = ("trainer=debug", "probe=knn", "dataset.size=64", "features=[h,h_untrained]", "loss.sample=mean", "epochs=1")
RUN = (*RUN, "trainer.knn_images=16", "trainer.recalibration_images=16")
FACTS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def model(*overrides):
    without = any(o.startswith("method=") for o in overrides)  # those here have no decoder
    small = [o for o in SMALL if not (without and o.startswith("decoder"))]
    return build.model(build.compose([*small, *overrides]))


@pytest.fixture
def other(tmp_path):
    """A model that has seen images, in every kind of file that weights come in."""
    net = model("seed=9")
    net(3 + torch.randn(8, 3, 16, 16), torch.randn(8, 8))
    architecture, state, own = net.architecture, net.state_dict(), net.encoder.state_dict()
    facts = {"architecture": architecture["encoder"], "method": "vae", "dataset": "digits", "epochs": 3.0, **FACTS}
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run/last.pt", {"architecture": architecture, "model": state, "step": 1, **FACTS})
    shutil.copytree(tmp_path / "run", tmp_path / "finished")
    encoder_file.save(tmp_path / "finished/encoder.safetensors", net.encoder, facts)
    shutil.copy(tmp_path / "finished/encoder.safetensors", tmp_path / "encoder.safetensors")
    shutil.copy(tmp_path / "run/last.pt", tmp_path / "checkpoint.pt")
    lightning_files.write(tmp_path / "released.ckpt", state, finetuner=True)
    torch.save(own, tmp_path / "own.pth")
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "hub").mkdir()
    for name in ("own.safetensors", "hub/model.safetensors"):
        save_file(own, tmp_path / name)
    return tmp_path, own


def same(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(one[k], two[k]) for k in one)


# ---- What is read -------------------------------------------------------------------------------------------------

FILES = (
    "run",
    "finished",
    "hub",
    "encoder.safetensors",
    "own.safetensors",
    "checkpoint.pt",
    "released.ckpt",
    "own.pth",
)


@pytest.mark.parametrize("name", [*FILES, "whole.pth"])
def test_the_encoder_starts_from_the_file_and_the_rest_as_ever(name, other):
    folder, weights = other
    net, random = model(f"encoder.weights={folder / name}"), model()
    assert same(net.encoder.state_dict(), weights) and not same(random.encoder.state_dict(), weights)
    assert same(net.decoder.state_dict(), random.decoder.state_dict())
    assert net.architecture == random.architecture  # a file of it is loaded without
    assert str(folder / name) in net.start and checkpoint.checksum(weights) in net.start and random.start is None


def test_what_is_known_of_the_weights_is_said(other):
    folder, _ = other
    assert (
        f"{folder / 'finished'} (vae on digits, 3 epochs; checksum "
        in model(f"encoder.weights={folder / 'finished'}").start
    )


@pytest.mark.parametrize("method", ["byol", "moco", "dino"])
def test_teachers_are_the_student_at_first(method, other):
    folder, weights = other
    more = ["model.queue_size=32"] if method == "moco" else []
    net = model(f"method={method}", f"encoder.weights={folder / 'own.pth'}", *more)
    assert same(net.encoder.state_dict(), weights)
    assert same(net.teacher.network[0].state_dict(), weights)


def test_masked_autoencoders_keep_the_weights_that_they_would_draw_anew(other):
    folder, weights = other
    assert same(
        model("method=spark", "dataset.image_size=32", f"encoder.weights={folder / 'own.pth'}").encoder.state_dict(),
        weights,
    )
    vit = ("method=mae", "encoder=vit_tiny", "model.decoder_dim=16", "model.decoder_depth=1", "model.decoder_heads=2")
    drawn = model(*vit, "seed=5").encoder.state_dict()
    torch.save(drawn, folder / "vit.pth")
    assert same(model(*vit, f"encoder.weights={folder / 'vit.pth'}").encoder.state_dict(), drawn)


def test_an_encoder_of_one_s_own_starts_from_a_file_too_unless_it_has_such_an_argument(other, monkeypatch):
    folder, _ = other
    (folder / "my_encoders.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Sequential):\n"
        "    def __init__(self, pretrained=False):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, 4))\n"
        "        self.output_dim, self.pretrained = 4, pretrained\n"
        "class Named(Flat):\n"
        "    def __init__(self, weights):\n"
        "        super().__init__()\n"
        "        self.weights = weights\n"
    )
    (folder / "conf/encoder").mkdir(parents=True)
    (folder / "conf/encoder/flat.yaml").write_text("_target_: my_encoders.Flat\npretrained: true\n")
    (folder / "conf/encoder/named.yaml").write_text("_target_: my_encoders.Named\nweights: DEFAULT\n")
    monkeypatch.syspath_prepend(folder)

    def built(*overrides):
        return build.model(build.compose([*SMALL, *overrides], str(folder / "conf"))).encoder

    flat, named = built("encoder=flat"), built("encoder=named")
    assert flat.pretrained is True and named.weights == "DEFAULT"
    torch.save(named.state_dict(), folder / "flat.pth")
    again = built("encoder=flat", f"encoder.weights={folder / 'flat.pth'}", "seed=4")
    assert same(again.state_dict(), named.state_dict()) and not same(
        flat.state_dict(), built("encoder=flat", "seed=4").state_dict()
    )


# ---- What is refused ----------------------------------------------------------------------------------------------

BAD = (
    ("encoder.weights=nowhere", "there is no nowhere, which encoder.weights names"),
    ("encoder.weights=empty", "empty holds no weights: no encoder.safetensors, last.pt or model.safetensors"),
    ("encoder.weights=text.pth", "text.pth cannot be read"),
    ("encoder.weights=text.safetensors", "text.safetensors cannot be read"),
    ("encoder.weights=own.pth encoder.stem=stl", "conv1.weight is (16, 3, 3, 3), not (16, 3, 7, 7)"),
    ("encoder.weights=own.pth encoder=resnet18", "own.pth does not fit this model: missing layer1.1.conv1.weight"),
    ("encoder.weights=nan.pth", "nan.pth is malformed: tensors has numbers in conv1.weight that are not finite"),
    ("encoder.weights=7", "encoder.weights must be text or null, not 7"),
    ("encoder=timm encoder.pretrained=true encoder.weights=own.pth", "both say what to start from; leave one out"),
    ("encoder=timm +encoder.kwargs.pretrained=true", "encoder.pretrained=true starts from timm's weights"),
    ("encoder.pretrained=true", "there is no key 'encoder.pretrained' with what is chosen; encoder=timm has it"),
)


@pytest.mark.parametrize(("words", "reason"), BAD)
def test_what_cannot_be_started_from_is_refused_before_anything_is_written(words, reason, other, train):
    folder, weights = other
    (folder / "empty").mkdir()
    for name in ("text.pth", "text.safetensors"):
        (folder / name).write_text("no weights")
    torch.save(weights | {"conv1.weight": weights["conv1.weight"] / 0}, folder / "nan.pth")
    before = sorted(folder.rglob("*"))
    ended = train(*RUN, "hydra.run.dir=new", *words.split())
    assert ended.code == 2 and reason in ended.err and ended.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_sweep_is_refused_before_its_first_job(other, train, quick_jobs):
    folder, _ = other
    sweep = ("-m", *RUN, "sweep.name=s", "trainer.max_steps=1")
    ended = train(*sweep, "encoder.weights=own.pth,nowhere")
    assert ended.code == 2 and "1 of 2 jobs are impossible" in ended.err and "there is no nowhere" in ended.err
    assert not (folder / "multirun").exists()
    ended = train(*sweep, "encoder.weights=own.pth,null", "encoder.channels=8")
    assert ended.code == 2 and "encoder.weights=own.pth: encoder.weights=own.pth does not fit" in ended.err


# ---- Runs ---------------------------------------------------------------------------------------------------------


def test_existing_runs_keep_their_names_and_others_have_their_own():
    config = build.plain(build.compose(SMALL))
    old = config | {"encoder": {k: v for k, v in config["encoder"].items() if k != "weights"}}
    assert identity(old) == identity(config)
    assert identity(build.plain(build.compose([*SMALL, "encoder.weights=a"]))) != identity(config)


def test_the_untrained_encoder_is_at_random_weights(other):
    folder, weights = other
    overrides = (*SMALL, "batch_size=32", "probe=[]")
    random, loaded = (
        build.trainer(build.compose([*overrides, *more])) for more in ([], [f"encoder.weights={folder / 'run'}"])
    )
    assert same(loaded.model.encoder.state_dict(), weights)
    assert same(loaded.untrained_encoder.state_dict(), random.untrained_encoder.state_dict())


def test_what_has_a_checkpoint_may_have_lost_what_it_started_from(other):
    folder, _ = other
    cfg = build.compose([*SMALL, "encoder.weights=gone"])
    assert build.continues(cfg, folder / "run") and not build.continues(cfg, folder / "hub")
    assert not build.continues(build.compose([*SMALL, "resume=never"]), folder / "run")
    assert build.continues(build.compose([*SMALL, f"resume={folder / 'run'}"]), folder / "hub")
    build.model(cfg, fresh=False)
    with pytest.raises(UserError, match="there is no gone"):
        build.model(cfg)


def results(folder):
    return {(r["feature"], r["split"]): r["value"] for r in json.loads((folder / "results.json").read_text())}


@pytest.mark.slow
def test_a_run_goes_on_without_the_file_and_compares_with_random_weights(other, train, evaluate, convert, runs):
    folder, _ = other
    shutil.copytree(folder / "finished", folder / "teacher")
    start = (*RUN, "encoder.weights=teacher")
    assert train(*RUN, "hydra.run.dir=random").code == 0
    ended = train(*start, "hydra.run.dir=whole")
    assert ended.code == 0 and "start       teacher (vae on digits, 3 epochs" in ended.out and "h ‡" in ended.out
    assert "‡: training did not start from random weights." in ended.out and "untrained ‡" not in ended.out
    assert train(*start, "hydra.run.dir=parts", "trainer.max_steps=1").code == 0
    shutil.rmtree(folder / "teacher")
    ended = train(*start, "hydra.run.dir=parts")
    assert ended.code == 0 and "start       teacher (vae on digits" in ended.out
    one, two = (checkpoint.load(folder / run / "last.pt") for run in ("whole", "parts"))
    assert same(one["model"], two["model"]) and one["start"] == two["start"]
    assert train(*start, "hydra.run.dir=whole").code == 0  # finished: its results are shown
    assert train(*start, "hydra.run.dir=whole", "resume=never").code == 2

    found = {run: results(folder / run) for run in ("random", "whole", "parts")}
    floors = [{k: v for k, v in f.items() if k[0] == "h_untrained"} for f in found.values()]
    assert floors[0] == floors[1] == floors[2] != {}
    assert evaluate("run=whole", "probe=knn", "features=[h,h_untrained]").code == 0
    assert results(folder / "whole") == found["whole"]

    facts = load_trained(folder / "whole/encoder.safetensors").facts
    assert facts["start"] == load_trained(folder / "whole").start == one["start"]
    assert "- started from teacher (vae on digits" in convert("whole", "a.safetensors").out
    assert "- started from random weights" in convert("random", "b.safetensors").out
    assert "which started from teacher" in model("encoder.weights=whole").start
    listed = runs("ls", ".", "name=whole").out
    assert "aavae ‡" in listed and "did not start from random weights" in listed
    assert "whole" not in runs("ls", ".", "start=random", "sort=score").out
    assert "start       teacher, not random weights" in runs("show", "whole").out


# ---- timm ---------------------------------------------------------------------------------------------------------

TINY = {"img_size": 16, "depth": 1, "embed_dim": 24, "num_heads": 2}
TIMM = ("encoder=timm", "encoder.name=resnet10t", "encoder.pretrained=true")


@pytest.fixture
def hub(request, monkeypatch):
    """The weights that timm would download, of resnet10t or of a tiny transformer, and what was asked for."""
    torch.manual_seed(3)
    name, kwargs = getattr(request, "param", ("resnet10t", {}))
    content, sent = timm.create_model(name, **kwargs).state_dict(), []

    def download(*asked, **_):
        sent.append(asked)
        return dict(content)

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", download)
    return content, sent


def test_timm_s_weights_are_those_of_timm(hub):
    content, sent = hub
    net, random = model(*TIMM), model(*TIMM[:2])
    del content["fc.weight"], content["fc.bias"]
    assert same(net.encoder.state_dict(), content) and sent and "timm's pretrained resnet10t.c3_in1k" in net.start
    assert same(net.decoder.state_dict(), random.decoder.state_dict())
    assert model(*TIMM[:2], "encoder.name=resnet10t.c3_in1k").architecture["encoder"]["name"] == "resnet10t.c3_in1k"


def test_what_timm_would_leave_random_is_refused(hub):
    with pytest.raises(
        UserError, match=r"timm's weights of resnet10t have no layer1\.0\.se\.fc1\.weight.* leave out what"
    ):
        model(*TIMM, "+encoder.kwargs.block_args={attn_layer:se}")


def test_weights_that_are_not_there_are_a_sentence(monkeypatch):
    with pytest.raises(
        UserError, match=r"timm has no pretrained weights for resnet10t\.x; it has some for resnet10t\.c3"
    ):
        model(*TIMM, "encoder.name=resnet10t.x")

    def offline(*_, **__):
        raise OSError("We couldn't connect to the Hub. Check your connection.\nMore")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", offline)
    with pytest.raises(
        UserError, match=r"the weights of resnet10t cannot be had .*connect to the Hub.*; download them"
    ) as refused:
        model(*TIMM)
    assert "encoder.pretrained=false starts from random ones" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("hub", [("vit_tiny_patch16_224", TINY)], indirect=True, ids=["tiny"])
def test_a_finished_run_asks_timm_for_nothing(hub, tmp_path, train, evaluate):
    _, sent = hub
    sizes = [f"+encoder.kwargs.{key}={value}" for key, value in TINY.items()]
    run = (*RUN, *TIMM, "encoder.name=vit_tiny_patch16_224", *sizes, "hydra.run.dir=run", "trainer.max_steps=1")
    assert train(*run, "dry_run=true").code == 0 and not sent
    assert train(*run).code == 0 and sent
    sent.clear()
    assert train(*run).code == 0 and "h ‡" in evaluate("run=run", "probe=knn").out
    assert load_encoder(tmp_path / "run").output_dim == 24 and not sent


def test_a_name_with_a_tag_that_timm_has_not_is_refused():
    with pytest.raises(UserError, match="timm has no model 'resnet10'; it has resnet1"):
        timm_model("resnet10", 32)
