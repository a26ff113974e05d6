"""The stage `captions`: a scene's frames go to a captioner, and its two tiers of prompts come back (METHOD sec. 1).

The captioner is any OpenAI-compatible endpoint, or a file of captions made elsewhere. An answer that isn't a caption goes back
with what is wrong with it, a few times; a scene that still has none is named in the report, with all answers in a file.
"""

import base64
import io
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic import Field, JsonValue

from longshot.data.captions_answer import (
    INSTRUCTION,
    SCHEMA,
    AnswerError,
    Caption,
    caption_of,
    complaint,
    question,
    read_answer,
)
from longshot.data.captions_client import Asker, Endpoint, Reply, Spent, digest
from longshot.data.clips import read_stills
from longshot.data.journal import Journal, read_rows
from longshot.data.records import Record, Row, SceneRow
from longshot.data.stage import Made, Place, Settings, Stage, Unit, key_of
from longshot.errors import UserError
from longshot.files import write_text


class CaptionSettings(Settings):
    """How captions are made. Prices are dollars a million tokens; without them only tokens are told."""

    endpoint: str = "http://127.0.0.1:8000/v1"
    """address of an OpenAI-compatible server, up to and with /v1"""
    model: str = ""
    """as the server calls it; may stay empty when all captions come from `file`"""
    file: str = Field(default="", exclude=True)  # no part of a result's address: what it holds of a scene is
    """captions made elsewhere, JSON lines; scenes that it lacks are asked for when there is a model"""
    frames: int = Field(default=3, ge=1, le=32)
    """pictures sent of each shot"""
    longest_side: int = Field(default=512, ge=32, le=4096)
    """of a picture, in pixels"""
    json_mode: Literal["schema", "object", "text"] = "schema"
    """how an answer in JSON is asked for: by schema, as any JSON, or by words alone; servers differ in what they know"""
    temperature: float | None = Field(default=0.2, ge=0, le=2)
    max_tokens: int | None = Field(default=2000, ge=1)
    """of an answer"""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """more fields of the request, as the server wants them"""
    repairs: int = Field(default=2, ge=0, le=10)
    """times that an answer which can't be used is sent back with what is wrong"""
    concurrency: int = Field(default=4, ge=1, le=256)
    """scenes asked about at once"""
    requests_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    attempts: int = Field(default=6, ge=1, le=100)
    """requests before a scene is set aside, when the server fails"""
    first_wait_s: float = Field(default=1, ge=0)
    """before the second attempt; twice as long before each further one"""
    longest_wait_s: float = Field(default=60, ge=0)
    price_in: float | None = Field(default=None, ge=0)
    price_out: float | None = Field(default=None, ge=0)
    image_tokens: int | None = Field(default=None, ge=1)
    """what a picture counts, for the estimate; one token for 750 pixels when not given"""
    max_cost: float | None = Field(default=None, gt=0)
    """dollars; a run whose estimate is higher doesn't start"""

    def resolved(self, folder: Path) -> "CaptionSettings":
        return self.model_copy(update={"file": str(folder / self.file)}) if self.file else self


class CaptionedScene(SceneRow):
    """A scene with its caption: a prompt for each kept shot, in order."""

    caption: Caption
    caption_model: str
    """who wrote it, for the record"""

    @property
    def cuts(self) -> tuple[bool, ...]:
        return cuts_of(self)


def cuts_of(scene: SceneRow) -> tuple[bool, ...]:
    """Return for each kept shot whether it begins with a cut: also where the shot before it was left out."""
    shots = scene.kept_shots
    joined = [
        not shot.cut and before is not None and before.stop_frame == shot.start_frame
        for before, shot in zip([None, *shots], shots, strict=False)
    ]
    return tuple(not continues for continues in joined)


