"""The commands that train, and that score what was trained."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from longshot.cli.making import say
from longshot.errors import UserError


def train(
    world: Annotated[Positional[Literal["puppets", "shards"]], arg(metavar="WORLD")],
    out: Path,
    stage: Literal[
        "all", "single", "lct", "refine", "causal", "causal-refine", "lct-again", "lct-refine"
    ] = "all",
    steps: int | None = None,
    init: str | None = None,
    data: Path | None = None,
    budget: int = 20_000,
    packs: int = 1,
    workers: int = 1,
    device: str = "cpu",
    checkpoint_seconds: float = 180,
    lr: float | None = None,
    attributes: float | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    lora: int = 0,
    base: str = "tiny",
    parallel: Literal["ddp", "fsdp", "ulysses", "fsdp+ulysses"] = "ddp",
    recompute: Literal["auto", "always", "never"] = "auto",
) -> int:
    """Train a native base, or a LoRA over any base: single shots, Long Context Tuning, the context-causal fine-tune, and Long
    Context Tuning again from there. The part of the tiny base that refines its pixels has a stage after the second, learns along
    in the long ones that follow, and has one after each. A stopped run goes on.

    On several processes: torchrun --nproc-per-node 2 -m longshot train puppets --out DIR --parallel fsdp

    Args:
        world: puppets, drawn on the way; or shards, scenes that `longshot data` made.
        out: the run's folder, with one folder a stage in it.
        stage: one stage, or all of them in order.
        steps: of this stage, instead of the recipe's.
        init: weights that the first of these stages starts from; the others start from the stage before them. Of a LoRA: one
            that is merged into the base before, as FILE or FILE:WEIGHT.
        data: the folder of the shards.
        budget: of shards, the most tokens a pack of scenes has.
        packs: of shards, packs a step; processes must share them evenly.
        workers: processes that make scenes ready ahead.
        checkpoint_seconds: how often the state is saved.
        lr: peak learning rate, instead of the recipe's.
        attributes: weight of the auxiliary loss of drawn scenes, instead of the recipe's.
        precision: of products and convolutions, instead of the recipe's; weights and sums stay fp32. bf16 is faster where the
            processor has it (a GPU; of CPUs those with avx512_bf16 or amx_bf16).
        lora: train a LoRA of this rank, and leave the base as it is; it is written to lora.safetensors, for `--lora`.
        base: what the LoRA is trained over, as in `longshot sample`; pretrained bases train from shards that were made for them.
        parallel: how several processes share the run. ddp: each has its own scenes and all weights; fsdp: its own scenes and a
            slice of the weights; ulysses: all weights and a part of every scene; fsdp+ulysses: a slice and a part.
        recompute: of a LoRA over a pretrained base, make a block's activations again in the backward pass instead of keeping
            them: less memory, the same numbers, a third more time. auto does so from a billion parameters on.
    """
    from longshot.train.stages import Order, train_puppets, train_shards

    if (world == "shards") != (data is not None):
        raise UserError(
            "--data: say where the shards lie" if data is None else "--data is for `longshot train shards`"
        )
    order = Order(
        out=out,
        stage=stage,
        steps=steps,
        init=init,
        workers=workers,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        lr=lr,
        attributes=attributes,
        precision=precision,
        lora=lora,
        base=base,
        parallel=parallel,
        recompute=recompute,
    )
    if data is None:
        train_puppets(order)
    else:
        train_shards(order, data, budget, packs)
    return 0


def lora(
    before: Annotated[Positional[str], arg(metavar="BEFORE")],
    after: Annotated[Positional[str], arg(metavar="AFTER")],
    out: Path,
    rank: int = 16,
) -> int:
    """Write what a fine-tune did to a base as a LoRA, for `--lora`; says how much of it fits into the rank.

    Args:
        before: the base that was tuned: tiny, a weights file, a diffusers folder.
        after: the same base, tuned.
        out: the .safetensors file to write, in diffusers' layout.
        rank: of every matrix; a larger one keeps more.
    """
    from longshot.bases import load_base
    from longshot.bases.lora import difference, save_adapter

    if rank < 1:
        raise UserError(f"--rank {rank}: use a whole number from 1 on")
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: LoRAs are written as safetensors; the name must end in .safetensors")
    old, new = (load_base(name) for name in (before, after))
    networks = (getattr(base, "network") for base in (old, new))  # noqa: B009 - every base has one
    adapter, share = difference(after, *networks, rank)
    save_adapter(out, adapter)
    print(f"{out}: rank {rank}, {share:.3f} of what changed")
    return 0


def eval_(
    world: Annotated[Positional[Literal["puppets"]], arg(metavar="WORLD")],
    out: Path,
    scenes: int = 50,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    bidirectional: str = "tiny",
    causal: str = "tiny",
) -> int:
    """Score the tiny base against the puppet world's ground truth, a wrong-condition control and chance: scores.json.

    Args:
        world: what to score on.
        out: the folder to write.
        scenes: held-out scenes a task.
        seed: which held-out scenes.
        tasks: some tasks only; all when none are named.
        bidirectional: weights for full attention, or none to leave out what they do.
        causal: weights for context-causal attention, or none.
    """
    from longshot.bases import load_base
    from longshot.eval.puppets import EvalConfig, Progress, evaluate
    from longshot.eval.report import write

    config = EvalConfig(scenes=scenes, seed=seed, tasks=tasks)

    def tell(at: Progress) -> None:
        if at.done == at.total:
            say(f"{at.task}: {at.run} done, {at.total} scenes")

    full = None if bidirectional == "none" else load_base(bidirectional)
    scores = evaluate(full, None if causal == "none" else load_base(causal, "causal"), config, tell)
    write(scores, out)
    print(f"{out / 'scores.json'}")
    return 0
