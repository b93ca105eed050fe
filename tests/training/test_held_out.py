"""What is held out teaches nothing: runs whose validation or test images and labels are random noise."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aavae.datasets import Split
from aavae.datasets.synthetic import Synthetic
from aavae.weights import checkpoint

RUN = (
    "trainer=debug",
    "dataset.size=64",
    "batch_size=16",
    "epochs=1",
    "trainer.log_every=1",
    "features=[h]",
    "trainer.clean_pass=off",
)
RUN += ("probe=[knn,linear_cached,few_label,online,linear]", "probe.few_label.labels_per_class=[2]")
RUN += ("probe.linear.epochs=1", "probe.linear.batch_size=16", "probe.linear_cached.weight_decays=[0.01,1,100]")


@pytest.fixture
def run(train, monkeypatch):
    """A whole run, of which the split `noise` is random; gives what it has learned, logged, found and chosen."""
    read = Synthetic.read

    def trained(noise: str | None = None) -> dict[str, dict]:
        def with_noise(self, device: torch.device) -> dict[str, Split]:
            splits, generator = read(self, device), torch.Generator().manual_seed(5)
            if noise:
                shape = splits[noise].images.shape
                images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
                splits[noise] = Split(images, torch.randint(self.num_classes, shape[:1], generator=generator))
            return splits | {"pretrain_val": splits["val"]}

        monkeypatch.setattr(Synthetic, "read", with_noise)
        folder = Path(f"run_{noise}")
        ended = train(*RUN, f"hydra.run.dir={folder}")
        assert ended.code == 0, ended.err
        state, records = checkpoint.load(folder / "last.pt"), json.loads((folder / "results.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        score = json.loads((folder / "status.json").read_text())["score"]
        return {
            "model": state["model"],
            "encoder": load_file(folder / "encoder.safetensors"),
            "online": state["learners"]["online"]["head"],
            "metrics": {(r["step"], k): v for r in rows for k, v in r.items() if k != "images_per_second"},
            "records": {(r["probe"], r["split"], r["metric"]): r["value"] for r in records},
            "chosen": {r["probe"]: r["protocol"] for r in records if r["metric"] != "accuracy_drop_last"}
            | {"score": score, "last look's score": state["score"]},
        }

    return trained


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(one: dict, other: dict) -> set:
    assert one.keys() == other.keys()
    return {key for key in one if one[key] != other[key]}


@pytest.mark.slow
def test_training_and_score_know_no_test_images_and_validation_moves_only_what_selects_on_it(run):
    as_it_is, test, val = run(), run("test"), run("val")
    for other in (test, val):
        assert all(same(as_it_is[of], other[of]) for of in ("model", "encoder", "online"))
    records = as_it_is["records"].keys()

    assert moved(as_it_is["records"], test["records"]) == {r for r in records if r[1] == "test"}
    assert not moved(as_it_is["metrics"], test["metrics"]) and not moved(as_it_is["chosen"], test["chosen"])

    changed = moved(as_it_is["records"], val["records"])
    assert {r for r in records if r[1] == "val"} <= changed  # and where another weight decay is chosen:
    assert changed <= {r for r in records if r[1] == "val" or r[0] == "linear_cached"}
    assert moved(as_it_is["chosen"], val["chosen"]) == {"score", "last look's score", "linear_cached"}
    logged = {name for _, name in moved(as_it_is["metrics"], val["metrics"])}
    assert {"val/loss", "val/knn", "score"} <= logged and all(name.startswith(("val/", "score")) for name in logged)
