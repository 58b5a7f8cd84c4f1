"""The benchmark's page in a browser: nothing is cut, and links lead somewhere. Needs Chromium."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scvi_qbm.benchmark.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROWS = Path(__file__).parents[2] / "docs" / "rows" / "priors"
MEASURE = """<script>window.addEventListener('load', () => {
document.querySelectorAll('details').forEach(d => d.open = true);
const boxes = [...document.querySelectorAll('.scroll')];
const wide = boxes.filter(e => e.scrollWidth > e.clientWidth + 1);
const lost = [...document.querySelectorAll('a[href^="#"]')].filter(
  a => !document.getElementById(decodeURIComponent(a.getAttribute('href').slice(1))));
const found = {page: document.documentElement.scrollWidth, window: window.innerWidth,
  wide: wide.map(e => e.textContent.slice(0, 60)), lost: lost.map(a => a.href)};
document.body.innerHTML = '';
document.body.textContent = 'FOUND' + JSON.stringify(found) + 'END';
})</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name in ("rows.jsonl", "config.json"):
        shutil.copy(ROWS / name, folder)
    write_report(folder)
    return (folder / "report.html").read_text() + MEASURE


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_is_cut(page, tmp_path, width):
    (tmp_path / "page.html").write_text(page)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
        "--dump-dom", f"file://{tmp_path / 'page.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(re.search("FOUND(.*)END", done.stdout)[1].replace("&gt;", ">"))
    assert found["page"] <= found["window"]
    assert found["lost"] == []
    if width == 1200:  # on a narrow screen tables scroll by themselves
        assert found["wide"] == []
