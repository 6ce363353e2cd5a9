"""What shared.guards.base.Breaker promises, of every back end.

With the standard rules: 5 failures open it for 30 s, 2 successes close it, a probe may take 60 s.
"""

import asyncio
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import CircuitOpen
from shared.guards import Breaker

from .harness import Abilities, GuardsBackend, GuardsRig


@pytest.fixture
def breaker(guards_rig: GuardsRig) -> Breaker:
    return guards_rig.guards.breaker


@pytest.fixture
def needs_time(guards_rig: GuardsRig) -> None:
    """The standard pauses are too long to wait for."""
    _skip_unless_time_moves(guards_rig.abilities)


def _skip_unless_time_moves(abilities: Abilities) -> None:
    if not abilities.moves_clock:
        pytest.skip(f"{abilities.name} keeps its own time")


async def fail(breaker: Breaker, times: int = 1, name: str = "m") -> None:
    for _ in range(times):
        await breaker.before(name)
        await breaker.after(name, success=False)


async def succeed(breaker: Breaker, name: str = "m") -> None:
    await breaker.before(name)
    await breaker.after(name, success=True)


async def permitted(breaker: Breaker, name: str = "m") -> bool:
    try:
        await breaker.before(name)
    except CircuitOpen:
        return False
    return True


async def test_a_new_breaker_is_closed(breaker: Breaker) -> None:
    assert await breaker.state("m") == "CLOSED"
    assert all(await asyncio.gather(*(permitted(breaker) for _ in range(50))))


async def test_five_consecutive_failures_open_it(breaker: Breaker) -> None:
    await fail(breaker, 4)
    assert await breaker.state("m") == "CLOSED"
    await fail(breaker)

    assert await breaker.state("m") == "OPEN"
    with pytest.raises(CircuitOpen, match="circuit breaker m") as refused:
        await breaker.before("m")
    assert refused.value.retry_after_seconds == pytest.approx(30, abs=1)


async def test_a_success_in_between_starts_the_count_again(breaker: Breaker) -> None:
    await fail(breaker, 4)
    await succeed(breaker)
    await fail(breaker, 4)

    assert await breaker.state("m") == "CLOSED"


async def test_fifty_failures_at_once_open_it_once(breaker: Breaker) -> None:
    await asyncio.gather(*(breaker.after("m", success=False) for _ in range(50)))

    assert await breaker.state("m") == "OPEN"


async def test_late_reports_say_nothing_about_an_open_breaker(breaker: Breaker) -> None:
    await fail(breaker, 5)
    for _ in range(5):
        await breaker.after("m", success=True)

    assert await breaker.state("m") == "OPEN"


@pytest.mark.usefixtures("needs_time")
async def test_after_the_pause_one_of_fifty_may_probe(guards_rig: GuardsRig, breaker: Breaker) -> None:
    await fail(breaker, 5)
    await guards_rig.time.pass_by(29)
    assert (await breaker.state("m"), await permitted(breaker)) == ("OPEN", False)
    await guards_rig.time.pass_by(1)
    assert await breaker.state("m") == "HALF_OPEN"

    answers = await asyncio.gather(*(permitted(breaker) for _ in range(50)))

    assert sum(answers) == 1
    assert await breaker.state("m") == "HALF_OPEN"
    with pytest.raises(CircuitOpen) as refused:
        await breaker.before("m")
    assert refused.value.retry_after_seconds == 30, "the probe may report any moment: ask again before its lease ends"


@pytest.mark.usefixtures("needs_time")
async def test_two_successful_probes_one_after_the_other_close_it(guards_rig: GuardsRig, breaker: Breaker) -> None:
    await fail(breaker, 5)
    await guards_rig.time.pass_by(30)
    await succeed(breaker)
    assert await breaker.state("m") == "HALF_OPEN"
    await succeed(breaker)

    assert await breaker.state("m") == "CLOSED"
    await fail(breaker, 4)
    assert await breaker.state("m") == "CLOSED", "failures before the opening no longer count"


