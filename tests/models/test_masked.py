"""Masked autoencoders: worked numbers, what hidden pixels may not say, and their runs."""

import copy
import json
from pathlib import Path

import forked
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae import build
from aavae.models.encoders.resnet import resnet
from aavae.models.encoders.vit import timm_arguments, vit
from aavae.models.mae import MAE
from aavae.models.masking import images, masked_error, patches
from aavae.models.spark import SparK, Visible, VisibleBatchNorm
from aavae.runtime.processes import Processes
from aavae.weights import checkpoint
from aavae.weights.load import load_trained

SMALL = {
    "mae": (
        "method=mae",
        "encoder=vit_tiny",
        "encoder.width=32",
        "encoder.depth=2",
        "model.decoder_dim=16",
        "model.decoder_depth=1",
        "model.decoder_heads=2",
    ),
    "spark": ("method=spark", "model.patch_size=4", "model.decoder_dim=32"),
}


def settings(method: str) -> list[str]:
    return ["trainer=debug", *SMALL[method]]


N, C, Y, X = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 3, 8, 8)), indexing="ij")
IMAGE = torch.sin(0.3 * N + 0.5 * C + 0.7 * Y + 0.2 * X * Y)
PREDICTED = 0.8 * torch.cos(0.1 + 0.2 * N + 0.4 * C + 0.3 * Y + 0.5 * X)
HIDDEN = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).bool()


# ---- The loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalised", "value"), [(True, 1.2692837559), (False, 0.7561886204)])
def test_the_loss_has_the_worked_values(normalised, value):
    loss = masked_error(patches(PREDICTED, 4), patches(IMAGE, 4), HIDDEN, normalised)
    assert loss.item() == pytest.approx(value, abs=1e-9)


def test_patches_are_those_of_unfold_and_come_back():
    unfolded = F.unfold(IMAGE, 4, stride=4).transpose(1, 2).unflatten(2, (3, 16)).transpose(2, 3).flatten(2)
    assert torch.equal(patches(IMAGE, 4), unfolded) and torch.equal(images(patches(IMAGE, 4), 4), IMAGE)


def test_gradients_are_those_of_finite_differences():
    given = patches(PREDICTED, 4)[:, :, :5].clone().requires_grad_()
    target = patches(IMAGE, 4)[:, :, :5]
    assert torch.autograd.gradcheck(lambda p: masked_error(p, target, HIDDEN, True), (given,))


def test_the_order_of_the_images_does_not_matter():
    given, target = patches(PREDICTED, 4), patches(IMAGE, 4)
    swapped = masked_error(given.flip(0), target.flip(0), HIDDEN.flip(0), True)
    assert swapped.item() == pytest.approx(masked_error(given, target, HIDDEN, True).item(), abs=1e-12)


def test_where_nothing_is_known_it_is_one():
    target = torch.randn(500, 16, 48, generator=torch.Generator().manual_seed(0))
    hidden = torch.ones(500, 16).bool()
    assert masked_error(torch.zeros_like(target), target, hidden, True).item() == pytest.approx(47 / 48, abs=1e-4)


# ---- What is seen -------------------------------------------------------------------------------------------------


def small_mae(pool: str = "token") -> MAE:
    torch.manual_seed(0)
    return MAE(vit(16, 4, 32, 2, 4, pool), decoder_dim=16, decoder_depth=1, decoder_heads=2)


def small_spark(patch_size: int | None = None, size: int = 32, stem: str = "cifar") -> SparK:
    torch.manual_seed(0)
    return SparK(resnet("basic", [1, 1, 1, 1], 8, stem), size, patch_size, decoder_dim=16)


def made(name: str):
    kinds = {"spark, 4": lambda: small_spark(4), "spark, half": lambda: small_spark(stem="half")}
    model = ({"mae": small_mae, "spark": small_spark} | kinds)[name]().double()
    size = 16 if name == "mae" else 32
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    noise = torch.randn(4, model.noise_dim, dtype=torch.float64)
    return model, x, noise.argsort(1)[:, : model.kept]


