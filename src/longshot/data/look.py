"""A static page of what the stages made. It needs no server and no script; its pictures are those of the run's folder."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from longshot.data.filters import FilterSettings, scores_of
from longshot.data.journal import read_rows
from longshot.data.records import Row, SceneRow, SceneShot
from longshot.data.runner import rows_of
from longshot.data.shots import STRIP_TILES
from longshot.errors import UserError
from longshot.files import write_text

if TYPE_CHECKING:
    from longshot.data.pipeline import Config

TILES = 4
"""Pictures shown of a shot."""
TILE_HEIGHT = 90
BINS = 24
LIMITS = {
    "black": "black",
    "frozen": "frozen",
    "still": "still",
    "shaky": "shaky",
    "text": "text",
    "seconds": "short_s",
    "aesthetic": "aesthetic",
}
"""Which setting limits which score."""
SCORE_WORDS = {
    "black": "share of black pictures",
    "frozen": "share of repeated frames",
    "still": "change from frame to frame",
    "shaky": "jerk of the camera, frame widths",
    "text": "share of the picture with writing",
    "sharp": "strength of edges",
    "seconds": "seconds",
    "aesthetic": "aesthetic score",
}


def write_pages(config: "Config", per_page: int = 60) -> Path:
    """Write OUT/look/index.html and further pages, `per_page` scenes each, and return the first one's path.

    Shows the latest that each scene has come to: filtered, or only grouped, with captions where there are any.
    UserError where no scenes have been made.
    """
    out = config.place.out
    stage = next((name for name in ("filter", "scenes") if rows_of(out / name).is_file()), None)
    if stage is None:
        raise UserError(f"{out}: holds no scenes yet; run `longshot data run {config.name}` first")
    captions = _captions(out)
    limits = config.settings.get("filter")
    sums = _Sums(limits if isinstance(limits, FilterSettings) else FilterSettings())
    folder = out / "look"
    page: list[str] = []
    written: list[Path] = []
    total = 0
    for row in read_rows(rows_of(out / stage)):
        scene = SceneRow.of(row, f"{stage}/rows.jsonl")
        sums.add(scene)
        page.append(_scene(scene, captions.get(scene.id), sums.limits))
        total += 1
        if len(page) == per_page:
            written.append(_hold(folder, len(written) + 1, page))
            page = []
    if page or not written:
        written.append(_hold(folder, len(written) + 1, page))
    failures = [
        f"{name}: {row['error']}"
        for name in ("probe", "shots", "scenes", "captions", "latents")
        for row in _failed(out, name)
    ]
    pages = len(written)
    for number, held in enumerate(written, start=1):
        body = held.read_text(encoding="utf-8")
        head = sums.html(total, captions, failures, out) if number == 1 else ""
        write_text(folder / _name(number), _page(config, head, body, number, pages))
        held.unlink()
    number = pages + 1
    while (folder / _name(number)).exists():  # of a run before that had more
        (folder / _name(number)).unlink()
        number += 1
    return folder / _name(1)


def _hold(folder: Path, number: int, scenes: Iterable[str]) -> Path:
    """Keep the scenes of a page until the number of pages is known: a corpus doesn't fit in memory."""
    path = folder / f"page-{number}.part"
    write_text(path, "\n".join(scenes))
    return path


def _name(number: int) -> str:
    return "index.html" if number == 1 else f"page-{number:03d}.html"


def _captions(out: Path) -> dict[str, Row]:
    if not rows_of(out / "captions").is_file():
        return {}
    return {row["id"]: row for row in read_rows(rows_of(out / "captions"))}


def _failed(out: Path, stage: str) -> list[Row]:
    path = out / stage / "failures.jsonl"
    return list(read_rows(path)) if path.is_file() else []


# ---------------------------------------------------------------- one scene


