"""The platform with a process for each function and a real bus, as in the cloud, on one machine.

On `redis`, functions that messages set off are workers. On `pubsub`, all are served by functions-framework, and what the emulator
holds is pushed to them in the service's own form. The gateway and the sweeper are called over HTTP in both.

What is not given is brought along: the embedded database, a Redis, the emulator. Processes that end are started again. Everything
that matters is in the database and in the bus: kill any process at any time.
"""

import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from shared.clock import SystemClock
from shared.config import Settings
from shared.local.home import Home, open_log
from shared.local.platform import is_guarded, prepare_database
from shared.local.processes import Process
from shared.local.servers import emulator_command, redis_command
from shared.runtime import Runtime
from shared.runtime.spec import FunctionSpec
from shared.telemetry import describe_error

if TYPE_CHECKING:
    import httpx

    from shared.bus.pubsub import PubSubBus

_log = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[2]
_LOCALHOST = "127.0.0.1"
_PROJECT = "local"
ENVIRONMENT_FILE = "environment"
"""In the home folder, while the platform runs."""
_SWEEP_SECONDS = 1.0
_GRACE_SECONDS = 12.0
"""Workers take up to 10 s to end."""
_POLL_SECONDS = 0.02
_DATABASE = ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")
_GATEWAY, _SWEEPER = "gateway", "sweeper"


class Fleet:
    """The running processes: servers and functions by name. Open one with `open_fleet`."""

    def __init__(self, settings: Settings, *, bus: str, log: TextIO, variables: Mapping[str, str]) -> None:
        self.settings = settings
        self.bus = bus
        self.environment: dict[str, str] = {}
        """What the functions are told beyond our own environment."""
        self.servers: dict[str, Process] = {}
        self.functions: dict[str, Process] = {}
        self.addresses: dict[str, str] = {}
        """Where the served functions answer."""
        self.guarded = False
        """Whether callers of the API have to show who they are."""
        self._log = log
        self._variables = variables

    async def start(self, specs: Mapping[str, FunctionSpec], database_url: str, *, host: str, port: int) -> None:
        """Start what is not given, then every function at once. The gateway listens on `host` and `port`, 0 for any free one."""
        settings = self.settings
        self.environment = {
            "AGENT_TEAM_HOME": str(settings.agent_team_home.resolve()),
            "AGENT_BUS_PROVIDER": self.bus,
            "DATABASE_URL": database_url,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "GUARDS_BACKEND": settings.guards_backend if settings.guards_backend != "memory" else "redis",
            "REDIS_URL": await self._redis(),
            **self._variables,
        }
        if self.bus == "pubsub":
            self.environment["GCP_PROJECT_ID"] = settings.gcp_project_id or _PROJECT
            self.environment["PUBSUB_EMULATOR_HOST"] = settings.pubsub_emulator_host or await self._emulator()
            await self._create_subscriptions(specs)
        ports = dict(zip(specs, _free_ports(len(specs)), strict=True))
        self.addresses[_GATEWAY] = _address(host, port or ports[_GATEWAY])
        for name, spec in specs.items():
            free = ports[name]
            if self.bus == "redis" and spec.subscriptions():
                self.functions[name] = self._worker(name, spec)
            elif name == _GATEWAY:
                self.functions[name] = self._server(name, spec, host, port or free)
            else:
                self.functions[name] = self._server(name, spec, _LOCALHOST, free)
        await asyncio.gather(*(process.start() for process in self.functions.values()))

    async def stop(self) -> None:
        """End the functions in order, then the servers that they stand on."""
        for processes in (self.functions, self.servers):
            await asyncio.gather(*(process.stop(grace_seconds=_GRACE_SECONDS) for process in processes.values()))

    async def _redis(self) -> str:
        if self.settings.redis_url is not None:
            return self.settings.redis_url.get_secret_value()
        [port], password = _free_ports(1), secrets.token_hex(24)
        folder = self.settings.agent_team_home.resolve() / "redis"
        # A claim that outlived the emulator's messages would call work done whose reply was lost with them.
        command, configuration = redis_command(folder, port, password, durable=self.bus == "redis")
        await self._start_server("redis", command, port, {}, configuration)
        return f"redis://:{password}@{_LOCALHOST}:{port}/0"

    async def _emulator(self) -> str:
        [port] = _free_ports(1)
        command, variables = await asyncio.to_thread(emulator_command, port)
        await self._start_server("pubsub", command, port, variables, None)
        return f"{_LOCALHOST}:{port}"

    async def _start_server(
        self, name: str, command: list[str], port: int, variables: Mapping[str, str], input: bytes | None
    ) -> None:
        process = Process(
            f"server {name}",
            command,
            environment={**os.environ, **variables},
            log=self._log,
            ready=lambda: _listens(_LOCALHOST, port),
            input=input,
        )
        self.servers[name] = process
        await process.start()

    async def _create_subscriptions(self, specs: Mapping[str, FunctionSpec]) -> None:
        from shared.bus.pubsub import create
        from shared.bus.pubsub_pull import LEASE_SECONDS

        await create(
            self.environment["GCP_PROJECT_ID"],
            # What the emulator handed to a pull that broke off comes again soon; the bridge extends what is being worked on.
            [replace(one, ack_deadline_seconds=LEASE_SECONDS) for spec in specs.values() for one in spec.subscriptions()],
            emulator=self.environment["PUBSUB_EMULATOR_HOST"],
        )

    def _told(self, spec: FunctionSpec) -> dict[str, str]:
        """A function's environment. As in the cloud, one without the database among its secrets asks the gateway instead."""
        told = {**os.environ, **self.environment}
        if "DATABASE_URL" not in spec.secrets:
            told = {name: value for name, value in told.items() if name not in _DATABASE}
        if "AGENT_TEAM_API_KEY" in spec.secrets:
            told["AGENT_TEAM_URL"] = self.addresses[_GATEWAY]
        return told

    def _worker(self, name: str, spec: FunctionSpec) -> Process:
        command = [sys.executable, "-m", "shared.cli", "worker", "--function", name]
        return Process(f"function {name}", command, environment=self._told(spec), log=self._log, ready=None)

    def _server(self, name: str, spec: FunctionSpec, host: str, port: int) -> Process:
        self.addresses[name] = _address(host, port)
        host = f"[{host}]" if ":" in host else host
        source = ["--target", name, "--source", str(_ROOT / "main.py"), "--host", host, "--port", str(port)]
        return Process(
            f"function {name}",
            [sys.executable, "-m", "functions_framework", *source],
            environment=self._told(spec),
            log=self._log,
            ready=lambda: _answers(self.addresses[name]),
        )


