"""What shared.guards.base.Cache promises, of every back end."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from .harness import GuardsBackend, GuardsRig


async def put(rig: GuardsRig, key: str, value: bytes, *, ttl: float = 100.0) -> None:
    await rig.guards.cache.put(key, value, ttl_seconds=rig.time.of(ttl))


async def test_what_was_put_is_there(guards_rig: GuardsRig) -> None:
    await put(guards_rig, "k", b"\x00value\xff")
    await put(guards_rig, "empty", b"")

    assert await guards_rig.guards.cache.get("k") == b"\x00value\xff"
    assert await guards_rig.guards.cache.get("empty") == b""


async def test_what_was_never_put_is_not_there(guards_rig: GuardsRig) -> None:
    assert await guards_rig.guards.cache.get("k") is None


async def test_a_value_is_gone_when_its_time_is_over(guards_rig: GuardsRig) -> None:
    await put(guards_rig, "k", b"v", ttl=5)
    await put(guards_rig, "longer", b"v", ttl=50)
    await guards_rig.time.pass_by(4)
    assert await guards_rig.guards.cache.get("k") == b"v"

    await guards_rig.time.pass_by(1)

    assert await guards_rig.guards.cache.get("k") is None
    assert await guards_rig.guards.cache.get("longer") == b"v"


async def test_a_later_value_replaces_an_earlier_one_and_its_time(guards_rig: GuardsRig) -> None:
    await put(guards_rig, "k", b"old", ttl=5)
    await put(guards_rig, "k", b"new", ttl=50)
    await put(guards_rig, "other", b"untouched")
    await guards_rig.time.pass_by(10)

    assert await guards_rig.guards.cache.get("k") == b"new"
    assert await guards_rig.guards.cache.get("other") == b"untouched"


async def test_of_fifty_values_at_once_one_stays_whole(guards_rig: GuardsRig) -> None:
    values = [bytes([n]) * 1000 for n in range(50)]

    await asyncio.gather(*(put(guards_rig, "k", value) for value in values))

    assert await guards_rig.guards.cache.get("k") in values


async def test_a_value_of_512_kb_passes(guards_rig: GuardsRig) -> None:
    value = b"\x00\xff" * (256 * 1024)
    await put(guards_rig, "k", value)

    assert await guards_rig.guards.cache.get("k") == value


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(1, 20)),
        st.tuples(st.just("get"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 10)),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
async def test_any_sequence_of_calls_answers_as_the_model_does(
    guards_backend: GuardsBackend, steps: list[tuple[str, str, int]]
) -> None:
    if guards_backend.enough("cache"):
        return
    async with guards_backend.rig() as rig:
        now, model = 0, dict[str, tuple[bytes, int]]()
        for number, (what, key, seconds) in enumerate(steps):
            if what == "put":
                model[key] = (str(number).encode(), now + seconds)
                await put(rig, key, str(number).encode(), ttl=seconds if rig.abilities.moves_clock else 1000)
            elif what == "get":
                value, until = model.get(key, (b"", 0))
                assert await rig.guards.cache.get(key) == (value if until > now else None)
            elif rig.abilities.moves_clock:
                await rig.time.pass_by(seconds)
                now += seconds