def _scene(scene: SceneRow, captioned: Row | None, limits: FilterSettings) -> str:
    caption = (captioned or {}).get("caption", {})
    prompts = iter(caption.get("prompts", ()))
    shots = [
        _shot(n, shot, next(prompts, "") if shot.kept and captioned else "", limits)
        for n, shot in enumerate(scene.shots, 1)
    ]
    first, last = scene.shots[0], scene.shots[-1]
    facts = [
        f"{_clock(first.start_s)} to {_clock(last.stop_s)}",
        f"{len(scene.shots)} {'parts of one take' if scene.kind == 'take' else 'shots' if len(scene.shots) > 1 else 'shot'}",
        f"{last.stop_s - first.start_s:.1f} s",
    ]
    if scene.similarity is not None:
        facts.append(f"similarity {scene.similarity:.2f}")
    if "duplicate" in scene.scores and scene.scores["duplicate"] > 0:
        facts.append(f"{scene.scores['duplicate']:.0%} seen before")
    if scene.film.licence:
        facts.append(scene.film.licence)
    badge = "".join(f"<b class=why>{escape(reason)}</b>" for reason in scene.reasons)
    twin = (
        f"<p class=note>shows what <a href='#{escape(scene.duplicate_of)}'>{escape(scene.duplicate_of)}</a> shows</p>"
        if scene.duplicate_of
        else ""
    )
    words = _caption(caption, (captioned or {}).get("caption_model", "")) if captioned else ""
    state = "kept" if scene.kept else "out"
    source = f"<span title='{escape(scene.film.sha256)}'>{escape(scene.film.path)}</span>"
    return (
        f"<article class='{state} {scene.kind}' id='{escape(scene.id)}'><header><h2>{source}</h2>{badge}"
        f"<p>{escape(' · '.join(facts))}</p></header>{twin}{words}<div class=strip>{''.join(shots)}</div></article>"
    )


def _shot(number: int, shot: SceneShot, prompt: str, limits: FilterSettings) -> str:
    tiles = "".join(_tile(shot, place) for place in _evenly(len(shot.samples), TILES))
    scores = shot.scores or scores_of(shot)
    rows = "".join(
        f"<tr class={'over' if _over(name, value, limits) else 'ok'}><td>{name}<td>{value:.4g}"
        for name, value in scores.items()
    )
    why = "".join(f"<b class=why>{escape(reason)}</b>" for reason in shot.reasons)
    cut = "cut" if shot.cut else "goes on"
    crop = f" · inside {shot.crop[2]}x{shot.crop[3]}" if shot.crop else ""
    return (
        f"<figure class='{'kept' if shot.kept else 'left'} {'' if shot.cut else 'joined'}'>"
        f"<div class=tiles>{tiles}</div><figcaption><span class=n>{number}</span> {cut} "
        f"({shot.begins}) · {shot.seconds:.2f} s · frames {shot.start_frame} to {shot.stop_frame - 1}{crop} {why}"
        f"{f'<p class=prompt>{escape(prompt)}</p>' if prompt else ''}"
        f"<details><summary>scores</summary><table>{rows}</table></details></figcaption></figure>"
    )


def _tile(shot: SceneShot, place: int) -> str:
    """Return one picture of a strip, shown as a background that is moved."""
    strip, column = divmod(shot.first_tile + place, STRIP_TILES)
    count = min(STRIP_TILES, shot.tiles - strip * STRIP_TILES)
    ratio = shot.width / shot.height
    width = round(TILE_HEIGHT * ratio)
    url = quote(f"../{shot.strips[strip]}")
    return (
        f"<i style=\"width:{width}px;background-image:url('{url}');background-size:{count * width}px {TILE_HEIGHT}px;"
        f'background-position:-{column * width}px 0" title="second {shot.samples[place].second:.2f}"></i>'
    )


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(n * (count - 1) / (most - 1)) for n in range(most)]


def _over(name: str, value: float, limits: FilterSettings) -> bool:
    limit = getattr(limits, LIMITS[name]) if name in LIMITS else None
    if limit is None:
        return False
    return value < limit if name in ("still", "seconds", "aesthetic") else value > limit


def _caption(caption: dict[str, Any], model: str) -> str:
    people = "".join(
        f"<p><b>Character {int(person['id'])}</b> {escape(str(person.get('description', '')))}</p>"
        for person in caption.get("characters", ())
    )
    tiers = "".join(
        f"<p><b>{name}</b> {escape(str(caption[name]))}</p>"
        for name in ("environment", "story")
        if caption.get(name)
    )
    by = f"<p class=note>caption: {escape(model)}</p>" if model else ""
    return f"<section class=caption>{people}{tiers}{by}</section>"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


# ---------------------------------------------------------------- the corpus


