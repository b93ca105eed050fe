"""Hooks of MkDocs: which files of the checkout become pages, and an API reference with a page per package.

The site has the layout of the checkout. So a link such as `../experiments/LOG.md` works on GitHub and on the site, and
no file is copied or rewritten.
"""

import json
import re
from ast import get_docstring, parse
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/LOG.md")
REFERENCE = "docs/reference"
ENTRIES = ("train", "evaluate", "convert", "report", "manage", "embed", "command")  # typed, not called
NEEDED = (
    ("aavae.load_encoder", "aavae.weights.load.load_encoder", "a trained encoder, which embeds your images"),
    ("aavae.load_model", "aavae.weights.load.load_model", "a trained model with its decoder or its heads"),
    ("aavae.build", "aavae.build", "a config → dataset, augmentation, model, loss, trainer"),
    ("aavae.models.Model", "aavae.models.Model", "the base class of a method of your own"),
    ("aavae.datasets.Dataset", "aavae.datasets.Dataset", "the base class of a dataset of your own"),
)


def on_config(config):
    """The pages of results beside those of the paper, and the reference as the last tab."""
    shown = next(tab["Results"] for tab in config.nav if "Results" in tab)
    kept: dict[str, list[str]] = {}
    for path in results():
        if path.suffix == ".md":
            kept.setdefault(path.parent.name, []).append(path.relative_to(ROOT).as_posix())
    shown[1:1] = [{f"Measured: {folder}": pages} for folder, pages in kept.items()]
    first, *others = sorted(reference(), key=lambda path: not path.endswith("/index.md"))
    config.nav.append({"Reference": [first, *({Path(path).stem: path} for path in others)]})
    return config


def on_files(files: Files, config) -> Files:
    """The documents, README as the start page, results with their figures, the notebooks, and the reference."""

    def at(path: str) -> File:
        return File(path, str(ROOT), config.site_dir, config.use_directory_urls)

    for file in [file for file in files if file.src_dir == config.docs_dir and file.inclusion.is_included()]:
        files.remove(file)
        files.append(at(f"docs/{file.src_uri}"))
    for path in PAGES:
        files.append(at(path))
    for path in results():
        files.append(at(path.relative_to(ROOT).as_posix()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(at(f"notebooks/{path.name}"))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook(path)))
    for path, text in reference().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r"(\]\([\w/.]+)\.ipynb\)", r"\1.md)", markdown)


def notebook(path: Path) -> str:
    """The cells of a notebook as Markdown, code without output, as they are in git."""
    blocks = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join([*blocks, f'<a href="{path.name}" download>Download this notebook</a>'])


def results() -> list[Path]:
    """The tables that are kept, and their figures."""
    return sorted(p for p in (ROOT / "experiments/results").glob("*/*.*") if p.suffix in (".md", ".png"))


def reference() -> dict[str, str]:
    """A page for each package of `aavae/` with its modules, and the page that lists these."""
    packages = [p.parent for p in sorted((ROOT / "aavae").rglob("__init__.py")) if p.parent.name != "conf"]
    pages, listed = {}, []
    for package in packages:
        name = ".".join(package.relative_to(ROOT).parts)
        modules = [p.stem for p in sorted(package.glob("[!_]*.py")) if not (name == "aavae" and p.stem in ENTRIES)]
        first = f"::: {name}\n    options:\n      heading_level: 1"
        pages[f"{REFERENCE}/{name}.md"] = "\n\n".join([first, *(f"::: {name}.{module}" for module in modules)])
        listed.append(f"| [`{name}`]({name}.md) | {summary(package / '__init__.py')} |")
    needed = [f"| [`{shown}`][{target}] | {what} |" for shown, target, what in NEEDED]
    lines = ["# Reference", "", "What most people need:", "", "| name | gives |", "|---|---|", *needed, ""]
    lines += ["Every package, from its docstrings:", "", "| package | holds |", "|---|---|", *listed]
    pages[f"{REFERENCE}/index.md"] = "\n".join(lines)
    return pages


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    return (get_docstring(parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
