"""Entry: a checkpoint, ours or the released code's → a checkpoint of ours, or an encoder file (`aavae-convert`)."""

import argparse
import difflib
import itertools
import sys
from pathlib import Path

from aavae import __version__
from aavae.errors import UserError
from aavae.runtime import exits
from aavae.runtime.words import wrapped

KINDS = {
    "checkpoint": (".pt", "a model to load and to evaluate, without what is needed to continue training"),
    "encoder": (".safetensors", "the encoder, with a model card in the metadata"),
    "timm": (".safetensors", 'the same, if it loads into timm.create_model("resnet50", num_classes=0), strictly'),
    "torchvision": (".safetensors", "the same, if it loads into torchvision's resnet50 with fc=Identity(), strictly"),
}
OPTIONS = {
    "to": f"{', '.join(KINDS)}; by default encoder for .safetensors, checkpoint for .pt",
    "dataset": "cifar10, stl10 or imagenet: for a file of the released code that does not say it",
    "stem": "cifar, stl or imagenet: for such a file too",
    "image_size": "in pixels: for such a file too",
    "trust": "a module or package of your own that the model may come from",
    "overwrite": "true: replace OUT",
}


def convert(
    source: Path,
    target: Path,
    to: str,
    trust: tuple[str, ...] = (),
    *,
    stem: str | None = None,
    image_size: int | None = None,
    dataset: str | None = None,
) -> str:
    """Write what lies at `source` (run folder, checkpoint, encoder file) to `target`; returns a description of it.

    `stem`, `image_size` and `dataset` are for what a file of the released code leaves open. Raises UserError where it
    cannot be read, or cannot be had as what `to` asks for; then nothing is written.
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
    text = model_card.card(facts)
    encoder_file.save(target, encoder, facts | {"format": "pt", "model_card": text})
    return text + (f"\n\nIt loads into {called}." if called else "")


def _say(note: str | None) -> None:
    if note:
        print(f"aavae-convert: {note}", file=sys.stderr)


def _arguments(argv: list[str]) -> dict:
    parser = argparse.ArgumentParser(
        prog="aavae-convert",
        usage="aavae-convert IN OUT [OPTION=VALUE ...]",
        description=wrapped(
            "Convert a run folder, checkpoint or encoder file, ours or the released code's (Lightning)."
        ),
        epilog=wrapped(
            "\n".join(
                [
                    "settings:",
                    *(f"  {name}=".ljust(14) + text for name, text in OPTIONS.items()),
                    "",
                    "what to= makes:",
                    *(f"  {name:<12}{end:<13}{text}" for name, (end, text) in KINDS.items()),
                ]
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aavae {__version__}")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        name, _, value = unknown[0].lstrip("-").partition("=")
        value = value or next((word for before, word in itertools.pairwise(argv) if before == unknown[0]), "VALUE")
        near = difflib.get_close_matches(name.replace("-", "_"), OPTIONS, 1)
        typed = f"this is typed {near[0]}={value}" if near else "settings are written NAME=VALUE, see --help"
        raise UserError(f"there is no option {unknown[0]}; {typed}")
    words = known.words
    options = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    if len(words) < 2 or len(options) != len(words) - 2 or any(w.split("=")[0] in OPTIONS for w in words[:2]):
        raise UserError("say what to convert and to what: aavae-convert IN OUT [OPTION=VALUE ...]; see --help")
    if unknown := [name for name in options if name not in OPTIONS]:
        near = difflib.get_close_matches(unknown[0], OPTIONS, 1)
        raise UserError(
            f"there is no option {unknown[0]}=" + (f"; did you mean {near[0]}=?" if near else "; see --help")
        )
    return options | {"source": Path(words[0]).expanduser(), "target": Path(words[1]).expanduser()}


def _checked(options: dict) -> dict:
    source, target = options["source"], options["target"]
    to = options.get("to") or ("encoder" if target.suffix == ".safetensors" else "checkpoint")
    if to not in KINDS:
        raise UserError(f"to= must be one of {', '.join(KINDS)}, not {to}")
    if target.suffix != KINDS[to][0]:
        raise UserError(f"{target} must end in {KINDS[to][0]} for to={to}")
    if not source.exists():
        raise UserError(f"there is no {source}")
    if (replaced := options.pop("overwrite", "false")) not in ("true", "false"):
        raise UserError(f"overwrite= must be true or false, not {replaced}")
    if target.resolve() in [(source / own).resolve() for own in ("", "last.pt", "previous.pt")]:
        raise UserError(f"{target} is the file to convert; name another file")
    if target.exists() and replaced == "false":
        raise UserError(f"{target} is there already; name another file, or say overwrite=true")
    if "image_size" in options:
        if not options["image_size"].isdecimal() or not int(options["image_size"]):
            raise UserError(f"image_size= must be a number of pixels, not {options['image_size']}")
        options["image_size"] = int(options["image_size"])
    trust = tuple(name for name in options.pop("trust", "").strip("[]").split(",") if name)
    return options | {"to": to, "trust": trust}


def main() -> None:
    """The command `aavae-convert`. Exit codes: 0 done, 2 bad input, 128 + n stopped by signal n."""

    def work() -> int:
        options = _checked(_arguments(sys.argv[1:]))
        print(convert(**options))
        print(f"written to {options['target']}")
        return 0

    sys.exit(exits.run("aavae-convert", work, interrupted="interrupted; nothing is written"))


if __name__ == "__main__":
    main()
