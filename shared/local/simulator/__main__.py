"""A simulated Gemini in a process of its own: prints its address once it answers, and ends with SIGTERM or Ctrl-C.

python -m shared.local.simulator --port 8090 --base-seconds 0.5 --limit gemini-2.5-pro=3,5,10000,2000000
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from shared.ai.catalog import Limit
from shared.errors import ConfigurationError
from shared.local.simulator.opening import open_simulator
from shared.local.simulator.settings import SimulatorSettings, served_models

_DEFAULTS = SimulatorSettings()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes. Returns the exit code."""
    given = _parser().parse_args(arguments)
    settings = SimulatorSettings(
        models=served_models() | dict(given.limit),
        keys=frozenset(given.key) if given.key else None,
        tolerance_seconds=given.tolerance_seconds,
        base_seconds=given.base_seconds,
        seconds_per_token=given.seconds_per_token,
        thinking_tokens=given.thinking_tokens,
        cached_share=given.cached_share,
        seed=given.seed,
    )
    try:
        asyncio.run(_serve(settings, given.port))
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


async def _serve(settings: SimulatorSettings, port: int) -> None:
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with open_simulator(settings, port=port) as simulator:
        sys.stdout.write(f"{simulator.url}\n")
        sys.stdout.flush()
        await ending.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shared.local.simulator", description="A simulated Gemini on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0, the default, for any free one")
    parser.add_argument(
        "--limit",
        type=_limit,
        action="append",
        default=[],
        metavar="MODEL=QPS,BURST[,PER_DAY[,TOKENS_PER_MINUTE]]",
        help="another limit for a model of the catalog, or one more model; may be repeated",
    )
    parser.add_argument("--key", action="append", help="a key that is accepted; may be repeated; without any, every key is")
    for name in ("tolerance_seconds", "base_seconds", "seconds_per_token", "cached_share"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(_DEFAULTS, name), metavar="NUMBER")
    for name in ("thinking_tokens", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(_DEFAULTS, name), metavar="NUMBER")
    return parser


def _limit(given: str) -> tuple[str, Limit]:
    model, _, numbers = given.partition("=")
    try:
        qps, burst, *rest = numbers.split(",")
        per_day, tokens_per_minute = [int(number) if number else None for number in (*rest, "", "")][:2]
        return model, Limit(float(qps), float(burst), per_day, tokens_per_minute)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given!r} is not MODEL=QPS,BURST[,PER_DAY[,TOKENS_PER_MINUTE]]") from None


if __name__ == "__main__":
    sys.exit(main())
