"""The page of a sweep: what is in it, that it is safe and asks for nothing, and that it works in a browser."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import a_run, a_sweep, record

from aavae.reports import report
from aavae.reports.charts import charts
from aavae.reports.jobs import logged
from aavae.reports.means import summarize
from aavae.reports.page import PAGE, page
from aavae.runs.provenance import PROVENANCE

EVIL = "<script>alert(1)</script>"
GIT = {"commit": "0123456789abcdef", "dirty": False}
SESSION = {"git": GIT, "device": "a CPU", "versions": {"torch": "2.15.0", "aavae": "0.1.0"}}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, and the text of script elements."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        self.tags.append(("", {}))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script":
            self.scripts.append((attributes, data))
        if tag in ("td", "th"):
            self.cells[-1] += data


def picture(path: Path, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (90, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def lived(folder: Path, *records: dict, picture_of=None, **config) -> Path:
    """A run that has logged, been judged, and left its provenance."""
    said = {"seconds": 3600.0, "flop": 2e15, "epoch": 3.0, "step": 30, "score": 0.5 + 0.1 * config.get("seed", 0)}
    folder = a_run(folder, *records, said=said | {"command": "aavae-train x=1"}, **config)
    lines = [{"step": 10 * e, "epoch": e, "val/knn": 0.1 * e, "val/loss": 9.0 - e} for e in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / PROVENANCE).write_text(json.dumps([SESSION]))
    if picture_of is not None:
        picture(folder / "reconstructions.png", picture_of)
    return folder


@pytest.fixture
def swept(tmp_path) -> Path:
    """Two keys, two seeds, and a job that failed with a script for its reason."""
    jobs = []
    for dim in (8, 16):
        for beta in (0.0, 0.1):
            for seed in (0, 1):
                value = 0.5 + dim / 100 + beta + seed / 50
                own = (record(value=value), record(value=0.3, feature="pixels"))
                n = len(jobs)
                lived(tmp_path / str(n), *own, picture_of=n, latent_dim=dim, loss__beta=beta, seed=seed)
                jobs.append(f"latent_dim={dim} loss.beta={beta} seed={seed}")
    failed = a_run(tmp_path / str(len(jobs)), state="failed", said={"reason": f"no {EVIL}"}, latent_dim=32)
    (failed / "log.txt").write_text(f"line one\n{EVIL}\n")
    a_sweep(tmp_path, *jobs, "latent_dim=32", launches=(("latent_dim=8,16", "loss.beta=0,0.1"),))
    return tmp_path


def rendered(folder: Path) -> Elements:
    return Elements(page(summarize(folder)))


# ---- What is in it ------------------------------------------------------------------------------------------------


def test_it_has_the_warnings_of_training(tmp_path):
    warning = f"warning: collapse at step 30 (epoch 3): μ has collapsed {EVIL}"
    a_run(tmp_path / "0", record(), said={"warnings": [warning]}, seed=0)
    a_run(tmp_path / "1", record(), said={"warnings": []}, seed=1)
    text = page(summarize(tmp_path))
    (part,) = re.findall(r'<section id="warnings">.*?</section>', text, re.DOTALL)
    assert part.count("<li>") == 1 and "<li>collapse at step 30 (epoch 3): μ has collapsed &lt;script" in part
    shutil.rmtree(tmp_path / "0")
    assert 'id="warnings"' not in page(summarize(tmp_path))


def test_it_says_what_was_swept_by_what_and_at_what_cost(swept):
    text = page(summarize(swept))
    for word in ("latent_dim: 8, 16", "0123456789", "a CPU", "torch 2.15.0", "16 PFLOP of training", "8 device-hours"):
        assert word in text, word
    assert "aavae-train -m latent_dim=8,16 loss.beta=0,0.1" in text


def test_its_table_has_the_means(swept):
    cells = rendered(swept).cells
    for dim in (8, 16):
        for beta in (0.0, 0.1):
            values = [100 * (0.5 + dim / 100 + beta + seed / 50) for seed in (0, 1)]
            assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in cells
    assert "raw pixels" in cells


def test_every_chart_is_one_to_plotly(swept):
    plotly = pytest.importorskip("plotly.graph_objects")
    summary = summarize(swept)
    found = charts(summary, {i: logged(job.folder) for i, job in enumerate(summary.jobs)})
    expected = {"effect of latent_dim", "effect of beta", "latent_dim × beta", "all settings at once"}
    assert expected | {"accuracy against compute", "validation loss, while training"} <= set(found)
    for title, chart in found.items():
        figure = plotly.Figure(chart)  # which refuses what it does not know
        assert figure.data, title
        assert figure.layout.height and (figure.layout.yaxis.visible is False or figure.layout.yaxis.title.text), title
    (heat,) = found["latent_dim × beta"]["data"]
    assert heat["z"][0][0] == pytest.approx(100 * (0.5 + 0.08 + 0.01))
    dots = [t for t in found["effect of latent_dim"]["data"] if t["marker"]["symbol"] == "circle-open"]
    assert sorted(y for t in dots for y in t["y"]) == pytest.approx(
        sorted(100 * (0.5 + d / 100 + b + s / 50) for d in (8, 16) for b in (0, 0.1) for s in (0, 1))
    )


def test_curves_are_drawn_against_compute_and_hours_too(swept):
    summary = summarize(swept)
    chart = charts(summary, {0: logged(summary.jobs[0].folder)})["validation loss, while training"]
    x = {b["label"]: b["args"][0]["x"][0] for b in chart["layout"]["updatemenus"][0]["buttons"]}
    assert x["epochs"] == [1, 2, 3] and x["PFLOP of training"] == pytest.approx([2 / 3, 4 / 3, 2], rel=1e-4)
    assert x["device-hours"] == pytest.approx([1 / 3, 2 / 3, 1], rel=1e-4)


def test_one_run_and_no_accuracy_have_pages_too(tmp_path):
    lived(tmp_path / "a" / "0", picture_of=0)
    assert "Compare two runs" not in page(summarize(tmp_path / "a"))
    a_run(tmp_path / "b" / "0", state="running", said={"step": 1})
    a_run(tmp_path / "b" / "1", state="failed", said={"reason": "why"}, seed=1)
    text = page(summarize(tmp_path / "b"))
    assert "why" in text and "It has no log." in text


# ---- Safe ---------------------------------------------------------------------------------------------------------


def test_its_policy_allows_its_own_scripts_and_no_request(swept):
    elements = rendered(swept)
    (policy,) = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"] and rules["img-src"] == "data:"
    run = [text for attributes, text in elements.scripts if attributes.get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests] and len(digests) == 2
    places = [a[k] for _, a in elements.tags for k in ("src", "href") if k in a]
    assert places and all(place.startswith("data:") for place in places)


def test_names_are_text(swept):
    lived(swept / "10", record(), picture_of=1, method=EVIL)
    a_sweep(swept, "latent_dim=8", "latent_dim=16", f"latent_dim=8 method={EVIL}")
    (swept / "10").rename(swept / "2x")
    shutil.rmtree(swept / "2")
    (swept / "2x").rename(swept / "2")
    text = page(summarize(swept))
    assert EVIL not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert re.search(r'"method": "\\u003cscript>', text)  # in what two runs are compared by
    for _, data in (pair for pair in Elements(text).scripts if pair[0].get("type") == "application/json"):
        json.loads(data)


@pytest.mark.slow
def test_a_page_of_a_hundred_runs_is_below_six_megabytes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    for n in range(100):
        folder = lived(tmp_path / str(n), record(value=n / 100), latent_dim=n // 2, seed=n % 2)
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        lines = [json.dumps(line | {"step": s, "epoch": s / 10, "val/loss": s / 3}) for s in range(2000)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        if n % 2 == 0:
            Image.fromarray(pixels[:, : 100 + n]).save(folder / "reconstructions.png")
    text = page(summarize(tmp_path))
    assert len(text.encode()) < 6e6
    assert "more pictures are in the run folders" in text


def test_a_picture_that_is_damaged_is_named_and_hides_nothing(swept, capsys):
    (swept / "0" / "reconstructions.png").write_bytes(b"no picture")
    text = page(summarize(swept))
    assert "0/reconstructions.png cannot be read" in text and text.count("data:image/webp") == 3
    assert report(swept) == 1  # for the job that failed


def test_a_report_writes_it(swept, capsys):
    assert report(swept) == 1  # a job has failed
    assert (swept / PAGE).read_text().startswith("<!DOCTYPE html>")
    tex = (swept / "sweep.tex").read_text()
    assert (
        r"\toprule" in tex
        and r"$\pm$" in tex
        and tex.count(r"\begin{tabular}") == 1
        and "_" not in tex.replace(r"\_", "")
    )


# ---- In a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; on Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, path: Path, **options):
    """A tab with the page, what its console has said, and what it has asked for."""
    tab = browser.new_page(**options)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.absolute().as_uri())
    return tab, said, asked


def shown(tab) -> list[list[str]]:
    """The rows of the table that are to be seen, without baselines."""
    rows = tab.locator("#means tbody:first-of-type tr:visible")
    return [rows.nth(i).locator("td").all_inner_texts() for i in range(rows.count())]


def test_it_sorts_filters_compares_and_asks_for_nothing(swept, chromium, capsys):
    report(swept)
    tab, said, asked = opened(chromium, swept / PAGE, viewport={"width": 1280, "height": 900})
    tab.wait_for_selector(".plot .main-svg")
    assert tab.locator(".plot .main-svg").count() >= tab.locator(".plot").count() >= 6
    column = tab.locator("#means th").all_inner_texts().index("kNN")
    tab.locator("#means th button").nth(column).click()
    rising = [row[column] for row in shown(tab) if row[column][0].isdigit()]
    tab.locator("#means th button").nth(column).click()
    falling = [row[column] for row in shown(tab) if row[column][0].isdigit()]
    values = [float(cell.split(" ")[0]) for cell in rising]
    assert values == sorted(values) and len(values) == 4 and falling == rising[::-1]
    tab.fill("#filter", "16 0.1")
    assert len(shown(tab)) == 1 and "1 of" in tab.inner_text("#shown")
    tab.fill("#filter", "")
    tab.select_option("#one", "0")
    tab.select_option("#two", "7")
    rows = tab.locator("#differences tbody tr")
    assert {tuple(rows.nth(i).locator("td").all_inner_texts()) for i in range(rows.count())} == {
        ("latent_dim", "8", "16"),
        ("loss.beta", "0", "0.1"),
        ("seed", "0", "1"),
    }
    tab.locator(".updatemenu-button").nth(1).click()
    tab.wait_for_timeout(200)
    assert said == [] and [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert [url for url in asked if url.startswith("file:")] == [(swept / PAGE).absolute().as_uri()]
    tab.locator("#failures summary").first.click()
    assert tab.locator("body").inner_text().count(EVIL) == 2  # the reason, and the log


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out(swept, chromium, width, capsys):
    report(swept)
    tab, said, _ = opened(chromium, swept / PAGE, viewport={"width": width, "height": 800})
    tab.wait_for_selector(".plot .main-svg")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width and said == []


@pytest.mark.slow
def test_without_scripts_there_is_the_table(swept, chromium, capsys):
    report(swept)
    tab, said, _ = opened(chromium, swept / PAGE, java_script_enabled=False)
    assert len(shown(tab)) >= 4 and "Charts need JavaScript" in tab.locator("body").inner_text() and said == []
