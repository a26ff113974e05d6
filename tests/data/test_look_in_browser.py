"""The page of `longshot data look` as a browser shows it: pictures load, nothing sticks out, light and dark can be read."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from films import Film, Take, written

from commands import done
from longshot.data.journal import read_rows

WIDTH = 1280


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
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install 'longshot[browser]'"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", WIDTH), ("dark", WIDTH), ("light", 390)])
def test_the_page_can_be_read(index, browser, scheme, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    failed, said = [], []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(index.as_uri())
    page.screenshot(
        path=Path(os.environ.get("LONGSHOT_SCREENSHOTS", tmp_path)) / f"{scheme}-{width}.png", full_page=True
    )
    assert not failed and not said
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
    page.close()


@pytest.mark.slow
def test_boxes_hide_and_show_kinds_of_scenes_without_a_script(index, browser):
    page = browser.new_page()
    page.goto(index.as_uri())
    articles = page.locator("article.kept")
    assert articles.count() and articles.first.is_visible()
    page.locator("#kept").uncheck()
    assert not any(article.is_visible() for article in articles.all())
    page.locator("#kept").check()
    assert articles.first.is_visible()
    page.close()


def _rgb(text: str) -> list[float]:
    return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def _spread(png: bytes) -> float:
    from io import BytesIO

    from PIL import Image

    return float(np.asarray(Image.open(BytesIO(png)).convert("L")).std())
