from collections.abc import AsyncIterator, Iterator

import pytest

from .harness import BUSES, GUARDS, BusBackend, BusRig, GuardsBackend, GuardsRig


@pytest.fixture(scope="session", params=BUSES, ids=lambda backend: backend.abilities.name)
def bus_backend(request: pytest.FixtureRequest) -> Iterator[BusBackend]:
    assert isinstance(request.param, BusBackend)
    with request.param.serving():
        yield request.param


@pytest.fixture(scope="session", params=GUARDS, ids=lambda backend: backend.abilities.name)
def guards_backend(request: pytest.FixtureRequest) -> Iterator[GuardsBackend]:
    assert isinstance(request.param, GuardsBackend)
    with request.param.serving():
        yield request.param


@pytest.fixture
async def bus_rig(bus_backend: BusBackend) -> AsyncIterator[BusRig]:
    async with bus_backend.rig() as rig:
        yield rig


@pytest.fixture
async def guards_rig(guards_backend: GuardsBackend) -> AsyncIterator[GuardsRig]:
    async with guards_backend.rig() as rig:
        yield rig
