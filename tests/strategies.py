"""Scenes, and parts of scenes, for property tests."""

from hypothesis import strategies as st

from longshot.scene import Character, Reference, Scene, Shot

ANY_TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=60)
"""Every text that a UTF-8 file can hold, line ends and control characters included."""

WORDS = st.lists(
    st.sampled_from("Nora walks by a red boat at dusk and waves café 雪 ☃ it's".split()),
    min_size=1,
    max_size=8,
)
LINES = WORDS.map(" ".join)
"""One line of plain words: what every format holds."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(ANY_TEXT, children, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(ANY_TEXT, json_values, max_size=2)
lengths = st.floats(min_value=0.01, max_value=1e4)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    start = draw(st.none() | st.floats(0, 100))
    stop = draw(st.none() | st.floats(0.5, 100).map(lambda length: (start or 0) + length))
    role = draw(st.sampled_from(["identity", "environment", "first_frame", "last_frame", "video"]))
    path = draw(ANY_TEXT.filter(bool))
    return Reference(
        role=role, path=path, character=draw(st.none() | st.integers(1, 9)), start=start, stop=stop
    )


@st.composite
def shots(draw: st.DrawFn) -> Shot:
    length = draw(st.sampled_from(["none", "seconds", "frames"]))
    return Shot(
        prompt=draw(ANY_TEXT),
        cut=draw(st.booleans()),
        seconds=draw(lengths) if length == "seconds" else None,
        frames=draw(st.integers(1, 10**6)) if length == "frames" else None,
        references=draw(st.lists(references(), max_size=2)),
        seed=draw(st.none() | st.integers(0, 2**63)),
        take=draw(st.integers(0, 99)),
        audio=draw(st.none() | ANY_TEXT),
        extra=draw(extras),
    )


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    ids = draw(st.lists(st.integers(1, 99), unique=True, max_size=3))
    return Scene(
        title=draw(ANY_TEXT),
        style=draw(ANY_TEXT),
        seed=draw(st.integers(0, 2**63)),
        characters=[Character(id=i, name=draw(ANY_TEXT), description=draw(ANY_TEXT)) for i in ids],
        environment=draw(ANY_TEXT),
        story=draw(ANY_TEXT),
        shots=draw(st.lists(shots(), min_size=1, max_size=4)),
        notes=draw(ANY_TEXT),
        extra=draw(extras),
    )


@st.composite
def plain_scenes(draw: st.DrawFn, *, cast: bool, place: bool, story: bool, cuts: bool, frames: bool) -> Scene:
    """Scenes of plain words with only those parts that a format holds; the first shot is always a cut."""
    count = draw(st.integers(0, 3)) if cast else 0
    names = draw(st.permutations(["Mia", "Otto", "Zoe"]))
    num_shots = draw(st.integers(1, 24))
    prompt = st.one_of(LINES, *([LINES.map(lambda line: f"Character {count} {line}")] if count else []))
    return Scene(
        characters=[
            Character(id=k, name=names[k - 1], description="a puppet in " + draw(LINES))
            for k in range(1, count + 1)
        ],
        environment=draw(LINES | st.just("")) if place else "",
        story=draw(LINES) if story else "",
        shots=[
            Shot(
                prompt=draw(prompt),
                cut=k == 0 or not cuts or draw(st.booleans()),
                frames=draw(st.integers(1, 200)) if frames else None,
            )
            for k in range(num_shots)
        ],
    )
