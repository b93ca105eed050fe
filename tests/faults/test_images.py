"""Images that are damaged or vanish while a run trains on them, and a W&B that cannot be reached."""

import random
import shutil
from pathlib import Path

import faults
import pytest
import torch
from disturbed import TINY, weights
from PIL import Image

from aavae.datasets.store import Store
from aavae.datasets.streaming import StreamedSplit
from aavae.errors import UserError
from aavae.training.trainer import Trainer

pytestmark = pytest.mark.faults
STREAMED = [word for word in TINY if not word.startswith("dataset.size")]
STREAMED += ["dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "dataset.in_memory=false"]
DAMAGES = {
    "vanished": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "foreign": lambda path: path.write_text("a,b\n1,2\n"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def photos(folder: Path, n: int = 20) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(image.numpy()).save(folder / name / f"{i}.png")
    return folder


def spoiling(monkeypatch, damage, at: int, images: list[str]) -> None:
    """Images are damaged after step `at`."""
    step = Trainer.train_step

    def spoils(self, *args, **kwargs):
        terms = step(self, *args, **kwargs)
        if self.step == at:
            for name in images:
                damage(Path("photos") / name)
        return terms

    monkeypatch.setattr(Trainer, "train_step", spoils)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vanished"] if faults.SHORT else list(DAMAGES))
def test_an_image_lost_in_training_stops_the_run_in_a_sentence_until_it_is_back(
    train, tmp_path, monkeypatch, kind, injected
):
    photos(tmp_path / "photos")
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    words = [*STREAMED, "dataset.workers=1"]
    assert train(*words, "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        spoiling(patch, DAMAGES[kind], 6, [f"a/{i}.png" for i in range(20)])
        ended = train(*words)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert "put an undamaged copy there; the same command then continues" in ended.err and "a/" in ended.err
    shutil.rmtree(tmp_path / "photos")
    shutil.copytree(tmp_path / "copy", tmp_path / "photos")
    ended = train(*words)
    assert ended.code == 0 and "from step " in ended.out, ended.err
    mine, theirs = weights(Path("run")), weights(Path("whole"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    injected["fatal, and went on"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated"] if faults.SHORT else list(DAMAGES))
def test_an_image_lost_in_training_is_named_and_counted_where_it_may_be_skipped(
    train, tmp_path, monkeypatch, kind, injected
):
    photos(tmp_path / "photos")
    spoiling(monkeypatch, DAMAGES[kind], 2, lost := ["a/3.png", "b/0.png", "b/7.png"])
    ended = train(*STREAMED, f"dataset.workers={0 if faults.SHORT else 2}", "dataset.on_error=skip", "epochs=4")
    assert ended.code == 0, ended.err
    named = [line for line in ended.out.splitlines() if line.startswith("left out")]
    assert len(named) == len([name for name in lost if name in ended.out]) >= 1, ended.out
    assert f"({len(named)} image{'s' * (len(named) > 1)} so far)" in " ".join(named[-1].split()), named
    injected["named, counted, skipped"] += len(named)


def test_another_image_takes_the_place_of_one_that_is_lost(tmp_path, capsys, injected):
    store = Store(photos(tmp_path / "photos"), skip=True)
    split = StreamedSplit(store, store.names, None, 16, 16, 0)
    requests = [[(i, (), None, None) for i in range(8)]]
    [whole] = split.stream(requests)
    draw = random.Random(3)
    for kind, damage in DAMAGES.items():
        at = draw.randrange(7)
        path, before = tmp_path / "photos" / store.names[at], (tmp_path / "photos" / store.names[at]).read_bytes()
        damage(path)
        [found] = split.stream(requests)
        for mine, theirs in zip(found, whole, strict=True):
            assert torch.equal(mine[at], theirs[at + 1])
            assert torch.equal(mine[[i for i in range(8) if i != at]], theirs[[i for i in range(8) if i != at]])
        assert store.names[at] in capsys.readouterr().out or kind != "vanished"
        with pytest.raises(UserError, match="undamaged copy"):  # to measure, none other will do
            list(split.batches(8))
        if path.is_dir():
            path.rmdir()
        path.write_bytes(before)
        injected["named, counted, skipped"] += 1
    for name in store.names:
        (tmp_path / "photos" / name).unlink()
    with pytest.raises(UserError, match="undamaged copy"):
        list(split.stream(requests))
