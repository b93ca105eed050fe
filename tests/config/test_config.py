"""Every YAML of every group composes and builds, and says what it is."""

from pathlib import Path

import pytest
import torch

import aavae.conf
from aavae import build
from aavae.errors import UserError
from aavae.training import optimizers, schedules

CONF = Path(aavae.conf.__file__).parent
# Neither hydra/ nor wandb/, which are not chosen from by name.
OPTIONS = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.glob("[!hw]*/*.yaml"))
# What a group's option cannot do without.
NEEDS = {
    "dataset/image_folder": ["dataset.path=.", "dataset.image_size=64"],
    "dataset/imagenet": ["dataset.path=."],
    "encoder/timm": ["encoder.name=resnet10t"],
    "decoder/none": ["model=simclr"],
    "loss/none": ["model=simclr"],
    "model/cpc": ["encoder=patches18"],
    "model/mae": ["encoder=vit_small"],
}


@pytest.fixture
def few_images(tmp_path, monkeypatch):
    """A folder with one image, which is all that constructing a dataset looks at."""
    from PIL import Image

    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat" / "0.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.relative_to(CONF).as_posix())
def test_every_file_opens_with_what_it_is(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ") and lines[0].endswith("."), lines[0]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option, few_images):
    group, _, name = option.partition("/")
    choice = f"{group}=[{name}]" if group in ("probe", "logger") else f"{group}={name}"
    networks = ("dataset", "encoder", "decoder", "method", "model", "experiment", "sweep")  # which tell of networks
    tiny = [] if group in networks else ["encoder=resnet_tiny", "decoder=resnet_tiny"]
    tiny = [o for o in tiny if not (o.startswith("decoder=") and "model=simclr" in NEEDS.get(option, []))]
    cfg = build.compose([choice, *tiny, *NEEDS.get(option, [])])
    with torch.device("meta"):
        data = build.dataset(cfg)
        model = build.model(cfg, data)
    build.augmentation(cfg, data)
    settings = {k: cfg.optimizer[k] for k in ("name", "lr", "weight_decay", "exclude_bias_and_norm", "kwargs")}
    assert optimizers.optimizer(model, **settings).param_groups
    assert schedules.schedule(cfg.schedule.shape, cfg.schedule.warmup_epochs, 10, 20)(0) == 0
    assert not hasattr(model, "variational") or model.variational == build.loss(cfg).variational
    assert build.probes(cfg) and build.loggers(cfg)


@pytest.mark.parametrize(
    ("group", "names"),
    {
        "encoder": "resnet18 resnet34 resnet50 resnet50w2 resnet50w4 resnet_tiny resnet_cpu timm",
        "decoder": "resnet18 resnet34 resnet50 resnet50w2 resnet50w4 resnet_tiny shuffle",
        "dataset": "cifar10 stl10 imagenet image_folder digits synthetic",
        "augmentation": "simclr digits none",
        "method": "ae vae aaae aaae_denoise aavae aavae_mean",
        "optimizer": "adam adamw sgd lamb lars",
        "schedule": "constant cosine linear",
        "trainer": "default reference debug",
        "logger": "none wandb tensorboard",
        "experiment": "cifar10 stl10 digits cifar10_cpu",
    }.items(),
)
def test_the_promised_options_are_there(group, names):
    assert set(names.split()) <= {p.stem for p in (CONF / group).glob("*.yaml")}


def test_the_methods_are_what_the_paper_and_the_released_code_say():
    def method(name):
        cfg = build.compose([f"method={name}"])
        augments = build.augmentation(cfg).augments
        return augments, build.loss(cfg), cfg.loss.get("sample")

    augments, loss, sample = method("aavae")
    assert augments and (loss.beta, loss.target, sample) == (0, "original", "reparam")
    augments, loss, sample = method("aavae_mean")
    assert augments and (loss.beta, loss.target, sample) == (0, "original", "mean")
    augments, loss, sample = method("vae")
    assert not augments and (loss.beta, loss.target, sample) == (1, "original", "reparam")
    augments, loss, _ = method("ae")
    assert not augments and not loss.variational and loss.target == "original" and loss.reduction == "mean"
    augments, loss, _ = method("aaae")
    assert augments and not loss.variational and loss.target == "view"
    augments, loss, _ = method("aaae_denoise")
    assert augments and not loss.variational and loss.target == "original"


def test_the_default_is_the_papers_cifar_run():
    cfg = build.compose()
    assert (cfg.epochs, cfg.batch_size, cfg.latent_dim) == (3200, 256, 128)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.weight_decay) == ("adam", 2.5e-4, 0)
    assert (cfg.schedule.shape, cfg.schedule.warmup_epochs, cfg.trainer.clean_pass) == ("constant", 10, "every_step")
    assert list(cfg.trainer.checkpoint_epochs) == [400, 800, 1600, 3200]
    augmentation = build.augmentation(cfg)
    assert (augmentation.strength, augmentation.blur_p) == (0.5, 0)
    with torch.device("meta"):
        assert sum(p.numel() for p in build.model(cfg).parameters()) == 41_516_292


