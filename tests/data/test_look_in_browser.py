"""The page of `longshot data look` as a browser shows it: pictures load, nothing sticks out, light and dark can be read."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from films import Film, Take, written

from commands import done
from longshot.data.journal import read_rows

WIDTH = 1280
OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A page of a film with a scene, a title, a take that changes and a bad file; the scenes that are kept have captions."""
    folder = tmp_path_factory.mktemp("corpus")
    film = Film((192, 108)).cut(Take(1, 36)).cut(Take(1, 36, start=1.4, zoom=1.6)).cut(Take(7, 40))
    film.frames[72:] = [written(f, "NOT FOR RESALE OR RENTAL", 14) for f in film.frames[72:]]
    film.cut(Take(9, 240, pan=3.0))
    film.write(folder / "a long name of a film, with spaces & <signs>, that a person gave it once.mp4")
    (folder / "broken.mp4").write_bytes(b"not a film at all")
    config = folder / "corpus.yaml"
    config.write_text("films: [.]\nout: out\nlicence: CC BY 3.0\nsource: tests\n")
    done("data", "run", config, "--workers", 1)
    lines = []
    for scene in read_rows(folder / "out" / "filter" / "rows.jsonl"):
        kept = [shot for shot in scene["shots"] if shot["kept"]]
        shots = [
            {"shot": k, "prompt": f"Character 1 walks on, step {k}, and looks back at the hills. " * 3}
            for k in range(1, len(kept) + 1)
        ]
        told = {
            "characters": [{"id": 1, "description": "A woman in a long red coat with a lamp in her hand."}],
            "environment": "Hills at dusk.",
            "story": "She walks home.",
        }
        if kept and scene["kept"]:
            lines.append({"scene": scene["id"], "model": "by hand", **told, "shots": shots})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done("data", "captions", config, "--import", folder / "captions.jsonl")
    return Path(done("data", "look", config).out.strip())


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for path in map(shutil.which, names) if path and runs(path)), None)
    if chromium is None:
        pytest.skip("needs a Chromium that runs on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as start:  # a fresh folder for the user's data, and headless, by itself
        browser = start.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield browser
        browser.close()


def runs(chromium: str) -> bool:
    """Some distributions put a script in a browser's place that only says how to install it."""
    return subprocess.run([chromium, "--version"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def page(index, browser):
    """The page in a tab, and every address that failed to load and every line on its console."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 900})
    page.trouble = []
    page.on("requestfailed", lambda request: page.trouble.append(request.url))
    page.on("console", lambda message: page.trouble.append(message.text))
    page.goto(index.as_uri())
    yield page
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", WIDTH), ("dark", WIDTH), ("light", 390)])
def test_the_page_can_be_read(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    if folder := os.environ.get("LONGSHOT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{scheme}-{width}.png", full_page=True)
    assert not page.trouble
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_text("A woman in a long red coat").first.is_visible()
    assert page.get_by_text("broken.mp4").first.is_visible()
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    contrast = sum(_rgb(ground)) - sum(_rgb(ink))
    assert contrast > 450 if scheme == "light" else contrast < -450
    tile = page.locator(".tiles i").first
    tile.scroll_into_view_if_needed()
    assert _spread(tile.screenshot()) > 10, "the first picture shows nothing"


def test_boxes_hide_and_show_kinds_of_scenes_without_a_script(page):
    articles = page.locator("article.kept")
    assert articles.count() and articles.first.is_visible()
    page.locator("#kept").uncheck()
    assert not any(article.is_visible() for article in articles.all())
    page.locator("#kept").check()
    assert articles.first.is_visible()


def _rgb(text: str) -> list[float]:
    return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def _spread(png: bytes) -> float:
    from io import BytesIO

    from PIL import Image

    return float(np.asarray(Image.open(BytesIO(png)).convert("L")).std())
