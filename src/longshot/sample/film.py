"""A film folder: finished shots, whole or not there, and enough about each to go on later.

    shot_01.mp4 ...      one video a shot          latents/shot_01.safetensors ...   its clean latent
    scene.mp4            all of them, in order     sheet.png                         a contact sheet
    manifest.json        what was made, from what, with which settings
    context/             keys, values and last pictures, one file a branch (only where asked for)
    takes/               finished shots that another take replaced

A shot's `key` is a hash of everything that decides its pixels, its history's keys included, so a run that was stopped goes on
with the shots whose keys still fit and makes the others again.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

import longshot
from longshot.bases.base import Base
from longshot.document import read_text
from longshot.errors import UserError
from longshot.files import atomic_path, write_text
from longshot.model.context import Context
from longshot.sample.denoise import Contexts, Sampling
from longshot.sample.plan import Plan, PlannedShot
from longshot.sheet import contact_sheet
from longshot.tensors import save_tensors
from longshot.video import probe, write_image, write_video

MANIFEST = "manifest.json"
Frames = UInt8[np.ndarray, "frames height width 3"]


def digest(*parts: object) -> str:
    """A short hash of anything whose repr says all about it; tensors count by their bytes."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.cpu().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
        hasher.update(b"\0")
    return hasher.hexdigest()[:24]


def shot_keys(plan: Plan, sampling: Sampling, fingerprint: str) -> dict[int, str]:
    """The key of every shot of a plan: given ones by their content, made ones by all that decides them."""
    keys = {
        s.shot: digest("given", s.prompt, s.grid, s.given, s.noise) for s in plan.shots if s.given is not None
    }
    how = (
        fingerprint,
        plan.global_prompt,
        plan.visibility,
        plan.memory,
        plan.context_sigma,
        _numbers(sampling),
    )
    for r in plan.rounds:
        company = [(s.prompt, s.grid, s.noise) for s in (plan[k] for k in r.denoise)]
        history = [keys[k] for k in r.given]
        keys |= {k: digest("made", how, company, history, r.denoise.index(k)) for k in r.denoise}
    return keys


def _numbers(sampling: Sampling) -> dict:
    """What of a sampling changes pictures. Films from before the cache had a dtype and could be shared keep their keys."""
    made_of = asdict(sampling)
    if not sampling.share_history:
        del made_of["share_history"]
    if sampling.cache_dtype == "own":
        del made_of["cache_dtype"]
    return made_of


STREAM_MEMORY = 40  # latent frames: what lies further back can't reach a frame through Wan's decoder (37.5 by its kernels)