@dataclass
class _Sums:
    """Numbers of the whole corpus, for the histograms."""

    limits: FilterSettings
    scores: dict[str, list[float]] = field(default_factory=dict)
    shots: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    kept: int = 0
    kept_s: float = 0.0
    all_s: float = 0.0
    reasons: Counter = field(default_factory=Counter)
    reason_s: dict[str, float] = field(default_factory=dict)
    films: set[str] = field(default_factory=set)

    def add(self, scene: SceneRow) -> None:
        self.films.add(scene.film.path)
        self.shots.append(len(scene.shots))
        self.kept += scene.kept
        self.kept_s += scene.seconds if scene.kept else 0.0
        for shot in scene.shots:
            self.all_s += shot.seconds
            for name, value in (shot.scores or scores_of(shot)).items():
                self.scores.setdefault(name, []).append(value)
            for reason in shot.reasons or (scene.reasons if not scene.kept else ()):
                self.reasons[reason] += 1
                self.reason_s[reason] = self.reason_s.get(reason, 0.0) + shot.seconds

    def html(self, scenes: int, captions: dict[str, Row], failures: Sequence[str], out: Path) -> str:
        tiles = [
            ("films", f"{len(self.films)}"),
            ("scenes", f"{scenes}"),
            ("kept", f"{self.kept}"),
            ("captioned", f"{len(captions)}"),
            ("seconds kept", f"{self.kept_s:.0f} of {self.all_s:.0f}"),
            ("files set aside", f"{len(failures)}"),
        ]
        told = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in tiles)
        graphs = [_histogram("shots a scene", self.shots, None, whole=True)]
        for name, values in self.scores.items():
            limit = getattr(self.limits, LIMITS[name]) if name in LIMITS else None
            graphs.append(_histogram(SCORE_WORDS.get(name, name), values, limit))
        words = [
            sum(len(str(p).split()) for p in row["caption"].get("prompts", ())) for row in captions.values()
        ]
        if words:
            graphs.append(_histogram("words of a scene's prompts", words, None))
        reasons = "".join(
            f"<tr><td>{escape(name)}<td>{count} {'shot' if count == 1 else 'shots'}<td>{self.reason_s[name]:.1f} s"
            for name, count in self.reasons.most_common()
        )
        why = f"<h2>Left out</h2><table class=reasons>{reasons}</table>" if reasons else ""
        broken = "".join(f"<li>{escape(line)}" for line in failures[:200])
        aside = f"<h2>Set aside</h2><ul class=failures>{broken}</ul>" if broken else ""
        return f"<div class=sums>{told}</div><div class=graphs>{''.join(graphs)}</div>{why}{aside}"


def _histogram(name: str, values: Sequence[float], limit: float | None, whole: bool = False) -> str:
    """Return a histogram as SVG, with a line at the filter's limit where there is one in range."""
    if not values:
        return ""
    low, high = (0.0 if min(values) >= 0 else min(values)), max(values)
    if limit is not None and limit > 0:
        high = max(high, min(limit * 1.2, 10 * high) if high > 0 else limit * 1.2)
    high = high if high > low else low + 1
    bins = min(BINS, max(1, ceil(high))) if whole else BINS
    low, high = (0.5, bins + 0.5) if whole else (low, high)
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    tallest, width, height = max(counts), 240, 70
    step = width / bins
    bars = "".join(
        f"<rect x='{n * step + 0.5:.1f}' y='{height - count / tallest * height:.1f}' width='{step - 1:.1f}' "
        f"height='{count / tallest * height:.1f}'><title>{count}</title></rect>"
        for n, count in enumerate(counts)
    )
    line = ""
    if limit is not None and low <= limit <= high:
        x = (limit - low) / (high - low) * width
        line = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height}'/>"
    ends = (f"{1}", f"{bins}") if whole else (f"{low:.3g}", f"{high:.3g}")
    at = f"limit {limit:g}" if limit is not None else ""
    return (
        f"<figure class=graph><figcaption>{escape(name)} <small>{at}</small></figcaption>"
        f"<svg viewBox='0 0 {width} {height + 14}'>{bars}{line}"
        f"<text x='0' y='{height + 12}'>{ends[0]}</text>"
        f"<text x='{width}' y='{height + 12}' text-anchor='end'>{ends[1]}</text></svg></figure>"
    )


def _page(config: "Config", head: str, body: str, number: int, pages: int) -> str:
    style = (Path(__file__).parent / "look.css").read_text(encoding="utf-8")
    title = f"{Path(config.name).stem}: scenes" + (f", page {number} of {pages}" if pages > 1 else "")
    links = "".join(
        f"<a href='{_name(n)}'>{n}</a>" if n != number else f"<b>{n}</b>" for n in range(1, pages + 1)
    )
    nav = f"<nav>{links}</nav>" if pages > 1 else ""
    words = {"kept": "kept", "out": "left out", "cuts": "cut scenes", "take": "takes"}
    boxes = "".join(
        f"<label><input type=checkbox id={name} checked>{word}</label>" for name, word in words.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style><body>"
        f"<div class=top><div class=boxes>{boxes}</div>"
        f"<h1>{escape(title)}</h1>{head}{nav}</div><main>{body}{nav}</main></body></html>\n"
    )
