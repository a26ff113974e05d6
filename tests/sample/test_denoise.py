"""The one loop: every mode against a sampler written by hand, and what must stay as it is."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from planned import by_hand, clip, shot, story
from torch import Tensor

from core_fixtures import SMALL, DoubleBase, FieldBase, few, noise, quiet, small_base, some
from longshot.errors import UserError
from longshot.flow import sigma_table
from longshot.layout import GLOBAL, Group, Layout, global_group
from longshot.model.context import Context
from longshot.sample.denoise import Finished, Sampling, Step, denoise, generator_of, noise_of
from longshot.sample.plan import Plan, PlannedShot, autoregressive, reshoot, together

pytestmark = quiet

# float64 throughout, so that only the order of sums differs; three steps multiply that a little.
EXACT = 1e-8

PLAIN = Sampling(steps=3, shift=2.0, guidance=1.0)
GUIDED = Sampling(steps=2, shift=3.0, guidance=2.5)
HEUN = Sampling(steps=2, shift=1.0, guidance=1.0, solver="heun")
STOCHASTIC = Sampling(steps=3, shift=2.0, guidance=2.5, solver="stochastic")
GLOBAL_PROMPT = "[Story] a red hat"


class Spy(DoubleBase):
    """Writes down what the network is asked."""

    def velocity(self, z, text, sigma, layout, visibility, past=None, keep=None, **more):
        self.calls.append((z.clone(), sigma.clone(), layout))
        return super().velocity(z, text, sigma, layout, visibility, past, keep, **more)


BASE = small_base()
SEEING = {
    "predicts": "clean",
    "patch": SMALL.spec.stride,
    "refiner_width": 8,
    "refiner_moves": ((0, 0, 0), (1, -1, 0)),
}
GOES_ON = small_base(config=replace(SMALL, network=replace(SMALL.network, **SEEING, refines_below=0.6)))
"""A base whose pixels go on from those of the shot before."""


def of_one_size(shots: Sequence[PlannedShot]) -> list[PlannedShot]:
    """The same shots, all of one width and height, so that each can go on from the one before."""
    out = []
    for s in shots:
        grid = (1 + s.shot % 2, 2, 2)
        given_ = None if s.given is None else noise(s.shot, grid[0] * 4, 24)
        out.append(replace(s, grid=grid, given=given_))
    return out


BASES = pytest.mark.parametrize("base", [BASE, GOES_ON], ids=["latents", "pixels"])


def spy() -> Spy:
    base = small_base(kind=Spy)
    base.calls = []
    return base


def make(plan: Plan, sampling: Sampling = PLAIN, base=BASE, **more) -> tuple[dict[int, Tensor], Finished]:
    """The latents of all made shots, and the last round."""
    latents: dict[int, Tensor] = {}
    finished = None
    for finished in denoise(base, plan, sampling, **more):
        latents |= finished.latents
    assert finished is not None
    return latents, finished


def close(a: dict[int, Tensor], b: dict[int, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[k].double(), b[k].double(), rtol=0, atol=EXACT) for k in a
    )


def causal(shots, memory="cache", **more) -> Plan:
    return autoregressive(GLOBAL_PROMPT, shots, memory=memory, window=9, context_sigma=0.125, **more)


def bidirectional(shots, **more) -> Plan:
    return autoregressive(
        GLOBAL_PROMPT, shots, visibility="scene", memory="recompute", context_sigma=0.125, **more
    )


IDENTITY, PLACE = shot(1, "", given=clip(1), pinned=True), shot(2, "", given=clip(2), pinned=True)
MODES = {
    "joint": together(GLOBAL_PROMPT, story(3)),
    "joint, no global prompt": together("", story(3)),
    "one shot alone": together("", story(1)),
    "conditional, first shot given": together(GLOBAL_PROMPT, story(3, (1,)), 0.25),
    "conditional, a middle shot given clean": together(GLOBAL_PROMPT, story(3, (2,)), 0.0),
    "interpolation": together("", story(4, (1, 4)), 0.125),
    "composition of two images": together(GLOBAL_PROMPT, [IDENTITY, PLACE, shot(3)], 0.125),
    "auto-regressive, bidirectional": bidirectional(story(3)),
    "auto-regressive, causal, recomputed": causal(story(3), "recompute"),
    "auto-regressive, causal, cached": causal(story(4)),
    "cached, no global prompt": replace(causal(story(3)), global_prompt=""),
    "cached, later shots given too": causal(story(4, (1, 3))),
    "extension of given segments": causal([*story(2, (1, 2)), shot(3, "she walks on"), shot(4, "and on")]),
    "composition, then going on": causal([IDENTITY, PLACE, shot(3), shot(4)]),
    "chosen history": bidirectional(story(4), history={3: [1], 4: [2]}),
    "a window that slides": bidirectional(story(4), window=2),
    "relevant history": bidirectional(story(4), window=2, history="relevant"),
}


@BASES
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_a_sampler_written_by_hand(mode, base):
    plan = MODES[mode]
    if base is GOES_ON:
        plan = replace(plan, shots=tuple(of_one_size(plan.shots)))
    assert close(make(plan, PLAIN, base)[0], by_hand(base, plan, PLAIN))


@pytest.mark.parametrize(
    "mode", ["joint", "interpolation", "auto-regressive, causal, cached", "composition, then going on"]
)
def test_guidance_equals_two_separate_branches(mode):
    assert close(make(MODES[mode], GUIDED)[0], by_hand(BASE, MODES[mode], GUIDED))


@pytest.mark.parametrize("mode", ["joint", "auto-regressive, causal, cached"])
@pytest.mark.parametrize("sampling", [HEUN, STOCHASTIC], ids=["heun", "stochastic"])
def test_other_solvers_equal_those_written_by_hand(mode, sampling):
    assert close(make(MODES[mode], sampling)[0], by_hand(BASE, MODES[mode], sampling))


@pytest.mark.parametrize(
    ("sampling", "given_"),
    [(PLAIN, ()), (GUIDED, (1,)), (HEUN, (2, 3)), (STOCHASTIC, (2,))],
    ids=["plain", "guided", "heun", "stochastic"],
)
@BASES
def test_a_causal_cache_equals_recomputed_history(sampling, given_, base):
    shots = of_one_size(story(4, given_))
    cached, again = (make(causal(shots, memory), sampling, base)[0] for memory in ("cache", "recompute"))
    assert close(cached, again)


# -- what is given stays ----------------------------------------------------------------------------------------------------
@few
@given(
    st.sets(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans()
)
def test_given_shots_come_back_bit_identical_and_stand_still_at_context_sigma(places, level, guided):
    shots, base = story(4, tuple(places)), spy()
    before = {k: shots[k - 1].given.clone() for k in places}
    made, _ = make(together(GLOBAL_PROMPT, shots, level), GUIDED if guided else PLAIN, base)
    assert made.keys() == {1, 2, 3, 4} - places
    assert all(torch.equal(before[k], shots[k - 1].given) for k in places)
    (first, *_), *later = base.calls
    for z, sigma, layout in base.calls:
        for i, (group, span) in enumerate(zip(layout.groups, layout.video_spans, strict=True)):
            if group.shot in places:
                assert sigma[i] == torch.tensor(level) and torch.equal(z[span.slice], first[span.slice])
                if level == 0:
                    assert torch.equal(z[span.slice], before[group.shot])
            if group.shot == GLOBAL:
                assert sigma[i] == 0 and (z[span.slice] == 0).all()
    assert later


def test_a_given_shot_changes_the_shots_around_it():
    one, other = story(3, (2,)), story(3, (2,))
    other[1] = replace(other[1], given=clip(2) + 1)
    a, b = make(together("", one))[0], make(together("", other))[0]
    assert not any(torch.allclose(a[k], b[k]) for k in (1, 3))


def test_a_later_shot_cannot_change_an_earlier_one_in_a_causal_roll_out():
    longer = make(causal(story(4)))[0]
    other = make(causal([*story(2), shot(3, "something else entirely", take=2)]))[0]
    assert all(torch.equal(longer[k], other[k]) for k in (1, 2)) and not torch.equal(longer[3], other[3])


# -- noise ------------------------------------------------------------------------------------------------------------------
@some
@given(st.integers(0, 2**63), st.text(max_size=9), st.integers(0, 99))
def test_the_noise_of_a_shot_depends_on_seed_key_and_take_only(seed, key, take):
    def noise(number, *of):
        return noise_of(replace(shot(number, grid=(1, 2, 2)), noise=of), 3)

    own = noise(1, seed, key, take)
    elsewhere = replace(
        shot(9, "other words", given=clip(1), pinned=True, grid=(2, 2, 1)), noise=(seed, key, take)
    )
    assert torch.equal(own, noise_of(elsewhere, 3))
    for other in ((seed + 1, key, take), (seed, key + "x", take), (seed, key, take + 1)):
        assert not torch.equal(own, noise(1, *other))


def test_the_noise_of_a_shot_is_the_same_on_every_machine_and_in_every_version():
    assert noise_of(shot(1), 2).flatten()[:4].tolist() == pytest.approx(
        [-1.226760745, -0.872808695, -1.012030125, 1.440467477]
    )


def test_noise_is_standard_normal():
    noise = noise_of(shot(1, grid=(10, 20, 20)), 8)
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03  # 32000 numbers: five standard errors


def test_a_retake_rolls_only_its_own_dice():
    takes = story(4)
    takes[2] = shot(3, take=1)
    before, after = make(causal(story(4)))[0], make(causal(takes))[0]
    assert [torch.equal(before[k], after[k]) for k in (1, 2, 3, 4)] == [True, True, False, False]
    assert [torch.equal(noise_of(a, 24), noise_of(b, 24)) for a, b in zip(story(4), takes, strict=True)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_film_is_the_same_bit_for_bit_when_it_is_made_again():
    for mode in ("joint", "auto-regressive, causal, cached"):
        a, b = make(MODES[mode], GUIDED)[0], make(MODES[mode], GUIDED)[0]
        assert all(torch.equal(a[k], b[k]) for k in a)


# -- re-shooting ------------------------------------------------------------------------------------------------------------
def test_a_reshoot_changes_one_shot_and_sees_the_shots_on_both_sides():
    film = make(together("", story(4)))[0]
    shots = [replace(s, given=film[s.shot]) for s in story(4)]
    kept = {k: z.clone() for k, z in film.items()}
    base = spy()
    made, _ = make(together("", reshoot(shots, 2, None, take=1)), base=base)
    assert made.keys() == {2} and not torch.equal(made[2], film[2])
    assert all(torch.equal(kept[k], s.given) for k, s in enumerate(shots, start=1))
    assert all([g.shot for g in layout.groups] == [1, 2, 3, 4] for _, _, layout in base.calls)
    moved = [replace(s, given=s.given + 1) if s.shot == 3 else s for s in shots]
    assert not torch.allclose(make(together("", reshoot(moved, 2, None, take=1)))[0][2], made[2])


def test_swapping_the_identity_image_changes_what_follows_and_nothing_else():
    def cast(image: Tensor) -> Plan:
        return causal([shot(1, "", given=image, pinned=True), PLACE, shot(3), shot(4)])

    a, b = make(cast(clip(1)))[0], make(cast(clip(1).flip(0)))[0]
    assert a.keys() == b.keys() == {3, 4} and not any(torch.allclose(a[k], b[k]) for k in a)


# -- history ----------------------------------------------------------------------------------------------------------------
def seen_by(base: Spy, number: int) -> set[tuple[int, ...]]:
    """Every set of shots that shot `number` was computed beside, in all steps in which it moved."""
    return {
        tuple(g.shot for g in layout.scenes[0])
        for _, _, layout in base.calls
        if [g.shot for g in layout.groups] == [number]
    }


def test_a_chosen_history_is_all_that_a_cached_shot_sees():
    base = spy()
    plan = causal(story(4), history={3: [1], 4: [1, 2]})
    make(plan, base=base)
    assert seen_by(base, 3) == {(0, 1, 3)} and seen_by(base, 4) == {(0, 1, 2, 4)}


def test_a_long_story_rolls_on_with_a_window_and_never_meets_more_positions_than_a_full_window():
    base = spy()
    plan = autoregressive(GLOBAL_PROMPT, story(21), window=4)
    made, last = make(plan, Sampling(steps=1, guidance=1.0), base)
    assert len(made) == 21 and all(z.isfinite().all() for z in made.values())
    assert max(len(layout.scenes[0]) for _, _, layout in base.calls) == 5  # the global prompt and four shots
    seen = last.contexts[0].select([0, 1, 2, 3, 4]).groups
    whole = Layout.single(*seen, rope=base.spec.rope)
    longest = max(int(layout.keys.position.max()) for _, _, layout in base.calls)
    assert longest <= 2 * whole.queries.position.max()
    assert last.contexts[0].shots == tuple(range(22))


def test_what_history_was_read_at_is_written_in_its_memory():
    _, last = make(causal(story(2)))
    assert [m.sigma for m in last.contexts[0].memories] == [0.0, 0.125, 0.125]


@pytest.mark.parametrize("reuse", [False, True])
def test_a_remembered_shot_ends_with_the_last_picture_of_the_film(reuse):
    shots = of_one_size(story(3, (1,)))
    film, last = make(causal(shots), replace(PLAIN, reuse_steps=reuse), GOES_ON)
    film |= {s.shot: s.given for s in shots if s.given is not None}
    for memory in last.contexts[0].memories[1:]:
        assert torch.equal(memory.last, film[memory.group.shot][-memory.group.frame_tokens :])


@BASES
@pytest.mark.parametrize("sampling", [PLAIN, GUIDED, STOCHASTIC], ids=["plain", "guided", "stochastic"])
def test_a_story_branches_from_a_saved_context_as_if_it_had_been_told_so_from_the_start(
    tmp_path, sampling, base
):
    start = of_one_size(story(4))
    film, last = make(causal(start), sampling, base)
    for branch, context in enumerate(last.contexts):
        context.before(3).save(tmp_path / f"{branch}.safetensors")
    saved = tuple(Context.load(tmp_path / f"{b}.safetensors") for b in range(len(last.contexts)))
    finale = of_one_size([shot(3, "Character 2 sits down", take=4), shot(4, "the end")])
    told = [replace(s, given=film[s.shot]) for s in start[:2]]
    branched, _ = make(causal([*told, *finale]), sampling, base, contexts=saved)
    from_the_start, _ = make(causal([*start[:2], *finale]), sampling, base)
    assert branched.keys() == {3, 4}
    assert all(torch.allclose(branched[k], from_the_start[k], rtol=0, atol=EXACT) for k in (3, 4))
    without_it, _ = make(causal([*told, *finale]), sampling, base)
    assert close(branched, without_it)


@pytest.mark.parametrize("memory", ["cache", "recompute"])
@pytest.mark.parametrize("finished", [(), (1,), (1, 2, 3), (1, 2, 3, 4, 5)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(memory, finished):
    plan = autoregressive(GLOBAL_PROMPT, story(5), memory=memory, window=3, context_sigma=0.1)
    film = make(plan, GUIDED)[0]
    rest = [f.latents for f in denoise(BASE, plan, GUIDED, done={k: film[k] for k in finished})]
    assert [k for latents in rest for k in latents] == [k for k in (1, 2, 3, 4, 5) if k not in finished]
    assert all(torch.equal(z, film[k]) for latents in rest for k, z in latents.items())


def test_an_interrupt_loses_only_the_shot_that_was_being_made():
    class Stopped(DoubleBase):
        def velocity(self, *args, **more):
            if args[3].groups[-1].shot == 3:
                raise KeyboardInterrupt
            return super().velocity(*args, **more)

    finished = {}
    with pytest.raises(KeyboardInterrupt):
        for f in denoise(small_base(kind=Stopped), causal(story(4)), PLAIN):
            finished |= f.latents
    film = make(causal(story(4)))[0]
    assert finished.keys() == {1, 2} and all(torch.equal(finished[k], film[k]) for k in finished)


# -- the cache from a denoising step ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampling", [PLAIN, GUIDED, STOCHASTIC], ids=["plain", "guided", "stochastic"])
def test_reused_steps_remember_the_shot_at_the_noise_level_nearest_to_the_context_sigma(sampling):
    plan = replace(causal(story(2)), context_sigma=0.6)
    reuse = replace(sampling, reuse_steps=True)
    steps: list[Step] = []
    _, last = make(plan, reuse, on_step=steps.append)
    nearest = min((s.sigma for s in steps if s.round == 1), key=lambda sigma: abs(sigma - 0.6))
    by_spy = spy()
    make(plan, sampling, by_spy)  # the first shot meets the same steps without reuse
    call = next(
        (z, sigma, layout)
        for z, sigma, layout in by_spy.calls
        if layout.groups[-1].shot == 1 and sigma[-1] == torch.tensor(nearest)
    )
    texts = [BASE.encode_text([p])[0] for p in (plan[1].prompt, "")[: sampling.branches]]
    contexts = [c.select([s for s in c.shots if s == GLOBAL]) for c in last.contexts]
    _, remembered = BASE.remember(call[0], torch.cat(texts), call[1], call[2], "causal", contexts)
    for held, expected in zip(last.contexts, remembered, strict=True):
        a, b = held.select([1]).memories[0], expected.select([1]).memories[0]
        assert a.sigma == b.sigma == pytest.approx(nearest)
        assert torch.allclose(a.keys, b.keys, rtol=0, atol=EXACT)
        assert torch.allclose(a.values, b.values, rtol=0, atol=EXACT)


def test_reused_steps_save_one_forward_pass_a_shot():
    counts = []
    for reuse in (False, True):
        base = spy()
        make(causal(story(4)), replace(PLAIN, reuse_steps=reuse), base)
        counts.append(len(base.calls))
    assert counts == [
        1 + 4 * (3 + 1),
        1 + 4 * 3,
    ]  # once for the global prompt; then steps, and maybe one more


# -- the path ---------------------------------------------------------------------------------------------------------------
GOALS = {k: clip(k, 2) for k in range(1, 4)}


@pytest.mark.parametrize("solver", ["euler", "heun", "stochastic"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("plan", [together, autoregressive])
def test_the_exact_velocity_lands_on_the_clean_latent_in_any_number_of_steps(plan, steps, solver):
    oracle = FieldBase(lambda z, sigma, k: (z - GOALS[k]) / sigma)
    seen: list[Step] = []
    made, _ = make(
        plan("", story(3)), Sampling(steps=steps, guidance=1.0, solver=solver), oracle, on_step=seen.append
    )
    # fp32: z - z_0 loses a few bits, and the division by a small sigma shows them.
    assert all(torch.allclose(made[k], GOALS[k], rtol=0, atol=1e-5) for k in (1, 2, 3))
    for step in seen:
        assert all(torch.allclose(z, GOALS[k], rtol=0, atol=1e-4) for k, z in step.clean.items())


def test_the_stochastic_solver_takes_the_steps_of_diffusers():
    made, _ = make(
        together("", story(1)),
        Sampling(6, shift=1.0, guidance=1.0, solver="stochastic"),
        FieldBase(lambda z, sigma, k: torch.tanh(z) * (1 + sigma)),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=sigma_table(6, 1.0)[:-1].tolist())
    z = noise_of(shot(1), 2)
    for step, (t, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False), start=1):
        drawn = generator_of(shot(1), step)
        z = scheduler.step(torch.tanh(z) * (1 + sigma), t, z, generator=drawn).prev_sample
    torch.testing.assert_close(made[1], z, atol=1e-5, rtol=1e-5)


def test_fresh_noise_is_another_in_every_step_and_the_same_in_every_run():
    drawn = [noise_of(shot(1), 2, step) for step in range(4)]
    again = [noise_of(shot(1), 2, step) for step in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in combinations(drawn, 2))


def test_heuns_method_is_of_second_order_and_eulers_of_first():
    # dz / dsigma = z has the solution z(0) = z(1) / e.
    oracle = FieldBase(lambda z, sigma, k: z)

    def error(solver: str, steps: int) -> float:
        made, _ = make(
            together("", story(1)), Sampling(steps, shift=1.0, guidance=1.0, solver=solver), oracle
        )
        exact = noise_of(shot(1), 2).double() * torch.exp(torch.tensor(-1.0, dtype=torch.float64))
        return (made[1].double() - exact).abs().max().item()

    assert error("euler", 8) / error("euler", 16) == pytest.approx(2, rel=0.15)
    assert error("heun", 8) / error("heun", 16) == pytest.approx(4, rel=0.25)
    assert error("heun", 8) < error("euler", 16)


def test_a_callback_hears_of_every_step_with_its_place_and_noise_level():
    seen: list[Step] = []
    make(causal(story(2)), on_step=seen.append)
    assert [(s.shots, s.round, s.rounds, s.step, s.steps) for s in seen] == [
        ((k,), k, 2, i, 3) for k in (1, 2) for i in (1, 2, 3)
    ]
    assert [s.sigma for s in seen[:3]] == pytest.approx([1.0, 0.8, 0.5])
    assert all(s.clean.keys() == set(s.shots) for s in seen)


def test_a_guidance_of_one_runs_one_branch_and_others_two():
    for guidance, branches in ((1.0, 1), (2.0, 2), (0.0, 2)):
        base = spy()
        _, last = make(causal(story(1)), Sampling(steps=1, guidance=guidance), base)
        assert {len(layout.scenes) for _, _, layout in base.calls} == {branches} and len(
            last.contexts
        ) == branches


# -- errors -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "0 steps make no picture; use 1 or more"),
        ({"steps": -3}, "-3 steps make no picture"),
        ({"guidance": -1.0}, r"guidance -1.0 and shift 3.0 must be positive"),
        ({"shift": 0.0}, r"guidance 1.5 and shift 0.0 must be positive"),
    ],
)
def test_settings_that_make_no_film_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        Sampling(**settings)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_shared_history_is_that_of_the_pass_with_words_and_the_pass_without_reads_it_too():
    plan, sampling = autoregressive(GLOBAL_PROMPT, story(3)), replace(GUIDED, share_history=True)
    made, finished = make(plan, sampling)
    level, zero = plan.context_sigma, torch.zeros(1, BASE.spec.channels, dtype=torch.float64)
    top, empty = BASE.encode_text([GLOBAL_PROMPT, ""])
    first = Layout.single(global_group(len(top)), rope=BASE.spec.rope)
    _, (history,) = BASE.remember(zero, top, torch.zeros(1), first, "causal", [Context()])
    for planned in plan.shots:
        (text,) = BASE.encode_text([planned.prompt])
        noise = noise_of(planned, BASE.spec.channels).double()

        def after(context: Context, words: Tensor) -> Layout:
            group = Group(planned.shot, len(words), planned.grid)  # noqa: B023 - called within the round
            return Layout.single(*context.groups, group, past=len(context.groups), rope=BASE.spec.rope)

        z = noise
        for now, then in pairwise(sigma_table(sampling.steps, sampling.shift).double().tolist()):
            sigma = torch.tensor([now])
            shots = history.select([s for s in history.shots if s != GLOBAL])
            v, w = (
                BASE.velocity(z, words, sigma, after(context, words), "causal", [context])
                for context, words in ((history, text), (shots, empty))
            )
            z = z + (then - now) * (w + sampling.guidance * (v - w))
        assert torch.allclose(made[planned.shot], z, rtol=0, atol=1e-6)
        held = torch.lerp(z, noise, level)
        where = after(history, text)
        _, (history,) = BASE.remember(held, text, torch.tensor([level]), where, "causal", [history])
    apart, own = make(plan, GUIDED)
    assert not torch.allclose(made[3], apart[3], atol=1e-4) and torch.equal(made[1], apart[1])
    assert len(finished.contexts) == 1 and finished.contexts[0].shots == (GLOBAL, 1, 2, 3)
    assert finished.contexts[0].nbytes == own.contexts[0].nbytes


@pytest.mark.parametrize("reuse", [False, True])
def test_a_story_goes_on_from_a_shared_history_as_if_it_had_been_told_at_once(reuse):
    sampling = replace(GUIDED, share_history=True, reuse_steps=reuse)
    whole, _ = make(autoregressive(GLOBAL_PROMPT, story(3)), sampling)
    made, last = make(autoregressive(GLOBAL_PROMPT, story(2)), sampling)
    shots = [replace(s, given=made.get(s.shot)) for s in story(3)]
    more, _ = make(autoregressive(GLOBAL_PROMPT, shots), sampling, contexts=last.contexts)
    assert torch.allclose(more[3], whole[3], rtol=0, atol=EXACT)


def test_contexts_of_another_number_of_branches_are_refused():
    _, last = make(causal(story(1)))
    with pytest.raises(UserError, match=r"the saved context has 1 branches, but guidance 2.5 needs 2"):
        make(causal(story(2)), GUIDED, contexts=last.contexts)


# -- bases that read one text a shot ------------------------------------------------------------------------------------
def test_a_base_that_reads_one_text_a_shot_gets_the_global_prompt_before_each_and_no_group_of_it():
    base = spy()
    base.spec = replace(base.spec, prompts="joined", cut="Cut. ")
    shots = [shot(1, "[SHOT CUT] a dog waves"), shot(2, "a dog walks")]
    plan = together("a dog.", shots)
    list(denoise(base, plan, Sampling(steps=1, guidance=1.0)))
    apart = base.encode_text(["a dog. Cut. a dog waves", "a dog. a dog walks"])
    ((_, _, layout),) = base.calls
    assert [(g.shot, g.text) for g in layout.groups] == [(1, len(apart[0])), (2, len(apart[1]))]


def test_a_prompt_that_is_too_long_only_together_with_the_global_one_is_named():
    base = spy()
    base.spec = replace(base.spec, prompts="joined", max_text_tokens=7)
    plan = together("a dog and a cat", [shot(1, "waves"), shot(2, "a cat walks")])
    with pytest.raises(UserError, match=r"^shot 2: its prompt and the global prompt have .* reads 7"):
        list(denoise(base, plan, Sampling(steps=1)))


@pytest.mark.parametrize("reuse", [False, True])
def test_a_narrow_cache_moves_what_reads_it_a_little(reuse):
    plan, sampling = autoregressive(GLOBAL_PROMPT, story(3)), replace(PLAIN, reuse_steps=reuse)
    exact, _ = make(plan, sampling)
    moved = {}
    for dtype, torch_dtype in (("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)):
        made, last = make(plan, replace(sampling, cache_dtype=dtype), cache_device="cpu")
        memories = last.contexts[0].memories
        assert {m.keys.dtype for m in memories} == {torch_dtype} and {m.group.shot for m in memories} >= {
            1,
            2,
        }
        moved[dtype] = float((made[3] - exact[3]).abs().max() / exact[3].std())
    # The global prompt is in the cache before the first shot is made.
    assert 0 < moved["bf16"] < 0.01 and moved["bf16"] < moved["fp8"] < 0.2
    own, _ = make(plan, replace(sampling, cache_dtype="own"))
    assert all(torch.equal(own[k], exact[k]) for k in exact)
