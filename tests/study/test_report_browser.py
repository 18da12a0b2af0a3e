"""The report in a browser without a window: nothing overlaps or is cut off, on a desk or a phone; in the dark; printed.

Skipped where there is no Chromium or Chrome. Every page is opened in a frame of the width that is asked for, all of
them at one start of the browser; a script of the test's own in each page measures it and tells the frame's parent.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.study.one_budget import STUDIES as ONE_BUDGET
from tests.study.reports import render_html
from tests.study.synthetic import STUDIES

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
PAGES = {**STUDIES, **{f"{name} (one budget)": make for name, make in ONE_BUDGET.items()}}

PROBE = r"""
const found = { errors: window.probeErrors, overlaps: [], outside: [], wide: [], readouts: [] };
const clip = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3.5;
for (const svg of document.querySelectorAll("svg.panel")) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
  texts.forEach(([words, box], i) => {
    const inside = box.left > frame.left - 2 && box.right < frame.right + 2 && box.bottom < frame.bottom + 2;
    if (!inside) found.outside.push(words);
    texts.slice(i + 1).forEach(([other, there]) => { if (clip(box, there)) found.overlaps.push([words, other]); });
  });
}
for (const e of document.querySelectorAll("h1, h2, p, li, dt, dd, figcaption, caption, pre")) {
  const box = e.getBoundingClientRect();
  if (box.width && (e.scrollWidth > e.clientWidth + 1 || box.right > innerWidth + 1) && !e.closest(".scroll")) {
    found.wide.push(e.textContent.slice(0, 60));
  }
}
if (document.documentElement.scrollWidth > innerWidth) found.wide.push("the page");
found.scrolled = [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth + 1).length;
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg.panel:not(.strip)"), hit = svg && svg.querySelector(".hit");
  if (!hit) continue;
  const at = hit.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: at.x + at.width / 2, clientY: at.y + 1 }));
  found.readouts.push(figure.querySelector(".readout").textContent);
}
found.fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
found.paper = getComputedStyle(document.body).backgroundColor;
found.ink = getComputedStyle(document.body).color;
parent.postMessage({ page: name, found }, "*");
"""


def browse(*options: str) -> str:
    """What the browser writes to standard output."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measure(folder: Path, pages: dict[str, str], width: int, *options: str) -> dict[str, Any]:
    """What the probe finds in every page, by its name, in frames of that many pixels."""
    frames = []
    for number, (name, text) in enumerate(pages.items()):
        watch = "<script>window.probeErrors = []; onerror = (words) => { probeErrors.push(words); };</script>"
        text = text.replace("<head>", f"<head>{watch}", 1).replace("</body>", f"<script>{PROBE}</script></body>")
        (folder / f"{number}.html").write_text(text, encoding="utf-8")
        style = f"border:0;width:{width}px;height:900px"
        frames.append(f'<iframe name="{html.escape(name)}" src="{number}.html" style="{style}"></iframe>')
    listen = (
        "<pre id=out></pre><script>const all = {}; onmessage = (event) => { all[event.data.page] = event.data.found; "
        "document.getElementById('out').textContent = JSON.stringify(all); };</script>"
    )
    parent = folder / "all.html"
    parent.write_text(f"<!DOCTYPE html><meta charset=utf-8>{listen}{''.join(frames)}", encoding="utf-8")
    out = browse("--virtual-time-budget=20000", "--window-size=1400,1000", "--dump-dom", *options, parent.as_uri())
    said = re.search(r'<pre id="out">(.*?)</pre>', out, re.S)
    assert said, out[:500]
    found: dict[str, Any] = json.loads(html.unescape(said.group(1)))
    assert found.keys() == pages.keys()
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overlaps_or_is_cut_off(tmp_path: Path, width: int) -> None:
    for name, page in measure(tmp_path, {name: render_html(make()) for name, make in PAGES.items()}, width).items():
        wrong = {key: page[key] for key in ("overlaps", "outside", "wide", "errors", "fetched") if page[key]}
        assert not wrong, name
        assert page["readouts"], name
        assert all(page["readouts"]), name


def test_on_a_desk_a_table_of_six_arms_is_seen_whole(tmp_path: Path) -> None:
    report = json.loads((ROOT / "results" / "demo-ablations" / "report.json").read_text(encoding="utf-8"))
    assert len(report["arms"]) == 6
    (page,) = measure(tmp_path, {"six": render_html(report)}, 1100).values()
    assert page["scrolled"] == 0


def test_the_probe_finds_what_is_wrong(tmp_path: Path) -> None:
    page = render_html(STUDIES["helps"]())
    page = page.replace('class="tick" x="', 'class="tick" x="20" data-was="').replace("<h1>", "<h1>" + "unbroken" * 40)
    (spoilt,) = measure(
        tmp_path, {"spoilt": page.replace("<head>", "<head><script>nothing.here</script>")}, (390,)
    ).values()
    assert spoilt["overlaps"]
    assert spoilt["wide"]
    assert spoilt["outside"]


def test_dark_is_dark_and_readable(tmp_path: Path) -> None:
    pages = {"helps": render_html(STUDIES["helps"]())}
    (page,) = measure(tmp_path, pages, 1280, "--blink-settings=preferredColorScheme=0").values()
    paper, ink = ([int(part) for part in re.findall(r"\d+", page[key])[:3]] for key in ("paper", "ink"))
    assert max(paper) < 40
    assert min(ink) > 200


def test_it_prints(tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(render_html(STUDIES["four-arms"]()), encoding="utf-8")
    browse("--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 3 <= pages <= 10
