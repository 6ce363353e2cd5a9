"""What shared.guards.base.Idempotency promises, of every back end."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.guards import Claim, Done, Idempotency, InFlight, New

from .harness import GuardsBackend, GuardsRig

LEASE, TTL = 10.0, 100.0


async def claim(rig: GuardsRig, key: str = "k", *, lease: float = LEASE, ttl: float = TTL) -> Claim:
    return await rig.guards.idempotency.claim(key, lease_seconds=rig.time.of(lease), ttl_seconds=rig.time.of(ttl))


async def token(rig: GuardsRig, key: str = "k", *, lease: float = LEASE) -> str:
    answer = await claim(rig, key, lease=lease)
    assert isinstance(answer, New)
    return answer.token


@pytest.fixture
def idempotency(guards_rig: GuardsRig) -> Idempotency:
    return guards_rig.guards.idempotency


async def test_of_fifty_claimants_one_gets_the_claim(guards_rig: GuardsRig) -> None:
    answers = await asyncio.gather(*(claim(guards_rig) for _ in range(50)))

    assert sum(isinstance(answer, New) for answer in answers) == 1
    assert sum(isinstance(answer, InFlight) for answer in answers) == 49


async def test_fifty_keys_are_claimed_independently_under_different_tokens(guards_rig: GuardsRig) -> None:
    tokens = await asyncio.gather(*(token(guards_rig, f"k{n}") for n in range(50)))

    assert len(set(tokens)) == 50


async def test_a_claim_in_flight_says_when_its_lease_ends(guards_rig: GuardsRig) -> None:
    await token(guards_rig)
    await guards_rig.time.pass_by(4)

    answer = await claim(guards_rig)

    assert isinstance(answer, InFlight)
    assert 0 < answer.seconds <= guards_rig.time.of(6)
    if guards_rig.abilities.moves_clock:
        assert answer.seconds == pytest.approx(6)


async def test_completed_work_is_remembered_with_its_result(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)

    assert await idempotency.complete("k", token=mine, result=b"\x00reply\xff")

    assert await claim(guards_rig) == Done(b"\x00reply\xff")
    await guards_rig.time.pass_by(LEASE + 1)
    assert await claim(guards_rig) == Done(b"\x00reply\xff"), "a lease means nothing to completed work"


@pytest.mark.parametrize("result", [None, b""])
async def test_no_result_and_an_empty_result_are_told_apart(
    guards_rig: GuardsRig, idempotency: Idempotency, result: bytes | None
) -> None:
    await idempotency.complete("k", token=await token(guards_rig), result=result)

    assert await claim(guards_rig) == Done(result)


async def test_the_holder_may_replace_and_drop_the_result_even_after_its_lease(
    guards_rig: GuardsRig, idempotency: Idempotency
) -> None:
    mine = await token(guards_rig)
    await idempotency.complete("k", token=mine, result=b"one")
    assert await idempotency.complete("k", token=mine, result=b"two")
    assert await claim(guards_rig) == Done(b"two")
    await guards_rig.time.pass_by(LEASE + 1)

    assert await idempotency.complete("k", token=mine, result=None)

    assert await claim(guards_rig) == Done(None)


async def test_completed_work_is_forgotten_after_its_time(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)
    await idempotency.complete("k", token=mine, result=b"r")
    await guards_rig.time.pass_by(TTL + 1)

    assert not await idempotency.complete("k", token=mine, result=b"late")
    assert isinstance(await claim(guards_rig), New)


async def test_a_claim_whose_lease_ended_is_taken_over_by_one_of_fifty(guards_rig: GuardsRig) -> None:
    mine = await token(guards_rig)
    await guards_rig.time.pass_by(LEASE + 1)

    answers = await asyncio.gather(*(claim(guards_rig) for _ in range(50)))

    [winner] = [answer for answer in answers if isinstance(answer, New)]
    assert winner.token != mine


@pytest.mark.parametrize("taken_over", [True, False])
async def test_whose_lease_ended_can_neither_complete_nor_release(
    guards_rig: GuardsRig, idempotency: Idempotency, taken_over: bool
) -> None:
    mine = await token(guards_rig)
    await guards_rig.time.pass_by(LEASE + 1)
    theirs = await token(guards_rig) if taken_over else None

    assert not await idempotency.complete("k", token=mine, result=b"late")
    assert not await idempotency.release("k", token=mine)

    if theirs is None:
        assert isinstance(await claim(guards_rig), New)
    else:
        assert isinstance(await claim(guards_rig), InFlight)
        assert await idempotency.complete("k", token=theirs, result=b"theirs")
        assert await claim(guards_rig) == Done(b"theirs")


async def test_a_renewed_claim_is_held_from_then_on(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)
    for _ in range(3):
        await guards_rig.time.pass_by(8)
        assert await idempotency.renew("k", token=mine, lease_seconds=guards_rig.time.of(LEASE))

    await guards_rig.time.pass_by(6)
    answer = await claim(guards_rig)
    assert isinstance(answer, InFlight)
    assert 0 < answer.seconds <= guards_rig.time.of(4)
    assert await idempotency.complete("k", token=mine, result=b"r")


async def test_renewing_outlives_the_records_life(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    answer = await claim(guards_rig, lease=5, ttl=6)
    assert isinstance(answer, New)
    await guards_rig.time.pass_by(4)
    assert await idempotency.renew("k", token=answer.token, lease_seconds=guards_rig.time.of(20))
    await guards_rig.time.pass_by(15)

    assert isinstance(await claim(guards_rig), InFlight)


async def test_whose_lease_ended_cannot_renew_it(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)
    await guards_rig.time.pass_by(LEASE + 1)

    assert not await idempotency.renew("k", token=mine, lease_seconds=LEASE)
    theirs = await token(guards_rig)
    assert not await idempotency.renew("k", token=mine, lease_seconds=LEASE)
    assert not await idempotency.renew("unknown", token=mine, lease_seconds=LEASE)

    assert await idempotency.complete("k", token=theirs, result=b"theirs")
    assert not await idempotency.renew("k", token=theirs, lease_seconds=LEASE), "work that is done has no lease"
    assert await claim(guards_rig) == Done(b"theirs")


async def test_a_released_claim_can_be_claimed_at_once_under_a_new_token(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)

    assert await idempotency.release("k", token=mine)

    theirs = await token(guards_rig)
    assert theirs != mine
    assert not await idempotency.complete("k", token=mine, result=b"late")
    assert not await idempotency.release("k", token=mine)
    assert await idempotency.complete("k", token=theirs, result=None)


async def test_a_claim_is_released_once(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)

    assert sorted(await asyncio.gather(*(idempotency.release("k", token=mine) for _ in range(5)))) == [False] * 4 + [True]


async def test_completed_work_cannot_be_released(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    mine = await token(guards_rig)
    await idempotency.complete("k", token=mine, result=b"r")

    assert not await idempotency.release("k", token=mine)
    assert await claim(guards_rig) == Done(b"r")


@pytest.mark.parametrize("wrong", ["", "0", "nobody"])
async def test_a_wrong_token_and_an_unknown_key_change_nothing(guards_rig: GuardsRig, idempotency: Idempotency, wrong: str) -> None:
    mine = await token(guards_rig)

    assert not await idempotency.complete("k", token=wrong, result=b"x")
    assert not await idempotency.release("k", token=wrong)
    assert not await idempotency.complete("unknown", token=mine, result=b"x")
    assert not await idempotency.release("unknown", token=mine)

    assert isinstance(await claim(guards_rig), InFlight)
    assert isinstance(await claim(guards_rig, "unknown"), New)


@pytest.mark.parametrize("wrong", ["", "0", "nobody"])
async def test_a_released_claim_belongs_to_no_token(guards_rig: GuardsRig, idempotency: Idempotency, wrong: str) -> None:
    await idempotency.release("k", token=await token(guards_rig))

    assert not await idempotency.complete("k", token=wrong, result=b"x")
    assert not await idempotency.release("k", token=wrong)
    assert isinstance(await claim(guards_rig), New)


async def test_a_lease_longer_than_the_records_life_holds(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    answer = await claim(guards_rig, lease=50, ttl=5)
    assert isinstance(answer, New)
    await guards_rig.time.pass_by(20)

    assert isinstance(await claim(guards_rig), InFlight)
    assert await idempotency.complete("k", token=answer.token, result=b"r")


async def test_what_happens_to_one_key_leaves_the_others_untouched(guards_rig: GuardsRig, idempotency: Idempotency) -> None:
    done, running, other = [await token(guards_rig, key, lease=50) for key in ("done", "running", "other")]
    await idempotency.complete("done", token=done, result=b"d")

    await idempotency.release("other", token=other)
    await idempotency.complete("other", token=await token(guards_rig, "other"), result=b"o")

    assert await claim(guards_rig, "done") == Done(b"d")
    assert isinstance(await claim(guards_rig, "running"), InFlight)
    assert await idempotency.complete("running", token=running, result=b"r")


@dataclass
class ModelRecord:
    owner: str | None
    lease_until: float
    forgotten_at: float
    results: list[bytes | None]
    """Empty until completed."""


KEYS = st.sampled_from(["a", "b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), KEYS, st.integers(1, 6), st.integers(1, 30)),
        st.tuples(st.just("complete"), KEYS, st.integers(0, 3), st.sampled_from([None, b"x", b"y"])),
        st.tuples(st.just("release"), KEYS, st.integers(0, 3), st.none()),
        st.tuples(st.just("renew"), KEYS, st.integers(0, 3), st.integers(1, 6)),
        st.tuples(st.just("wait"), KEYS, st.integers(1, 8), st.none()),
    ),
    max_size=40,
)


class ModelIdempotency:
    """The promises, spelled out as simply as possible."""

    def __init__(self) -> None:
        self.now = 0.0
        self.records: dict[str, ModelRecord] = {}

    def known(self, key: str) -> ModelRecord | None:
        record = self.records.get(key)
        return record if record is not None and self.now < record.forgotten_at else None

    def claim(self, key: str, lease: float, ttl: float) -> str:
        record = self.known(key)
        if record is not None and record.results:
            return f"Done {record.results[0]!r}"
        if record is not None and record.owner is not None and self.now < record.lease_until:
            return f"InFlight {record.lease_until - self.now:.3f}"
        return "New"

    def holds(self, key: str, token: str) -> ModelRecord | None:
        record = self.known(key)
        if record is None or record.owner != token:
            return None
        return record if record.results or self.now < record.lease_until else None


def said(answer: Claim) -> str:
    match answer:
        case New():
            return "New"
        case InFlight(seconds):
            return f"InFlight {seconds:.3f}"
        case Done(result):
            return f"Done {result!r}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
async def test_any_sequence_of_calls_answers_as_the_model_does(  # noqa: C901 - one branch per operation
    guards_backend: GuardsBackend, steps: list[tuple[str, str, int, object]]
) -> None:
    if guards_backend.enough("idempotency"):
        return
    async with guards_backend.rig() as rig:
        model, tokens = ModelIdempotency(), ["none"]
        idempotency = rig.guards.idempotency
        for what, key, number, more in steps:
            held = tokens[-1 - number % len(tokens)]
            if what == "wait":
                if rig.abilities.moves_clock:
                    await rig.time.pass_by(number)
                    model.now += number
            elif what == "claim":
                assert isinstance(more, int)
                lease, ttl = (number, more) if rig.abilities.moves_clock else (1000, 1000)
                expected = model.claim(key, lease, ttl)
                answer = await claim(rig, key, lease=lease, ttl=ttl)
                assert said(answer).split()[0] == expected.split()[0]
                if rig.abilities.moves_clock:
                    assert said(answer) == expected
                if isinstance(answer, New):
                    assert answer.token not in tokens
                    tokens.append(answer.token)
                    model.records[key] = ModelRecord(answer.token, model.now + lease, model.now + max(lease, ttl), [])
            elif what == "complete":
                assert more is None or isinstance(more, bytes)
                record = model.holds(key, held)
                assert await idempotency.complete(key, token=held, result=more) is (record is not None)
                if record is not None:
                    record.results = [more]
            elif what == "renew":
                assert isinstance(more, int)
                lease = more if rig.abilities.moves_clock else 1000
                record = model.holds(key, held)
                renewable = record is not None and not record.results
                assert await idempotency.renew(key, token=held, lease_seconds=rig.time.of(lease)) is renewable
                if record is not None and renewable:
                    record.lease_until = model.now + lease
                    record.forgotten_at = max(record.forgotten_at, record.lease_until)
            else:
                record = model.holds(key, held)
                releasable = record is not None and not record.results
                assert await idempotency.release(key, token=held) is releasable
                if releasable:
                    del model.records[key]