@pytest.mark.usefixtures("needs_time")
@pytest.mark.parametrize("successes", [0, 1])
async def test_a_failed_probe_opens_it_for_another_pause(guards_rig: GuardsRig, breaker: Breaker, successes: int) -> None:
    await fail(breaker, 5)
    await guards_rig.time.pass_by(30)
    for _ in range(successes):
        await succeed(breaker)
    await fail(breaker)

    assert await breaker.state("m") == "OPEN"
    await guards_rig.time.pass_by(29)
    assert not await permitted(breaker)
    await guards_rig.time.pass_by(1)
    await succeed(breaker)
    assert await breaker.state("m") == "HALF_OPEN", "successes before the failure no longer count"


@pytest.mark.usefixtures("needs_time")
async def test_a_probe_that_never_reports_is_given_up_after_a_minute(guards_rig: GuardsRig, breaker: Breaker) -> None:
    await fail(breaker, 5)
    await guards_rig.time.pass_by(30)
    await breaker.before("m")
    await guards_rig.time.pass_by(59)
    assert not await permitted(breaker)
    await guards_rig.time.pass_by(1)

    assert [await permitted(breaker) for _ in range(3)] == [True, False, False]


@pytest.mark.usefixtures("needs_time")
async def test_reports_without_a_probe_under_way_say_nothing(guards_rig: GuardsRig, breaker: Breaker) -> None:
    await fail(breaker, 5)
    await guards_rig.time.pass_by(30)
    await succeed(breaker)

    await breaker.after("m", success=True)
    await breaker.after("m", success=False)

    assert await breaker.state("m") == "HALF_OPEN"


async def test_what_happens_to_one_breaker_leaves_the_others_untouched(breaker: Breaker) -> None:
    await fail(breaker, 4, "other")
    await fail(breaker, 5)
    await succeed(breaker, "third")

    assert [await breaker.state(name) for name in ("m", "other", "third")] == ["OPEN", "CLOSED", "CLOSED"]
    await fail(breaker, 1, "other")
    assert await breaker.state("other") == "OPEN"


class Event(NamedTuple):
    what: str
    at: float


class ModelBreaker:
    """The rules, read off the whole history each time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.state = "CLOSED"
        self.streak: list[bool] = []
        self.changed_at = 0.0
        self.probe_since: float | None = None

    def look(self) -> str:
        if self.state == "OPEN" and self.now - self.changed_at >= 30:
            self.become("HALF_OPEN")
        if self.probe_since is not None and self.now - self.probe_since >= 60:
            self.probe_since = None
        return self.state

    def become(self, state: str) -> None:
        self.state, self.changed_at, self.streak, self.probe_since = state, self.now, [], None

    def before(self) -> bool:
        if self.look() == "HALF_OPEN" and self.probe_since is None:
            self.probe_since = self.now
            return True
        return self.state == "CLOSED"

    def after(self, success: bool) -> None:
        self.streak.append(success)
        if self.state == "CLOSED" and self.streak[-5:] == [False] * 5:
            self.become("OPEN")
        elif self.state == "HALF_OPEN":
            self.probe_since = None
            if not success:
                self.become("OPEN")
            elif self.streak[-2:] == [True, True]:
                self.become("CLOSED")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from([True, False, False, None])),
        st.tuples(st.just("wait"), st.sampled_from([1, 10, 30, 60])),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
async def test_any_sequence_of_calls_answers_as_the_model_does(
    guards_backend: GuardsBackend, steps: list[tuple[str, int | bool | None]]
) -> None:
    if guards_backend.enough("breaker"):
        return
    async with guards_backend.rig() as rig:
        breaker, model = rig.guards.breaker, ModelBreaker()
        for what, value in steps:
            if what == "wait":
                if rig.abilities.moves_clock and value is not None:
                    await rig.time.pass_by(value)
                    model.now += value
            else:
                may = await permitted(breaker)
                assert may is model.before()
                if may and value is not None:  # None: the caller died before it could report
                    await breaker.after("m", success=bool(value))
                    model.after(bool(value))
            assert await breaker.state("m") == model.look()