def test_stl_is_the_papers_stl_run():
    cfg = build.compose(["experiment=stl10"])
    assert (cfg.epochs, cfg.batch_size, cfg.optimizer.lr, build.dataset(cfg).reference_batch) == (3200, 512, 5e-4, 512)
    augmentation = build.augmentation(cfg)
    assert (augmentation.strength, augmentation.blur_p) == (1, 0.5)
    with torch.device("meta"):
        assert sum(p.numel() for p in build.model(cfg).parameters()) == 41_523_972


def test_digits_bring_their_own_augmentation_but_a_method_without_one_wins():
    assert build.compose(["dataset=digits"]).augmentation._target_.endswith("DigitViews")
    assert build.compose(["experiment=digits", "method=vae"]).augmentation._target_.endswith("NoAugmentation")
    typed = build.compose(["experiment=digits", "method=vae", "augmentation=simclr"])
    assert typed.augmentation._target_.endswith("SimCLRViews")


def test_keys_of_one_group_are_the_same_so_that_groups_can_be_swept():
    for group in ("encoder/resnet*", "decoder/resnet*", "optimizer/*", "schedule/*"):
        keys = {
            frozenset(build.compose([f"{p.parent.name}={p.stem}"])[p.parent.name]) for p in CONF.glob(f"{group}.yaml")
        }
        assert len(keys) == 1, group


def test_an_encoder_is_one_file_and_one_yaml(tmp_path, monkeypatch):
    (tmp_path / "my_encoder.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Sequential):\n"
        "    def __init__(self, image_size, width):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3 * image_size**2, width), nn.BatchNorm1d(width))\n"
        "        self.output_dim = width\n"
    )
    (tmp_path / "conf" / "encoder").mkdir(parents=True)
    (tmp_path / "conf" / "encoder" / "flat.yaml").write_text(
        "# Mine.\n_target_: my_encoder.Flat\nimage_size: auto\nwidth: 20\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = build.compose(["trainer=debug", "encoder=flat", "encoder.width=24"], config_dir=str(tmp_path / "conf"))
    model = build.model(cfg)
    assert model(torch.zeros(2, 3, 16, 16), torch.zeros(2, 8)).h.shape == (2, 24)
    with pytest.raises(UserError, match="no option 'flat'"):
        build.compose(["encoder=flat"])


PUBLISHED = {  # optimizer, its rate, decay, batch, epochs, views (objectives.md, and for mae and spark their sources)
    "simclr": ("lars", 0.4, 1e-4, 256, 1000, "SimCLRViews"),
    "byol": ("lars", 1.0, 1e-5, 256, 1000, "SimCLRViews"),
    "simsiam": ("sgd", 0.5, 1e-5, 256, 1000, "SimCLRViews"),
    "barlow": ("lars", 0.3, 1e-4, 256, 1000, "SimCLRViews"),
    "vicreg": ("lars", 0.3, 1e-4, 256, 1000, "SimCLRViews"),
    "moco": ("sgd", 0.3, 1e-4, 256, 1000, "SimCLRViews"),
    "dino": ("lars", 0.3, 1e-6, 256, 1000, "SimCLRViews"),
    "swav": ("lars", 0.6, 1e-6, 256, 1000, "SimCLRViews"),
    "lejepa": ("lars", 0.3, 1e-4, 256, 300, "SimCLRViews"),
    "amdim": ("adam", 2e-4, 1e-5, 200, 300, "AMDIMViews"),
    "cpc": ("adam", 4e-5, 1e-5, 64, 1000, "AMDIMViews"),
    "mae": ("adamw", 2e-4, 0.05, 256, 1000, "ResizedCrops"),
    "spark": ("lamb", 2e-4, 0.04, 256, 1600, "ResizedCrops"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_are_the_published_recipes(name):
    cfg = build.compose([f"experiment=published/{name}"])
    with torch.device("meta"):
        data = build.dataset(cfg)
        model = build.model(cfg, data)
    o, views = cfg.optimizer, type(build.augmentation(cfg, data)).__name__
    assert (o.name, o.lr, o.weight_decay, cfg.batch_size, cfg.epochs, views) == PUBLISHED[name]
    assert type(model).__name__.lower().startswith(name) and cfg.dataset._target_.endswith("CIFAR10")


def test_every_published_preset_is_checked():
    assert set(PUBLISHED) == {path.stem for path in (CONF / "experiment/published").glob("*.yaml")}


def test_a_sweep_may_set_what_only_the_swept_models_have():
    """Hydra composes a config without what is swept, where the key is not known."""
    assert build.for_hydra(["method=amdim,yadim", "model.output_dim=16", "seed=1"]) == [
        "method=amdim,yadim", "++model.output_dim=16", "seed=1",
    ]  # fmt: skip
    assert build.for_hydra(["method=amdim", "model.output_dim=16"]) == ["method=amdim", "model.output_dim=16"]
    assert build.for_hydra(["loss.beta=0,1", "latent_dim=8"]) == ["loss.beta=0,1", "latent_dim=8"]
