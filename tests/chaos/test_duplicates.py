"""Every message three times and in disorder: the same results, from the same number of model calls and messages."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.ai.offline import OfflineModel
from shared.bus.chaos import Chaos
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.telemetry import metrics
from tests.support.doubles import CountingModel
from tests.support.reports import brief, outputs, platform, write_reports

COUNT = 20


async def written(database: str, home: Path, chaos: Chaos | None) -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Twenty reports at once: the workflows, how often each prompt was asked, how many messages each topic got."""
    bus = MemoryBus(SystemClock(), chaos=chaos)
    model = CountingModel(OfflineModel())
    async with platform(database, home, model=model, bus=bus, MAX_CONCURRENT_PIPELINES=str(COUNT)) as opened:
        workflows = await write_reports(opened, [brief(number) for number in range(COUNT)])
        await bus.idle()
        failures = await opened.runtime.store.recent(status="FAILED")
    assert failures == []
    return workflows, Counter(model.prompts), bus.published


@pytest.mark.parametrize("seed", [1, 2])
async def test_copies_and_disorder_change_nothing(database: str, tmp_path: Path, seed: int) -> None:
    calm, calm_calls, calm_messages = await written(database, tmp_path / "calm", None)
    duplicates = metrics.value("delivery.duplicate")
    chaos = Chaos(seed, duplicates=3, reorder=True, delay_seconds_max=0.01)
    wild, wild_calls, wild_messages = await written(database, tmp_path / "wild", chaos)
    assert {one["status"] for one in (*calm, *wild)} == {"SUCCESS"}
    assert [outputs(one) for one in wild] == [outputs(one) for one in calm]
    assert [one["output"] for one in wild] == [one["output"] for one in calm]
    assert [one["usage"] for one in wild] == [one["usage"] for one in calm]
    assert wild_calls == calm_calls
    assert wild_messages == calm_messages
    # Two copies of each message were recognised, or there was no chaos.
    assert metrics.value("delivery.duplicate") - duplicates >= 2 * wild_messages.total()
