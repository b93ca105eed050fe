"""Entry: images → features in a file, and pictures of neighbours (`aavae-embed`)."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aavae import __version__
from aavae.errors import UserError
from aavae.runtime import exits
from aavae.runtime.typed import Typed

OPTIONS = {
    "run": "run folder, checkpoint or encoder file, ours or the released code's",
    "timm": "instead of run: a model of timm's, such as resnet50.a1_in1k",
    "pretrained": "of timm: true (default) downloads its weights, false takes random ones",
    "images": "folder or zip of images",
    "out": "file to write: .parquet, .npz or .safetensors; with query also .png",
    "features": "h (default), mu, z, map, layer1 to layer4",
    "query": "an image; its nearest neighbours are drawn into out, or beside it as .png",
    "neighbours": "how many; default 17",
    "batch_size": "default 256",
    "workers": "processes that read images; default 4",
    "device": "auto, cpu, cuda, cuda:N, mps",
    "on_error": "fail (default), or skip: leave out images that cannot be used",
    "image_size": "in pixels: for a file of the released code that does not say it",
    "stem": "for such a file too: cifar, stl or imagenet",
    "dataset": "for such a file too: cifar10, stl10 or imagenet",
    "trust": "a module or package of your own that the model may come from",
    "overwrite": "true: replace out",
}
ENDS = (".parquet", ".npz", ".safetensors")


TYPED = Typed(
    "aavae-embed",
    "aavae-embed run=PATH images=PATH out=FILE [NAME=VALUE ...]",
    "Write the features of images, with their file names and labels (the folder each lies in).",
    OPTIONS,
)


def _whole(given: dict[str, str], name: str, default: int, least: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}= must be a whole number of {least} or more, not {text}")
    return int(text)


def _one_of(given: dict[str, str], name: str, known: tuple[str, ...]) -> str:
    value = given.get(name, known[0])
    if value not in known:
        raise UserError(f"{name}= must be {' or '.join(known)}, not {value}")
    return value


def _outputs(given: dict[str, str]) -> tuple[Path | None, Path | None]:
    """The file of features and the picture that are asked for."""
    if "out" not in given:
        raise UserError("say where to write: out=features.parquet, .npz or .safetensors")
    out, query = Path(given["out"]).expanduser(), given.get("query")
    if out.suffix not in (*ENDS, *([".png"] if query else [])):
        also = "; with query= also .png" if not query else ", or .png"
        raise UserError(f"out= must end in {', '.join(ENDS)}{also}, not be {out.name}")
    table = None if out.suffix == ".png" else out
    picture = out.with_suffix(".png") if query else None
    for path in (table, picture):
        if path and path.exists() and _one_of(given, "overwrite", ("false", "true")) == "false":
            raise UserError(f"{path} is there already; name another file, or say overwrite=true")
        if path and not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent} for {path.name}")
    return table, picture


def _work() -> int:
    _, given = TYPED.read(sys.argv[1:])
    table, picture = _outputs(given)
    if ("run" in given) == ("timm" in given):
        raise UserError("say what makes the features: run=PATH, or timm=NAME (one of them)")
    if "images" not in given:
        raise UserError("say which images: images=FOLDER or images=FILE.zip")
    numbers = {
        "batch": _whole(given, "batch_size", 256, 1),
        "workers": _whole(given, "workers", 4, 0),
        "k": _whole(given, "neighbours", 17, 1),
    }
    skip = _one_of(given, "on_error", ("fail", "skip")) == "skip"
    where = Path(given["images"]).expanduser()
    if not where.exists():
        raise UserError(f"there is no {where}; images= names a folder or a zip")
    return _embed(given, where, table, picture, skip, **numbers)


def _embed(
    given: dict[str, str], where: Path, table: Path | None, picture: Path | None, skip: bool,
    batch: int, workers: int, k: int,
) -> int:  # fmt: skip
    from aavae.datasets.store import Store, reporter
    from aavae.embedding import neighbours, writers
    from aavae.runtime import threads
    from aavae.runtime.device import pick_device
    from aavae.weights.ready import Pictures, opened

    threads.settle()
    device = pick_device(given.get("device", "auto"))
    source = _source(given, device)
    store = Store(where, skip=True if skip else None)
    names = store.check(store.names) if skip else store.names
    advice = "repair or remove it, or leave such images out with on_error=skip"
    pictures, told = Pictures(store, names, source.transform, workers, advice), reporter()
    for note in store.notes:
        told.say(f"images      {note}")
    if not names:
        raise UserError(f"no image in {where} can be used")
    told.say(f"images      {len(names):,} in {where}")

    def rows() -> Iterator:
        done, total = 0, -(-len(names) // batch)
        for x in told.track(pictures.batches(batch), total, "embedding"):
            own = [store.prefix + name for name in names[done : done + len(x)]]
            done += len(x)
            yield own, [PurePosixPath(name).parent.name for name in own], source(x.to(device))

    passing: Iterator = rows()
    nearest = None
    if picture:
        asked = Path(given["query"]).expanduser()
        image = opened(asked)
        nearest = neighbours.Nearest(neighbours.vector(source, image, device), k)
        passing = iter(nearest.watch(passing))
    about = source.about | {"images": str(where), "aavae": __version__}
    if table:
        n, shape = writers.write(table, passing, about)
        told.say(f"written     {table}: {n:,} features of {'×'.join(map(str, shape))} numbers")
    else:
        for _ in passing:
            pass
    if picture and nearest:
        title = f"nearest by cosine of {source.about['features']}, {source.about['weights']}"
        neighbours.draw(picture, asked, image, nearest, store, title)
        told.say(f"written     {picture}")
    return 0


def _source(given: dict[str, str], device):
    from aavae.embedding import source

    features = given.get("features", "h")
    if "timm" in given:
        return source.of_timm(
            given["timm"], _one_of(given, "pretrained", ("true", "false")) == "true", features, device
        )
    path = Path(given["run"]).expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}; run= names a run folder, a checkpoint or an encoder file")
    said = {name: given.get(name) for name in ("stem", "dataset")}
    size = _whole(given, "image_size", 0, 1) if "image_size" in given else None
    trust = tuple(name for name in given.get("trust", "").strip("[]").split(",") if name)
    return source.of_weights(path, features, trust, device, image_size=size, **said)


def main() -> None:
    """The command `aavae-embed`. Exit codes: 0 done, 2 bad input, 128 + n stopped by signal n."""
    sys.exit(exits.run("aavae-embed", _work, interrupted="interrupted; nothing is written"))


if __name__ == "__main__":
    main()
