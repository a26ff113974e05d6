"""Writes scores down: `scores.json` for programs, `report.md` to read, and pictures of the first scenes of each task.

`scores.json` (format `longshot-puppet-scores-1`):

    {"format", "config", "sampling", "bases": {"bidirectional": name or null, "causal": ...}, "facts", "seconds",
     "tasks": {TASK: {"what", "scenes",
        "runs": {RUN: {"what", "weights", "seconds", "unreadable_shots",
            "scores":  {NAME: SCORE},
            "by_shot": {NUMBER: {NAME: SCORE}},              # empty where one shot a scene is scored
            "measures": {NAME: {"value", "ceiling"}}}},      # numbers that aren't shares
        "differences": {"A minus B": {NAME: {"value", "low", "high", "scenes"}}}}}}

    SCORE: {"value", "n", "scenes", "low", "high", "interval", "unreadable", "ceiling", "control", "chance"}; see
    `metrics.Score`. The last three may be null.
    NAME: body, pattern, hat, hat_color (of a fish tail_color instead); look (all of them at once); environment, time, camera,
    action; people (their number);
    same_* (two shots of a scene agree), same_look_throughout (all shots of a character do); seam.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from longshot.eval.metrics import Score
from longshot.eval.puppets import RunScores, Sample, Scores, TaskScores
from longshot.files import write_text
from longshot.video import write_image

SUMMARY = (
    "body",
    "hat",
    "hat_color",
    "tail_color",
    "pattern",
    "environment",
    "camera",
    "action",
    "same_look",
)
HEADLINES = ("body", "hat", "environment", "action", "same_look", "seam")  # of the tables by shot
LEFT_TO_JSON = ("same_hat", "same_hat_color", "same_tail_color", "same_pattern", "same_time", "same_place")
BACKGROUND, INK, GIVEN = (22, 23, 27), (236, 236, 232), (120, 170, 255)
SCALE = 3
LABEL, GAP = 110, 6


def write(scores: Scores, out: Path) -> list[Path]:
    """Writes `scores.json`, `report.md` and a picture a task into the folder `out`, each whole or not at all; their paths."""
    out = Path(out)
    paths = []
    for name, task in scores.tasks.items():
        if task.samples:
            paths.append(out / f"{name}.png")
            write_image(paths[-1], sheet(task.samples))
    write_text(out / "report.md", markdown(scores))
    write_text(out / "scores.json", json.dumps(scores.to_json(), indent=1, ensure_ascii=False) + "\n")
    return [out / "scores.json", out / "report.md", *paths]


# --- words ---------------------------------------------------------------------------------------------------------


def markdown(scores: Scores) -> str:
    """The report as Markdown."""
    config, sampling = scores.config, scores.sampling
    weights = ", ".join(f"{name} ({kind})" for kind, name in scores.bases.items() if name)
    held = "the weights' own" if config.context_sigma is None else f"{config.context_sigma:g}"
    lines = [
        "# Puppet scores",
        "",
        f"{weights}; {config.scenes} held-out scenes a task, seed {config.seed}; {sampling.steps} {sampling.solver} steps, "
        f"guidance {sampling.guidance:g}, shift {sampling.shift:g}, context sigma {held}; "
        f"{scores.seconds / 60:.1f} minutes.",
        "",
        "A score is the share that is right, with its 95% interval (Wilson, or a bootstrap over scenes where a scene gives "
        "several); n judgements. What can't be read counts as wrong; *unread* is its share. *Ceiling*: the ground truth's own "
        "pixels through the same scorer. *Control*: output whose condition was wrong (another scene's pictures given, or, "
        "where words decide, held against another scene's words). *Chance*: a guess from the labels' distribution.",
    ]
    lines += ["", f"| task / run | {' | '.join(SUMMARY)} | unread |", "|---" * (len(SUMMARY) + 2) + "|"]
    for name, task in scores.tasks.items():
        for run_name, run in task.runs.items():
            cells = [_number(run.scores[n].value if n in run.scores else None) for n in SUMMARY]
            lines.append(f"| {name} / {run_name} | {' | '.join(cells)} | {run.unreadable_shots:.2f} |")
    for name, task in scores.tasks.items():
        lines += ["", f"## {name}: {task.what}", "", f"{task.scenes} scenes."]
        if task.samples:
            lines[-1] += f" Pictures: [{name}.png]({name}.png) (given shots have a blue frame)."
        for run_name, run in task.runs.items():
            lines += ["", f"### {name} / {run_name}", "", *_run_lines(run)]
        lines += _difference_lines(task)
    return "\n".join(lines) + "\n"


def _run_lines(run: RunScores) -> list[str]:
    lines = [
        f"{run.what[0].upper()}{run.what[1:]} ({run.weights} weights). Unreadable shots: {run.unreadable_shots:.2f}.",
        "",
    ]
    lines += [
        "| | score | 95% | n | unread | ceiling | control | chance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in run.scores.items():
        if name in LEFT_TO_JSON:
            continue
        rest = " | ".join(_number(v) for v in (s.unreadable, s.ceiling, s.control, s.chance))
        lines.append(f"| {name} | {s.value:.2f} | {s.low:.2f}-{s.high:.2f} | {s.n} | {rest} |")
    if run.measures:
        lines += ["", "| | value | ceiling |", "|---|---|---|"]
        lines += [
            f"| {name} | {_number(m.value)} | {_number(m.ceiling)} |" for name, m in run.measures.items()
        ]
    names = [n for n in HEADLINES if any(n in table for table in run.by_shot.values())]
    if names:
        lines += [
            "",
            "By shot, with unread share:",
            "",
            f"| shot | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for number, table in run.by_shot.items():
            lines.append(f"| {number} | {' | '.join(_short(table.get(n)) for n in names)} |")
    return lines


def _difference_lines(task: TaskScores) -> list[str]:
    lines = []
    for name, table in task.differences.items():
        lines += ["", f"### {name}, paired", "", "| | difference | 95% |", "|---|---|---|"]
        lines += [
            f"| {k} | {d.value:+.3f} | {d.low:+.3f} to {d.high:+.3f} |"
            for k, d in table.items()
            if k in SUMMARY
        ]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.2f} ({score.unreadable:.2f})"


# --- pictures --------------------------------------------------------------------------------------------------------


def sheet(samples: Sequence[Sample]) -> UInt8[np.ndarray, "height width 3"]:
    """Scenes below each other: a row for each run, the ground truth below them. Given shots have a blue frame."""
    rows = []
    for sample in samples:
        for name, shots, given in sample.rows:
            rows.append(_row(name, _tiles(shots, given)))
        rows.append(Image.new("RGB", (1, 3 * GAP), BACKGROUND))
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    out = Image.new("RGB", (width + GAP, height), BACKGROUND)
    top = 0
    for row in rows:
        out.paste(row, (0, top))
        top += row.height
    return np.asarray(out)


def _tiles(shots: Sequence[np.ndarray], given: Sequence[bool]) -> list[tuple[np.ndarray, bool]]:
    """The middle frame of every shot; of a lone shot that was made, four frames."""
    many = 4 if sum(not g for g in given) == 1 else 1
    tiles = []
    for frames, was_given in zip(shots, given, strict=True):
        count = 1 if was_given else many
        at = [len(frames) // 2] if count == 1 else np.linspace(0, len(frames) - 1, count).round().astype(int)
        tiles += [(frames[k], was_given) for k in at]
    return tiles


def _row(name: str, tiles: Sequence[tuple[np.ndarray, bool]]) -> Image.Image:
    height, width = (SCALE * side for side in tiles[0][0].shape[:2])
    row = Image.new("RGB", (LABEL + len(tiles) * (width + GAP), height + GAP), BACKGROUND)
    draw = ImageDraw.Draw(row)
    draw.text((GAP, height // 2), name, INK, ImageFont.load_default(14), anchor="lm")
    for k, (frame, was_given) in enumerate(tiles):
        left = LABEL + k * (width + GAP)
        row.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST), (left, 0))
        if was_given:
            draw.rectangle((left, 0, left + width - 1, height - 1), outline=GIVEN, width=2)
    return row