@pytest.mark.parametrize("name", ["mae", "spark", "spark, 4", "spark, half"])
def test_nothing_is_known_of_hidden_pixels(name):
    model, x, seen = made(name)
    x.requires_grad_()
    model.train()
    model.predict(x, seen)[0].sum().backward()
    told = patches(x.grad.abs(), model.patch_size).sum(-1) > 0  # (B, L)
    assert torch.equal(told, ~model._hidden(seen))


@pytest.mark.parametrize("name", ["mae", "spark"])
def test_the_patches_with_the_largest_noise_are_hidden_and_only_they_count(name):
    model, x, _ = made(name)
    noise = torch.randn(4, model.noise_dim, dtype=torch.float64)
    model.eval()
    loss = model.learn(x[None], x, noise)[1]["loss"]
    seen = noise.topk(model.kept, largest=False).indices
    hidden = torch.ones(4, model.noise_dim).bool().scatter(1, seen, False)
    target = patches(x, model.patch_size)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (model.predict(x, seen)[0] - target)[hidden].square().mean()
    assert loss.item() == pytest.approx(error.item(), abs=1e-10)


def test_numbers_of_patches_are_the_published_ones():
    assert small_mae().kept == 4  # ⌊16·0.25⌋
    assert [small_spark(p).kept for p in (None, 4)] == [6, 26]  # round(16·0.4), round(64·0.4)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_with_all_patches_seen_mae_s_encoder_is_timm_s(pool):
    model = small_mae(pool).eval()
    x = torch.randn(2, 3, 16, 16)
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model.visible(x, every), model.encoder.forward_features(x), atol=1e-5, rtol=1e-5)
    twin = timm.create_model("vit_small_patch16_224", num_classes=0, **timm_arguments(16, 4, 32, 2, 4, pool))
    twin.load_state_dict(model.encoder.state_dict())
    assert torch.equal(twin.eval()(x), model.encoder(x))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_small_patch16_224", {"reg_tokens": 4}),
        ("vit_small_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
        ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_small_patch16_224", {"qkv_bias": False}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_any_of_timm_s_vision_transformers_is_seen_as_timm_does(name, more):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}
    model = MAE(timm.create_model(name, **sizes, **more), decoder_dim=16, decoder_depth=1, decoder_heads=2).eval()
    x, every = torch.randn(2, 3, 16, 16), torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model.visible(x, every), model.encoder.forward_features(x), atol=1e-5, rtol=1e-5)
    model.learn(x[None], x, torch.randn(2, 16))[1]["loss"].backward()
    idle = [n for n, p in model.encoder.named_parameters() if p.requires_grad and p.grad is None and "fc_norm" not in n]
    assert not idle


def test_positions_are_sines_and_cosines_that_do_not_learn():
    model = small_mae()
    table = model.encoder.pos_embed[0]
    assert not model.encoder.pos_embed.requires_grad and not table[0].any()  # the class token's
    rates = 10000 ** (-torch.arange(8) / 8)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # row, column
    angles = (places[..., None] * rates).flatten(1)  # (16, 16)
    known = torch.cat([angles.sin(), angles.cos()], 1)  # the channels' order means nothing
    ours = {tuple(column) for column in table[1:].T.mul(1e5).round().int().tolist()}
    assert ours == {tuple(column) for column in known.T.mul(1e5).round().int().tolist()} and len(ours) > 20


def test_batchnorm_of_visible_positions_is_torch_s_on_them():
    torch.manual_seed(0)
    own, torchs, visible = nn.BatchNorm2d(5).double(), nn.BatchNorm1d(5).double(), Visible()
    nn.init.normal_(own.weight), nn.init.normal_(own.bias)
    torchs.load_state_dict(own.state_dict())
    visible.cells = (torch.rand(3, 1, 4, 4) < 0.4).double()
    x = torch.randn(3, 5, 8, 8, dtype=torch.float64, requires_grad=True)
    seen = visible.like(x).bool()[:, 0]  # (B, h, w)
    for _ in range(2):
        found, known = VisibleBatchNorm(own, visible)(x).permute(0, 2, 3, 1), torchs(x.permute(0, 2, 3, 1)[seen])
        torch.testing.assert_close(found[seen], known, atol=1e-12, rtol=1e-10)
        assert not found[~seen].any()
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, atol=1e-12, rtol=1e-10)
    ours, torchs_own = (torch.autograd.grad(y.pow(3).sum(), x, retain_graph=True)[0] for y in (found[seen], known))
    torch.testing.assert_close(ours, torchs_own, atol=1e-9, rtol=1e-9)