@dataclass(frozen=True)
class Captions(Stage):
    """Scene rows in, captioned scenes out. `api_key` is sent to the endpoint, and written nowhere."""

    name: ClassVar[str] = "captions"
    after: ClassVar[str | None] = "filter"
    version: ClassVar[int] = 1
    reads: ClassVar[type[Record]] = SceneRow
    writes: ClassVar[type[Record]] = CaptionedScene
    settings: CaptionSettings
    place: Place
    api_key: str = field(default="", repr=False, compare=False)
    begun: float = field(default_factory=time.time, repr=False, compare=False)

    @property
    def threads(self) -> int:  # ty: ignore[incompatible-property-override]
        return self.settings.concurrency

    @property
    def spent(self) -> Spent:
        return Spent(self.place.folder(self.name) / "spent.jsonl")

    def units(self, rows: Iterable[Row]) -> Iterator[Unit]:
        """Yield a unit a kept scene; with the caption that a file brings for it, so that a changed one is read again."""
        brought = read_captions(Path(self.settings.file)) if self.settings.file else {}
        known: set[str] = set()
        for row in rows:
            known.add(str(row.get("id")))
            if row.get("kept", True) and SceneRow.of(row).kept_shots:
                found = brought.get(str(row.get("id")))
                yield Unit(self.label(row), (row,) if found is None else (row, found))
        if unknown := sorted(brought.keys() - known):
            raise UserError(
                f"{self.settings.file}: has a caption for scene {unknown[0]}, and there is no such scene"
                f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}; its ids are those of scenes/rows.jsonl"
            )

    def run(self, unit: Unit, key: str) -> Made:
        scene = SceneRow.of(unit.rows[0], unit.name)
        if len(unit.rows) > 1:
            caption, model, notes = self._brought(scene, unit.rows[1])
        elif not self.settings.model:
            source = f"in {self.settings.file}" if self.settings.file else "and no model to ask"
            raise UserError(f"scene {scene.id}: has no caption {source}; name a model, or bring its caption")
        else:
            caption, model, notes = self._asked(scene, key)
        row = CaptionedScene(**scene.row(), caption=caption, caption_model=model)
        return Made([row], [f"scene {scene.id}: {note}" for note in notes])

    def _brought(self, scene: SceneRow, entry: Row) -> tuple[Caption, str, list[str]]:
        try:
            caption, notes = caption_in(entry, len(scene.kept_shots))
        except AnswerError as error:
            raise UserError(f"{self.settings.file}: scene {scene.id}: {'; '.join(error.problems)}") from None
        return caption, str(entry.get("caption_model") or entry.get("model") or "brought"), notes

    # -- asking ---------------------------------------------------------------------------------------------------------
    def _asked(self, scene: SceneRow, key: str) -> tuple[Caption, str, list[str]]:
        messages, options = self._question(scene), self._options()
        cached = self._cache_file(digest([self.settings.model, messages, options]))
        if (kept := _read_cached(cached)) is not None:
            caption, notes = read_answer(kept["text"], len(scene.kept_shots))
            return caption, kept["model"], notes
        asker = _asker(self._endpoint(), self.begun)
        refused: list[dict[str, Any]] = []
        for _ in range(self.settings.repairs + 1):
            reply = asker.ask(messages, options, self.spent)
            try:
                caption, notes = _caption_in(reply, len(scene.kept_shots), self.settings.max_tokens)
            except AnswerError as error:
                refused.append({"answer": reply.text, "problems": error.problems})
                messages = [
                    *messages,
                    {"role": "assistant", "content": reply.text or "(nothing)"},
                    {"role": "user", "content": complaint(error.problems)},
                ]
                continue
            write_text(cached, json.dumps({"text": reply.text, "model": reply.model}, ensure_ascii=False))
            if refused:
                told = "; ".join(refused[-1]["problems"])
                notes.append(f"the caption was put right by the captioner, who was told: {told}")
            return caption, reply.model, notes
        file = self.place.folder(self.name) / "files" / key[:2] / key / "refused.json"
        write_text(file, json.dumps(refused, indent=1, ensure_ascii=False) + "\n")
        raise UserError(
            f"scene {scene.id}: no usable caption in {len(refused)} answers; the last: "
            f"{'; '.join(refused[-1]['problems'])}. All are in {file.relative_to(self.place.out).as_posix()}"
        )

    def _endpoint(self) -> Endpoint:
        s = self.settings
        return Endpoint(
            url=s.endpoint,
            model=s.model,
            timeout_s=s.timeout_s,
            attempts=s.attempts,
            first_wait_s=s.first_wait_s,
            longest_wait_s=s.longest_wait_s,
            requests_per_minute=s.requests_per_minute,
            key=self.api_key,
        )

    def _options(self) -> dict[str, Any]:
        """The fields of a request besides model and messages."""
        s = self.settings
        named = {"name": "caption", "strict": True, "schema": SCHEMA}
        forms = {
            "schema": {"response_format": {"type": "json_schema", "json_schema": named}},
            "object": {"response_format": {"type": "json_object"}},
            "text": {},
        }
        numbers = {"temperature": s.temperature, "max_tokens": s.max_tokens}
        return {
            **forms[s.json_mode],
            **{name: value for name, value in numbers.items() if value is not None},
            **s.extra,
        }

    def _question(self, scene: SceneRow) -> list[dict[str, Any]]:
        """The conversation's beginning: what is wanted, and the frames of each shot."""
        shots, cuts, count = scene.kept_shots, cuts_of(scene), self.settings.frames
        parts: list[dict[str, Any]] = [_words(question(len(shots), cuts))]
        for k, shot in enumerate(shots, start=1):
            begins = "" if cuts[k - 1] else ", going on without a cut"
            parts.append(_words(f"Shot {k} of {len(shots)}, {shot.seconds:.1f} s{begins}:"))
            times = [shot.start_s + shot.seconds * (i + 0.5) / count for i in range(count)]
            stills = read_stills(self.place, shot, times, self.settings.longest_side)
            parts += [_picture(_jpeg(still)) for still in stills]
        schema = json.dumps(SCHEMA) if self.settings.json_mode != "schema" else ""
        system = f"{INSTRUCTION}\nThe JSON schema of the object: {schema}" if schema else INSTRUCTION
        return [{"role": "system", "content": system}, {"role": "user", "content": parts}]

    def _cache_file(self, name: str) -> Path:
        return self.place.folder(self.name) / "answers" / name[:2] / f"{name}.json"

    # -- cost -----------------------------------------------------------------------------------------------------------
    def foresee(self, rows: Iterable[Row]) -> Sequence[str]:
        """Return in words what asking for the scenes that aren't done will cost. UserError when that is over `max_cost`."""
        scenes = shots = tokens_in = tokens_out = 0
        journal = Journal(self.place.folder(self.name))
        try:
            for unit in self.units(rows):
                if len(unit.rows) > 1 or key_of(self, unit) in journal:
                    continue
                scene = SceneRow.of(unit.rows[0])
                scenes, shots = scenes + 1, shots + len(scene.kept_shots)
                tokens_in += self._tokens_in(scene)
                tokens_out += 150 + 60 * len(scene.kept_shots)
        finally:
            journal.close()
        if not scenes or not self.settings.model:
            return []
        cost = self._cost(tokens_in, tokens_out)
        pictures = shots * self.settings.frames
        asked = f"{self.settings.model} at {self.settings.endpoint}"
        about = f"{scenes} scenes with {shots} shots to ask {asked} about: {pictures} pictures, about "
        about += f"{_short(tokens_in)} tokens in and {_short(tokens_out)} out{_dollars(cost, 'about ')}"
        limit = self.settings.max_cost
        if limit is not None and cost is None:
            raise UserError("captions: max_cost needs price_in and price_out, in dollars a million tokens")
        if limit is not None and cost is not None and cost > limit:
            raise UserError(f"captions: {about}; that is over max_cost, ${limit:g}")
        return [about]

    def sum_up(self) -> Sequence[str]:
        """Return in words what all runs in this folder spent."""
        total = self.spent.total()
        if not total["requests"]:
            return []
        told = f"captions so far: {total['requests']} requests, {total['failed']} of them failed, "
        told += f"{_short(total['tokens_in'])} tokens in and {_short(total['tokens_out'])} out"
        return [told + _dollars(self._cost(total["tokens_in"], total["tokens_out"]), "")]

    def _tokens_in(self, scene: SceneRow) -> int:
        """An estimate, from the size of the pictures."""
        tokens = len(INSTRUCTION) // 4 + 30
        for shot in scene.kept_shots:
            _, _, width, height = shot.crop or (0, 0, shot.width, shot.height)
            scale = min(1.0, self.settings.longest_side / max(width, height, 1))
            each = self.settings.image_tokens or max(1, round(width * height * scale * scale / 750))
            tokens += 15 + each * self.settings.frames
        return tokens

    def _cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Dollars, where prices are known."""
        s = self.settings
        if s.price_in is None or s.price_out is None:
            return None
        return (tokens_in * s.price_in + tokens_out * s.price_out) / 1e6


_ASKERS = threading.Lock()


def _asker(endpoint: Endpoint, begun: float) -> Asker:
    """The one asker of a run in this process: all threads keep one pace."""
    with _ASKERS:
        return _made_asker(endpoint, begun)


@lru_cache(maxsize=2)
def _made_asker(endpoint: Endpoint, begun: float) -> Asker:
    return Asker(endpoint)


def _caption_in(reply: Reply, num_shots: int, max_tokens: int | None) -> tuple[Caption, list[str]]:
    """The caption in a reply; a reply that was cut short says so."""
    try:
        return read_answer(reply.text, num_shots)
    except AnswerError as error:
        if reply.finish == "length":
            raise AnswerError(
                [f"it was cut off at {max_tokens or 'the most'} tokens; be shorter", *error.problems]
            ) from None
        raise


def _read_cached(path: Path) -> dict[str, str] | None:
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"text", "model"} <= kept.keys() else None


def _words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(jpeg: bytes) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def _jpeg(still: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(still).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _short(count: int) -> str:
    return (
        f"{count / 1e6:.1f}M"
        if count >= 1_000_000
        else f"{count / 1e3:.1f}k"
        if count >= 1000
        else str(count)
    )


def _dollars(cost: float | None, about: str) -> str:
    return "" if cost is None else f", {about}${cost:.4f}" if cost < 0.1 else f", {about}${cost:.2f}"


# -- captions made elsewhere --------------------------------------------------------------------------------------------
def read_captions(path: Path) -> dict[str, Row]:
    """Return captions by scene from a file of JSON lines: rows of another run, or `{"scene": ID, "model": ..., ...}` in the
    schema of an answer. UserError names the line of what is neither, or of a scene that comes twice."""
    found: dict[str, Row] = {}
    for number, row in enumerate(read_rows(path), start=1):
        scene = row.get("scene", row.get("id"))
        if not isinstance(scene, str) or not ("caption" in row or "shots" in row):
            raise UserError(f'{path}:{number}: a caption needs "scene", the id of its scene, and "shots"')
        if scene in found:
            raise UserError(f"{path}:{number}: scene {scene} has a caption above; keep one of them")
        entry = (
            {"caption": row["caption"]}
            if "caption" in row
            else {k: v for k, v in row.items() if k != "scene"}
        )
        found[scene] = entry | {k: row[k] for k in ("model", "caption_model") if k in row}
    return found


def caption_in(entry: Row, num_shots: int) -> tuple[Caption, list[str]]:
    """Return the caption of an entry of such a file, checked as an answer is. AnswerError says what is wrong."""
    inner = entry.get("caption")
    if inner is None:
        fields = {k: v for k, v in entry.items() if k in SCHEMA["properties"]}
        return caption_of(fields, num_shots)
    if not isinstance(inner, dict) or not isinstance(inner.get("prompts"), list):
        raise AnswerError(['"caption" holds no list of prompts'])
    shots: Sequence[Any] = [{"shot": k, "prompt": p} for k, p in enumerate(inner["prompts"], start=1)]
    fields = {k: v for k, v in inner.items() if k != "prompts"}
    return caption_of({"characters": [], "environment": "", "story": "", **fields, "shots": shots}, num_shots)