@asynccontextmanager
async def open_fleet(
    settings: Settings, *, bus: str, host: str = _LOCALHOST, port: int = 0, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Fleet]:
    """Start everything, yield, and end it in order. The gateway listens on `host` and `port`.

    `variables` are what the functions are told beside what they find in the environment.

    Raises ConfigurationError for whatever is not as it must be.
    """
    # We start processes beside our connection to the emulator, and none of them uses it: gRPC need not talk about that.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
    async with AsyncExitStack() as stack:
        home = Home(settings.agent_team_home)
        stack.callback(home.release)
        log = stack.enter_context(open_log(settings.agent_team_home))
        live = Runtime(settings)
        stack.push_async_callback(live.close)
        await prepare_database(live)
        fleet = Fleet(settings, bus=bus, log=log, variables={} if variables is None else variables)
        fleet.guarded = await is_guarded(live)
        stack.push_async_callback(fleet.stop)
        await fleet.start(live.functions, live.database_url, host=host, port=port)
        await stack.enter_async_context(_background(fleet, live))
        file = settings.agent_team_home.resolve() / ENVIRONMENT_FILE
        _write_environment(file, fleet.environment)
        stack.callback(file.unlink, missing_ok=True)
        yield fleet


def _write_environment(file: Path, variables: Mapping[str, str]) -> None:
    """What a shell reads to have other commands speak with this platform. It holds passwords: for its owner alone."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as writing:
        writing.writelines(f"{name}={shlex.quote(value)}\n" for name, value in variables.items() if name != "PYTHONPATH")


@asynccontextmanager
async def _background(fleet: Fleet, live: Runtime) -> AsyncIterator[None]:
    """What the cloud does by itself: the scheduler's calls, and Pub/Sub's pushes."""
    import httpx

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None))
        if fleet.bus == "pubsub":
            bus = await stack.enter_async_context(_pulling(fleet))
            from shared.local.bridge import carry

            if "pubsub" in fleet.servers:
                # The emulator has just been started and holds nothing: whatever was running has no message any more.
                recovering = Runtime(live.settings, bus=bus, store=live.store)
                await recovering.dispatcher("local").apply([{"type": "tick", "recover": True, "limit": 1_000_000}])
            for name, spec in live.functions.items():
                for subscription in spec.subscriptions():
                    await carry(bus, subscription, fleet.addresses[name], client)
        sweeping = asyncio.create_task(_sweep(client, fleet.addresses[_SWEEPER]), name="scheduler")
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)


@asynccontextmanager
async def _pulling(fleet: Fleet) -> "AsyncIterator[PubSubBus]":
    from shared.bus.pubsub import PubSubBus

    bus = PubSubBus(
        fleet.environment["GCP_PROJECT_ID"],
        SystemClock(),
        max_bytes=fleet.settings.max_payload_bytes,
        emulator=fleet.environment["PUBSUB_EMULATOR_HOST"],
    )
    try:
        yield bus
    finally:
        await bus.close()


async def _sweep(client: "httpx.AsyncClient", url: str) -> None:
    """Cloud Scheduler's calls; each second instead of each minute."""
    import httpx

    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            answer = await client.post(url, timeout=60)
            if answer.is_error:
                _log.warning("the sweeper answered with status %d", answer.status_code)
        except httpx.HTTPError as error:
            # It may just be starting again, and the next sweep finds all of this one's work.
            _log.warning("sweep failed", extra={"error": describe_error(error)})


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, for now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server((_LOCALHOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


async def _listens(host: str, port: int) -> None:
    """Return once somebody takes connections there."""
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(_POLL_SECONDS)
        else:
            writer.close()
            return


async def _answers(url: str) -> None:
    """Return once functions-framework answers there, which it does once the function is loaded."""
    import httpx

    async with httpx.AsyncClient(timeout=1) as client:
        while True:
            try:
                await client.get(f"{url}/robots.txt")  # not handed to the function
            except httpx.HTTPError:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return
