"""The stages that train the refiner of pixels: what learns, what stays, and what comes out."""

from dataclasses import replace

import pytest
import torch
from small_run import stage, tiny_base

from longshot.bases.native import NativeBase, NativeConfig
from longshot.errors import UserError
from longshot.flow import SigmaDraw
from longshot.train.config import STAGES
from longshot.train.loop import Trainer, batch_loss, collate, draw_noise
from longshot.train.puppets import PuppetSteps

REFINING = replace(
    stage(40),
    learns="refiner",
    attributes=0.0,
    guessed=0.5,
    lr=5e-3,
    sigma=SigmaDraw(mean=-0.5, std=0.5, most=0.5),
)


def with_refiner(width: int = 16, depth: int = 1) -> NativeBase:
    plain = tiny_base()
    sizes = replace(plain.config.network, patch=plain.spec.stride, refiner_width=width, refiner_depth=depth)
    return NativeBase.fresh(NativeConfig(plain.spec, sizes))


def of_refiner(base: NativeBase, wanted: bool) -> dict[str, torch.Tensor]:
    state = base.network.state_dict()
    return {k: v.clone() for k, v in state.items() if k.startswith("refiner.") == wanted}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("learns", ["transformer", "refiner"])
def test_only_the_part_that_learns_changes_and_the_file_has_both(learns, tmp_path):
    base = with_refiner()
    before = {part: of_refiner(base, part) for part in (True, False)}
    written = Trainer(base, replace(REFINING, steps=2, learns=learns), tmp_path).run(workers=0)
    after = NativeBase.load(written)
    assert same(before[learns != "refiner"], of_refiner(after, learns != "refiner"))
    assert not same(before[learns == "refiner"], of_refiner(after, learns == "refiner"))


def test_both_parts_learn_at_once(tmp_path):
    base = with_refiner()
    before = {part: of_refiner(base, part) for part in (True, False)}
    after = NativeBase.load(Trainer(base, replace(REFINING, steps=2, learns="both"), tmp_path).run(workers=0))
    assert not any(same(weights, of_refiner(after, part)) for part, weights in before.items())


def test_a_run_of_the_refiner_goes_on_bit_for_bit(tmp_path):
    config = replace(REFINING, worn=0.5, steps=4)
    straight = Trainer(with_refiner(), config, tmp_path / "straight").run(workers=0)
    Trainer(with_refiner(), config, tmp_path / "halved").run(workers=0, until=2)
    halved = Trainer(with_refiner(), config, tmp_path / "halved").run(workers=0)
    one, two = (NativeBase.load(path).network.state_dict() for path in (straight, halved))
    assert same(one, two)


@pytest.mark.parametrize("depth", [1, 3])
def test_forty_steps_on_one_example_bring_a_refiner_of_any_depth_nearer_to_it(depth, tmp_path):
    base, examples = with_refiner(16 * depth, depth), PuppetSteps(REFINING.stream, seed=5)[0]
    batch = collate(base, examples)
    sigma, eps = draw_noise(batch.layout, base.spec.channels, REFINING, 10_000, range(len(examples)))

    @torch.no_grad()
    def loss() -> float:
        return float(batch_loss(base, batch, sigma, eps, "scene").flow)

    trainer = Trainer(base, REFINING, tmp_path)
    before = loss()
    for _ in range(40):
        trainer.train_step(examples)
    assert loss() < 0.5 * before  # the transformer is a fresh one, so all of it is the refiner's


def test_another_salt_draws_other_levels_and_other_noise():
    base = with_refiner()
    batch = collate(base, PuppetSteps(REFINING.stream, seed=5)[0])
    a, again, b = (
        draw_noise(batch.layout, base.spec.channels, REFINING, 7, (0, 1), salt) for salt in (0, 0, 1)
    )
    assert torch.equal(a[0], again[0]) and torch.equal(a[1], again[1])
    shots = a[0] > 0
    assert (a[0] != b[0])[shots].all() and abs(
        torch.corrcoef(torch.stack([a[1].flatten(), b[1].flatten()]))[0, 1]
    ) < 0.05


def test_a_run_over_another_transformer_is_refused(tmp_path):
    Trainer(with_refiner(), replace(REFINING, steps=2), tmp_path).run(workers=0, until=1)
    other = with_refiner()
    with torch.no_grad():
        other.network.head.bias.add_(1)
    with pytest.raises(UserError, match="was trained with frozen="):
        Trainer(other, replace(REFINING, steps=2), tmp_path)


def test_a_network_without_a_refiner_has_no_such_stage(tmp_path):
    with pytest.raises(UserError, match="has no pixel refiner to train"):
        Trainer(tiny_base(), REFINING, tmp_path)


def test_after_the_stage_of_the_refiner_none_forgets_it_and_what_ships_ends_with_it():
    stages = {name: config() for name, config in STAGES.items()}
    assert all(config.name == name for name, config in stages.items())
    order = list(stages)
    later = [stages[name] for name in order[order.index("refine") + 1 :]]
    assert [(c.visibility, c.learns) for c in later] == [
        ("causal", "both"),
        ("causal", "refiner"),
        ("scene", "both"),
        ("scene", "refiner"),
    ]


def test_a_stage_that_draws_levels_at_which_the_refiner_is_not_asked_is_refused(tmp_path):
    plain = with_refiner()
    base = NativeBase.fresh(replace(plain.config, network=replace(plain.config.network, refines_below=0.3)))
    with pytest.raises(UserError, match=r"up to 0\.5, and this network asks its refiner only up to 0\.3"):
        Trainer(base, REFINING, tmp_path)


def test_a_step_in_which_nothing_asks_the_refiner_changes_nothing(tmp_path):
    plain = with_refiner()
    sizes = replace(plain.config.network, refiner_moves=((0, 0, 0),), refines_below=0.01)
    base = NativeBase.fresh(NativeConfig(plain.spec, sizes))
    before = of_refiner(base, True)
    config = replace(REFINING, steps=1, weight_decay=0.0, sigma=SigmaDraw(mean=5, std=0.1))
    Trainer(base, config, tmp_path).run(workers=0)
    assert same(before, of_refiner(base, True))


def test_a_transformer_learns_as_if_it_had_no_refiner(tmp_path):
    config = replace(REFINING, steps=3, learns="transformer")
    base, bare = with_refiner(), tiny_base()
    torch.nn.init.normal_(base.network.refiner.leave.weight)  # it would change every answer
    bare.network.load_state_dict(of_refiner(base, False))
    assert bare.config.network.refines_below == base.config.network.refines_below
    for k, each in enumerate((base, bare)):
        Trainer(each, config, tmp_path / str(k)).run(workers=0)
    assert same(of_refiner(base, False), bare.network.state_dict())
