"""A film folder: finished shots, whole or not there, and enough about each to go on later.

    shot_01.mp4 ...      one video a shot          latents/shot_01.safetensors ...   its clean latent
    scene.mp4            all of them, in order     sheet.png                         a contact sheet
    manifest.json        what was made, from what, with which settings
    context/             keys and values, one file a branch (only where asked for)

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
from safetensors.torch import save_file
from torch import Tensor

import longshot
from longshot.bases.base import Base
from longshot.errors import UserError
from longshot.files import atomic_path, write_text
from longshot.model.context import Context
from longshot.sample.denoise import Contexts, Sampling
from longshot.sample.plan import Plan, PlannedShot
from longshot.sheet import contact_sheet
from longshot.video import write_image, write_video

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
        asdict(sampling),
    )
    for r in plan.rounds:
        company = [(s.prompt, s.grid, s.noise) for s in (plan[k] for k in r.denoise)]
        history = [keys[k] for k in r.given]
        keys |= {k: digest("made", how, company, history, r.denoise.index(k)) for k in r.denoise}
    return keys


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
    def save_shot(self, name: str, key: str, shot: PlannedShot, z: Tensor) -> None:
        """Writes a finished shot's latent with all that `load_shot` needs."""
        meta = {"key": key, "label": shot.label, "prompt": shot.prompt}
        meta |= {
            "grid": json.dumps(shot.grid),
            "noise": json.dumps(shot.noise),
            "pinned": json.dumps(shot.pinned),
        }
        with atomic_path(self.latent(name)) as temporary:
            save_file({"z": z.cpu().contiguous()}, temporary, meta)

    def key(self, name: str) -> str | None:
        """The key of a finished shot, or None where there is no whole one."""
        try:
            with safe_open(self.latent(name), "pt") as file:
                return (file.metadata() or {}).get("key")
        except (OSError, SafetensorError):
            return None

    def load_shot(self, name: str, place: int) -> PlannedShot:
        """A finished shot, given at `place` of a new plan. Raises UserError when it can't be read."""
        try:
            with safe_open(self.latent(name), "pt") as file:
                meta = file.metadata() or {}
                z = file.get_tensor("z")
            grid = json.loads(meta["grid"])
            seed, key, take = json.loads(meta["noise"])
            return PlannedShot(
                shot=place,
                label=meta["label"],
                prompt=meta["prompt"],
                grid=(grid[0], grid[1], grid[2]),
                noise=(seed, key, take),
                given=z,
                pinned=json.loads(meta["pinned"]),
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"{self.latent(name)}: not a finished shot ({error}); make the film again"
            ) from error

    def key_of_same(self, name: str, shot: PlannedShot) -> str | None:
        """The key under which this very given shot lies here already, or None: a film's own shots keep their keys."""
        if shot.given is None or self.key(name) is None:
            return None
        mine = self.load_shot(name, shot.shot)
        same = mine.given is not None and torch.equal(mine.given, shot.given.cpu())
        return self.key(name) if same and (mine.prompt, mine.noise) == (shot.prompt, shot.noise) else None

    def keep_take(self, name: str, key: str) -> None:
        """Copies a finished shot's files to takes/ before one with another key replaces them: no take is ever lost."""
        old = self.key(name)
        if old is None or old == key:
            return
        take = self.load_shot(name, 1).noise[2]
        for file in (self.video(name), self.latent(name)):
            kept = self.path / "takes" / f"{name}_take_{take}_{old[:6]}{file.suffix}"
            if file.exists() and not kept.exists():
                with atomic_path(kept) as temporary:
                    shutil.copyfile(file, temporary)

    # -- the whole film -------------------------------------------------------------------------------------------------
    def manifest(self) -> dict:
        """What `finish` wrote. Raises UserError where there is no finished film."""
        path = self.path / MANIFEST
        try:
            data = json.loads(path.read_text("utf-8"))
            if not isinstance(data, dict) or not isinstance(data.get("shots"), list):
                raise ValueError("it has no list of shots")
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: no film here (no {MANIFEST}); make one with `longshot sample`"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: can't be read ({error})") from error
        return data

    def load(self) -> tuple[dict, list[PlannedShot]]:
        """The manifest and every shot, in story order, as given."""
        manifest = self.manifest()
        names = [str(entry.get("name")) for entry in manifest["shots"]]
        if bad := [n for n in names if not n.replace("_", "").isalnum()]:
            raise UserError(f"{self.path / MANIFEST}: {bad[0]!r} isn't the name of a shot")
        return manifest, [self.load_shot(name, place) for place, name in enumerate(names, start=1)]

    def finish(
        self,
        base: Base,
        entries: Sequence[dict],
        shots: Sequence[tuple[PlannedShot, Tensor]],
        facts: dict,
        scale: int,
    ) -> None:
        """Writes scene.mp4, sheet.png and, last, manifest.json."""
        clips = [base.decode(z, s.grid) for s, z in shots]
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
    def save_contexts(self, contexts: Contexts) -> None:
        for branch, context in enumerate(contexts):
            context.save(self.context(branch))

    def load_contexts(self, branches: int) -> Contexts | None:
        """The saved contexts, or None where none were kept."""
        if not all(self.context(b).exists() for b in range(branches)):
            return None
        return tuple(Context.load(self.context(b)) for b in range(branches))