def test_a_coarse_position_is_visible_where_any_part_of_it_is():
    visible = Visible()
    visible.cells = torch.tensor([[[[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]]])
    assert visible.like(torch.empty(1, 7, 2, 2)).flatten().tolist() == [1, 0, 0, 1]
    fine = visible.like(torch.empty(1, 7, 8, 8))[0, 0]
    assert fine.sum() == 12 and fine[:2, :2].all() and fine[6:, 4:].all()


@pytest.mark.parametrize("training", [True, False])
def test_with_all_cells_seen_spark_s_encoder_is_the_encoder(training):
    model = small_spark().double().train(training)
    whole, x = copy.deepcopy(model.encoder), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    model.visible.cells = torch.ones(3, 1, 4, 4)
    for ours, known in zip(model._masked().maps(x), whole.maps(x), strict=True):
        torch.testing.assert_close(ours, known, atol=1e-10, rtol=1e-8)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], value, atol=1e-12, rtol=1e-10)


def test_spark_s_encoder_is_there_once_and_its_copies_are_their_own():
    model = small_spark()
    parts = (model.encoder, model.norms, model.projections, model.decoder, model.last)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (*parts, model.tokens)]
    assert sum(p.numel() for p in model.parameters()) == sum(sizes)
    twin = copy.deepcopy(model)
    twin.encoder.conv1.weight.data.zero_()
    assert not twin._masked().conv1.layer.weight.any() and model._masked().conv1.layer.weight.any()
    model.encoder = resnet("basic", [1, 1, 1, 1], 8)
    assert model._masked().conv1.layer is model.encoder.conv1


# ---- Runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SMALL)
def test_a_step_learns_in_half_precision_too(method):
    trainer = build.trainer(build.compose([*settings(method), "batch_size=64", "precision=bf16"]))
    trainer.model.train()
    before = copy.deepcopy(trainer.model.encoder.state_dict())
    terms = [trainer.train_step(next(trainer.loader.epoch(e)), measure=True) for e in range(3)]
    losses = [found["loss"] for found in terms]
    assert all(0 < found["spread"] < 1.1 for found in terms)
    assert all(loss.dtype is torch.float32 and 0.3 < loss < 4 for loss in losses)
    learned = [name for name, p in trainer.model.encoder.named_parameters() if p.requires_grad]
    assert [name for name in learned if torch.equal(trainer.model.encoder.state_dict()[name], before[name])] == []


