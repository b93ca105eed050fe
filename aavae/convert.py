"""Entry: a checkpoint, ours or the released code's → a checkpoint of ours, or an encoder file (`aavae-convert`)."""

import re
import sys
from pathlib import Path
from typing import Any

from aavae.errors import UserError
from aavae.runtime import exits
from aavae.runtime.typed import Typed

KINDS = {
    "checkpoint": (".pt", "a model to load and to evaluate, without what is needed to continue training"),
    "encoder": (".safetensors", "the encoder, with a model card in the metadata"),
    "timm": (".safetensors", 'the same, if it loads into timm.create_model("resnet50", num_classes=0), strictly'),
    "torchvision": (".safetensors", "the same, if it loads into torchvision's resnet50 with fc=Identity(), strictly"),
    "hub": ("", "a folder for the Hugging Face Hub: the encoder, for timm where timm has it, and a model card"),
}
OPTIONS = {
    "to": f"{', '.join(KINDS)}; by default encoder for .safetensors, checkpoint for .pt",
    "dataset": "cifar10, stl10 or imagenet: for a file of the released code that does not say it",
    "stem": "cifar, stl or imagenet: for such a file too",
    "image_size": "in pixels: for such a file too",
    "trust": "a module or package of your own that the model may come from",
    "license": "of the weights, for to=hub, as the Hub calls it: apache-2.0, mit, cc-by-nc-4.0",
    "overwrite": "true: replace OUT",
}
TYPED = Typed(
    "aavae-convert",
    "aavae-convert IN OUT [NAME=VALUE ...]",
    "Convert a run folder, checkpoint or encoder file, ours or the released code's (Lightning).",
    OPTIONS,
    places=2,
    more="\n".join(
        ["what to= makes:", *(f"  {name:<12}{end or 'a folder':<13}{text}" for name, (end, text) in KINDS.items())]
    ),
)
LICENSE = re.compile(r"[a-z][a-z0-9.-]*")  # a name of the Hub's


def convert(
    source: Path,
    target: Path,
    to: str,
    trust: tuple[str, ...] = (),
    *,
    stem: str | None = None,
    image_size: int | None = None,
    dataset: str | None = None,
    license: str | None = None,
) -> str:
    """Write what lies at `source` (run folder, checkpoint, encoder file) to `target`; returns a description of it.

    `license` is that of the weights, for the Hub. `stem`, `image_size` and `dataset` are for what a file of the
    released code leaves open. Raises UserError where it cannot be read, or cannot be had as what `to` asks for; then
    nothing is written.
    """
    from aavae.weights import checkpoint, encoder_file, libraries, model_card
    from aavae.weights.load import Said, agree, load_trained, portable

    said: Said = {"stem": stem, "image_size": image_size, "dataset": dataset}

    if to == "checkpoint":
        state, note = portable(source, trust, **said)
        _say(note)
        checkpoint.save(target, state)
        return f"{state['config']['method']} on {state['dataset']}, step {state['step']:,}"
    own = source / encoder_file.ENCODER
    trained = load_trained(own if own.exists() else source, trust, **said)
    _say(trained.note)
    encoder, facts = model_card.facts_of(trained)
    agree(source, facts, **said)
    called = libraries.check_fits(to, encoder, facts["architecture"]) if to in libraries.LIBRARIES else None
    facts["results"] = model_card.accuracies(source, facts.get("epochs", 0.0)) or facts.get("results", [])
    if to == "hub":
        from aavae.weights import hub

        return hub.write(target, encoder, facts, license)
    text = model_card.card(facts)
    encoder_file.save(target, encoder, facts | {"format": "pt", "model_card": text})
    return text + (f"\n\nIt loads into {called}." if called else "")


def _say(note: str | None) -> None:
    if note:
        print(f"aavae-convert: {note}", file=sys.stderr)


def _checked(source: Path, target: Path, settings: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = dict(settings)
    to = options.get("to") or ("encoder" if target.suffix == ".safetensors" else "checkpoint")
    if to not in KINDS:
        raise UserError(f"to= must be one of {', '.join(KINDS)}, not {to}")
    if KINDS[to][0] and target.suffix != KINDS[to][0]:
        raise UserError(f"{target} must end in {KINDS[to][0]} for to={to}")
    if not source.exists():
        raise UserError(f"there is no {source}")
    if (replaced := options.pop("overwrite", "false")) not in ("true", "false"):
        raise UserError(f"overwrite= must be true or false, not {replaced}")
    if target.resolve() in [(source / own).resolve() for own in ("", "last.pt", "previous.pt")]:
        raise UserError(f"{target} is the file to convert; name another file")
    if target.exists() and replaced == "false":
        kind = "file" if KINDS[to][0] else "folder"
        raise UserError(f"{target} is there already; name another {kind}, or say overwrite=true")
    if "license" in options and (to != "hub" or not LICENSE.fullmatch(options["license"])):
        raise UserError(f"license= is for to=hub, and a name such as apache-2.0, not {options['license']!r}")
    if "image_size" in options:
        if not options["image_size"].isdecimal() or not int(options["image_size"]):
            raise UserError(f"image_size= must be a number of pixels, not {options['image_size']}")
        options["image_size"] = int(options["image_size"])
    trust = tuple(name for name in options.pop("trust", "").strip("[]").split(",") if name)
    return options | {"source": source, "target": target, "to": to, "trust": trust}


def main() -> None:
    """The command `aavae-convert`. Exit codes: 0 done, 2 bad input, 128 + n stopped by signal n."""

    def work() -> int:
        (source, target), settings = TYPED.read(sys.argv[1:])
        print(convert(**_checked(source, target, settings)))
        print(f"written to {target}")
        return 0

    sys.exit(exits.run("aavae-convert", work, interrupted="interrupted; nothing is written"))


if __name__ == "__main__":
    main()
