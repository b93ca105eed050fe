"""The site that `make docs` builds: complete, without dead links, and of use without a network."""

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed; `make docs` installs it")
ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.slow
# A name in angle brackets without backticks, such as <class>, would be read as a tag.
TAGS = """
    a article aside base blockquote body br button circle code dd details div dl dt em footer form h1 h2 h3 h4 h5 h6
    head header hr html img input label li link main meta nav ol p path pre script section small span strong style
    summary svg table tbody td th thead time title tr ul
"""


class Page(HTMLParser):
    """What the tests ask of a page: its tags, ids, links, what it loads, and the text of its paragraphs."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.ids, self.links, self.loaded = set(), set(), set(), set()
        self.paragraphs, self.inside = [], False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag == "link" or given.get("src"):
            self.loaded.add(given.get("src") or given["href"])
        if tag == "p":
            self.paragraphs.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "p"

    def handle_data(self, data):
        if self.inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_document_is_a_page(site, pages):
    documents = ("docs/*.md", "notebooks/*.ipynb", "experiments/results/*/*.md")
    names = {path.relative_to(ROOT).with_suffix(".html") for like in documents for path in ROOT.glob(like)}
    names |= {Path(name) for name in ("index.html", "CHANGELOG.html", "CONTRIBUTING.html", "experiments/LOG.html")}
    assert names <= {path.relative_to(site) for path in pages}


def test_every_link_leads_to_a_place(pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), (path, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), (path, link)
            assert not parts.fragment or unquote(parts.fragment) in pages[target].ids, (path, link)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert not {address for address in page.loaded if "//" in address}, path
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text()), path


def test_markdown_is_read_as_on_github(pages):
    for path, page in pages.items():
        assert page.tags <= set(TAGS.split()), path
        for text in page.paragraphs:
            # A list, a table or code that follows a paragraph without an empty line would become part of it.
            assert not re.search(r"\n\s*([-*] |\d\. |```|\|)", text), (path, text)


def test_the_reference_has_every_class_and_function(pages):
    ids = set().union(*(page.ids for page in pages.values()))
    for path in sorted((ROOT / "aavae").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name.count(".") == 1 and path.name != "__init__.py" and name not in ("aavae.build", "aavae.errors"):
            continue  # commands
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            assert not public or not ast.get_docstring(node) or f"{name}.{node.name}" in ids, f"{name}.{node.name}"


# ---- In a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("there is no Chromium here; `apt-get install chromium` brings it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, site):
    """A tab of a browser without a network, and what it has asked for or complained about."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab, seen = context.new_page(), []
    tab.on("request", lambda request: seen.append(request.url))
    tab.on("console", lambda message: seen.append(message.text))
    tab.on("pageerror", lambda error: seen.append(str(error)))
    yield tab
    context.close()
    assert [line for line in seen if not line.startswith(("file:", "data:"))] == []


def visible(tab, url: str) -> set[str]:
    """The pages of the site to which what is seen of this one leads."""
    tab.goto(url)
    links = tab.locator("a").evaluate_all("all => all.filter(a => a.checkVisibility()).map(a => a.href)")
    return {link.partition("#")[0] for link in links if link.startswith("file:")}


def test_every_page_is_two_clicks_away(tab, site, pages):
    first = visible(tab, (site / "index.html").as_uri())
    assert len(first) >= 7
    tabs = {url for url in first if url.endswith(".html")}
    reached = first.union(*(visible(tab, url) for url in sorted(tabs)))
    assert {path.as_uri() for path in pages} <= reached


def test_the_search_finds_without_a_server(tab, site):
    tab.goto((site / "docs/methods.html").as_uri())
    tab.fill("input.md-search__input", "load_encoder")
    tab.wait_for_selector(".md-search-result__link")
    assert "aavae.weights.load" in " ".join(
        tab.locator(".md-search-result__link").evaluate_all("all => all.map(a => a.href)")
    )