@pytest.mark.parametrize("method", SMALL)
def test_a_picture_shows_what_is_seen_and_fills_the_gaps(method):
    trainer = build.trainer(build.compose(settings(method)))
    model, view = trainer.model.eval(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        rows, again = model.picture(view), model.picture(view)
    assert list(rows) == ["seen", "reconstruction"] and all(torch.equal(rows[k], again[k]) for k in rows)
    visible = patches(rows["seen"], model.patch_size).abs().sum(-1) > 0
    assert (visible.sum(1) == model.kept).all()
    kept = patches(rows["reconstruction"], model.patch_size)[visible]
    assert torch.equal(kept, patches(view, model.patch_size)[visible])


@pytest.mark.parametrize("method", ["spark", pytest.param("mae", marks=pytest.mark.slow)])
def test_a_stopped_run_ends_with_the_same_bits(train, method):
    small = (*settings(method), "probe=[]", "trainer.validate_every=0", "hydra.run.dir=run")
    assert train(*small, "trainer.max_steps=10").code == 0  # two in the second epoch
    assert train(*small, "trainer.max_steps=5", "hydra.run.dir=two").code == 0
    assert "from step 5" in train(*small, "trainer.max_steps=10", "hydra.run.dir=two").out
    whole, again = (checkpoint.load(Path(f) / "last.pt")["model"] for f in ("run", "two"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.slow
def test_images_that_a_vit_cannot_take_are_refused_in_a_sentence(train, evaluate):
    assert train(*settings("mae"), "epochs=1", "probe=[]", "hydra.run.dir=run").code == 0
    ended = evaluate("run=run", "dataset=synthetic", "dataset.image_size=32", "probe=knn")
    assert ended.code == 2 and "was trained on images of 16 pixels, and cannot take those of 32" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("method", SMALL)
def test_the_untrained_encoder_of_an_evaluation_is_that_of_training(train, method):
    small = (*settings(method), "epochs=1", "probe=[]")
    assert train(*small, "hydra.run.dir=run").code == 0
    trained, began = load_trained(Path("run")), build.model(build.compose([*small])).encoder.state_dict()
    untrained = trained.untrained().state_dict()
    assert all(torch.equal(untrained[name], weight) for name, weight in began.items())
    assert not all(torch.equal(trained.model.encoder.state_dict()[name], weight) for name, weight in began.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
def test_a_run_is_judged_and_converted(train, evaluate, convert, method):
    small = (*settings(method), "epochs=1", "probe=knn", "features=[h,h_untrained]", "hydra.run.dir=run")
    ended = train(*small)
    assert ended.code == 0 and f"method      {method}" in ended.out and "patches seen" in ended.out, ended.err
    assert list(Path("run").glob("*.png"))
    assert evaluate("run=run", "probe=[knn,linear_cached]", "features=[h]").code == 0
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == {"knn", "linear_cached"}
    assert convert("run", "encoder.safetensors").code == 0 and convert("run", "whole.pt").code == 0
    if method == "mae":
        ended = convert("run", "timm.safetensors", "to=timm")
        assert ended.code == 0 and "timm.create_model('vit_small_patch16_224'" in ended.out, ended.err


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("mae", "encoder=resnet_tiny", "add encoder=vit_small or vit_tiny"),
        ("mae", "encoder=timm encoder.name=resnet10t", "from a vision transformer with positions"),
        ("spark", "trainer.clean_pass=every_step", "would mix BatchNorm's statistics of whole images"),
        ("mae", "model.decoder_dim=15", "the first a multiple of 4 and of the last, not 15, 1, 2"),
        ("mae", "model.mask_ratio=1", "must leave some to see and some to hide"),
        ("mae", "encoder.patch_size=5", "encoder.patch_size=5 does not divide images of 16 pixels"),
        ("mae", "encoder.heads=5", "width a multiple of 4 and of heads"),
        ("mae", "encoder.pool=max", "encoder.pool must be token or avg"),
        ("spark", "encoder=timm encoder.name=resnet10t", "which only our ResNets give"),
        ("spark", "encoder=patches_tiny", "which only our ResNets give"),
        ("spark", "model.decoder_dim=20", "model.decoder_dim must be a multiple of 8"),
        ("spark", "model.patch_size=3", "cannot be divided into patches of 3"),
        ("spark", "model.patch_size=16", "must leave some to see and some to hide"),
        ("spark", "model.mask_ratio=0.01", "must leave some to see and some to hide"),
        ("spark", "dataset.image_size=20", "multiple of 8, not 20"),
    ],
)
def test_what_cannot_be_gets_one_sentence(train, method, words, said):
    shrunk = [w for w in settings(method) if "encoder=" not in words or not w.startswith("encoder")]
    ended = train(*shrunk, *words.split(), "hydra.run.dir=run", "probe=[]")
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1 and not Path("run").exists()


# ---- Two processes ------------------------------------------------------------------------------------------------


def _gradients(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        answers.put([[g.tolist() for g in gradients(name, both)] for name in ("mae", "spark")])


def gradients(name: str, processes: Processes) -> list[Tensor]:
    model, x, _ = made(name)
    noise = torch.randn(4, model.noise_dim, dtype=torch.float64)
    forked.backward(model, processes, x[None], x, noise)
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one():
    for found in forked.pair(_gradients):
        for name, several in zip(("mae", "spark"), found, strict=True):
            for ours, known in zip(several, gradients(name, Processes()), strict=True):
                torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), known, atol=1e-10, rtol=1e-8)