def pixels(base: Base, shot: PlannedShot, z: Tensor, before: Sequence[Tensor] = ()) -> Frames:
    """The frames of a finished shot. before: the latents of the shots before it, for a base whose film is one stream."""
    if not (base.spec.multishot and base.spec.multishot.stream and before):
        return base.decode(z, shot.grid)
    t, h, w = shot.grid
    past = torch.cat([rows.to(z.device) for rows in before])[-STREAM_MEMORY * h * w :]
    frames = base.decode(torch.cat([past, z]), (len(past) // (h * w) + t, h, w))
    return frames[-base.spec.frames(shot.grid) :]


@dataclass(frozen=True)
class FilmFolder:
    """Where a film's files lie."""

    path: Path

    def video(self, name: str) -> Path:
        return self.path / f"{name}.mp4"

    def latent(self, name: str) -> Path:
        return self.path / "latents" / f"{name}.safetensors"

    def context(self, branch: int) -> Path:
        return self.path / "context" / f"branch_{branch}.safetensors"

    # -- shots ----------------------------------------------------------------------------------------------------------
    def save_shot(
        self,
        base: Base,
        name: str,
        key: str,
        shot: PlannedShot,
        z: Tensor,
        scale: int,
        before: Sequence[Tensor] = (),
    ) -> None:
        """Writes a finished shot: its video, and its latent with all that `read_shot` needs. Both are whole, or neither is.

        before: see `pixels`.
        """
        meta = {"key": key, "label": shot.label, "prompt": shot.prompt}
        meta |= {
            "grid": json.dumps(shot.grid),
            "noise": json.dumps(shot.noise),
            "pinned": json.dumps(shot.pinned),
        }
        with atomic_path(self.video(name)) as temporary:
            write_video(temporary, pixels(base, shot, z, before), base.spec.fps, scale=scale)
            save_tensors(self.latent(name), {"z": z.cpu().contiguous()}, meta)

    def repair_video(
        self, base: Base, name: str, shot: PlannedShot, z: Tensor, scale: int, before: Sequence[Tensor] = ()
    ) -> None:
        """Writes a finished shot's video again where it is missing, damaged, or of another size. before: see `pixels`."""
        frames = pixels(base, shot, z, before)
        height, width = (n * scale + n * scale % 2 for n in frames.shape[1:3])
        try:
            info = probe(self.video(name))
            fits = (info.width, info.height, info.frames) == (width, height, len(frames))
        except UserError:
            fits = False
        if not fits:
            write_video(self.video(name), frames, base.spec.fps, scale=scale)

    def finished(self, name: str) -> tuple[str, PlannedShot] | None:
        """The key of a finished shot and the shot itself, given; None where there is no whole one."""
        try:
            return self.read_shot(name, 1)
        except UserError:
            return None

    def latent_of(self, name: str, key: str) -> Tensor | None:
        """The clean latent of a finished shot that has this key, or None."""
        found = self.finished(name)
        return found[1].given if found and found[0] == key else None

    def read_shot(self, name: str, place: int) -> tuple[str, PlannedShot]:
        """The key of a finished shot, and the shot, given at `place` of a new plan. Raises UserError when it can't be read."""
        try:
            with safe_open(self.latent(name), "pt") as file:
                meta = file.metadata() or {}
                z = file.get_tensor("z")
            t, h, w = (int(n) for n in json.loads(meta["grid"]))
            seed, key, take = json.loads(meta["noise"])
            if z.ndim != 2 or len(z) != t * h * w:
                raise ValueError(f"{list(z.shape)} numbers for a grid of {t}x{h}x{w}")
            shot = PlannedShot(
                shot=place,
                label=meta["label"],
                prompt=meta["prompt"],
                grid=(t, h, w),
                noise=(int(seed), str(key), int(take)),
                given=z,
                pinned=json.loads(meta["pinned"]) is True,
            )
            return meta["key"], shot
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.latent(name)}: not a finished shot ({_reason(error)}); `longshot sample` makes it again"
            ) from error

    def key_of_same(self, name: str, shot: PlannedShot) -> str | None:
        """The key under which this very given shot lies here already, or None: a film's own shots keep their keys."""
        if shot.given is None or not (found := self.finished(name)):
            return None
        key, mine = found
        same = mine.given is not None and torch.equal(mine.given, shot.given.cpu())
        return key if same and (mine.prompt, mine.noise) == (shot.prompt, shot.noise) else None

    def keep_take(self, name: str, key: str) -> None:
        """Copies a finished shot's files to takes/ before one with another key replaces them: no take is ever lost."""
        found = self.finished(name)
        if not found or found[0] == key:
            return
        old, shot = found
        for file in (self.video(name), self.latent(name)):
            kept = self.path / "takes" / f"{name}_take_{shot.noise[2]}_{old[:6]}{file.suffix}"
            if file.exists() and not kept.exists():
                with atomic_path(kept) as temporary:
                    shutil.copyfile(file, temporary)

    # -- the whole film -------------------------------------------------------------------------------------------------
    def manifest(self) -> dict:
        """What `finish` wrote. Raises UserError where there is no finished film."""
        path = self.path / MANIFEST
        try:
            data = json.loads(read_text(path))
            _check_entries(data)
        except (ValueError, RecursionError) as error:
            if not path.exists():
                raise UserError(
                    f"{self.path}: no film here (no {MANIFEST}); make one with `longshot sample`"
                ) from None
            reason = str(error).removeprefix(f"{path}: ")
            raise UserError(
                f"{path}: damaged ({reason}); `longshot sample` writes it again from the finished shots"
            ) from error
        return data

    def entries(self) -> dict[str, dict]:
        """The shots of the manifest by name; none where there is no readable one."""
        try:
            return {entry["name"]: entry for entry in self.manifest()["shots"]}
        except UserError:
            return {}

    def load(self) -> tuple[dict, list[PlannedShot]]:
        """The manifest and every shot, in story order, as given."""
        manifest = self.manifest()
        shots = []
        for place, entry in enumerate(manifest["shots"], start=1):
            entry["key"], shot = self.read_shot(
                entry["name"], place
            )  # of a run that was stopped, the manifest is older
            shots.append(shot)
        return manifest, shots

    def finish(
        self,
        base: Base,
        entries: Sequence[dict],
        shots: Sequence[tuple[PlannedShot, Tensor]],
        facts: dict,
        scale: int,
    ) -> None:
        """Writes scene.mp4, sheet.png and, last, manifest.json."""
        latents = [z for _, z in shots]
        clips = [pixels(base, s, z, latents[:n]) for n, (s, z) in enumerate(shots)]
        provenance = {
            "software": f"longshot {longshot.__version__}",
            "comment": f"made by the {base.spec.name} model",
        }
        visible = [
            (c, s) for c, (s, _), e in zip(clips, shots, entries, strict=True) if e["number"] is not None
        ]
        write_video(
            self.path / "scene.mp4",
            np.concatenate([c for c, _ in visible]),
            base.spec.fps,
            scale=scale,
            metadata=provenance,
        )
        captions = [s.prompt.removeprefix("[SHOT CUT]").strip() for _, s in visible]
        sheet = contact_sheet(
            [c for c, _ in visible], captions, fps=base.spec.fps, title=str(facts.get("title", "")), columns=4
        )
        write_image(self.path / "sheet.png", sheet)
        manifest = {"longshot": longshot.__version__, **facts, "shots": list(entries)}
        write_text(self.path / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    # -- contexts -------------------------------------------------------------------------------------------------------
    def save_contexts(self, contexts: Contexts, fingerprint: str, keys: Sequence[str]) -> None:
        """Writes the contexts and, last, what they are of: the weights that remembered, and the keys of the film's shots."""
        self.context_facts.unlink(missing_ok=True)
        for branch, context in enumerate(contexts):
            context.save(self.context(branch))
        facts = {"weights": fingerprint, "branches": len(contexts), "shots": list(keys)}
        write_text(self.context_facts, json.dumps(facts))

    def load_contexts(self, fingerprint: str, branches: int, keys: Sequence[str]) -> Contexts | None:
        """The saved contexts; None where none were kept for these very shots and so many branches.

        Raises UserError for contexts that other weights remembered, and for damaged ones.
        """
        if not self.context_facts.exists():
            return None
        try:
            facts = json.loads(read_text(self.context_facts))
            weights, kept, shots = facts["weights"], facts["branches"], facts["shots"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.context_facts}: damaged; remove the folder {self._no_context}") from error
        if shots != list(keys) or kept != branches:
            return None
        if weights != fingerprint:
            raise UserError(
                f"{self.context_facts.parent}: was remembered by other weights; give those with --base, or remove the "
                f"folder {self._no_context}"
            )
        return tuple(Context.load(self.context(b)) for b in range(branches))

    def holds_contexts(self, keys: Sequence[str]) -> bool:
        """Whether contexts of these very shots are kept."""
        try:
            return json.loads(read_text(self.context_facts))["shots"] == list(keys)
        except (KeyError, TypeError, ValueError):
            return False

    _no_context = "to have the history read again"

    @property
    def context_facts(self) -> Path:
        return self.path / "context" / "context.json"


def _check_entries(data: object) -> None:
    """Raises ValueError unless a manifest lists shots with the names, numbers and keys that going on needs."""
    if not isinstance(data, dict) or not isinstance(data.get("shots"), list) or not data["shots"]:
        raise ValueError("it has no list of shots")
    for entry in data["shots"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ValueError("a shot has no key")
        name, number = entry.get("name"), entry.get("number")
        if not isinstance(name, str) or not name.replace("_", "").isalnum():
            raise ValueError(f"{name!r} isn't the name of a shot")
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"{number!r} isn't the number of a shot")


def _reason(error: Exception) -> str:
    """An error in one line of words."""
    words = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    return " ".join(words.split()) or type(error).__name__
