"""Settings → live objects, each opened when it is first used: a cold function loads only what it needs."""

import base64
import logging
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.bus import Bus, open_bus
from shared.clock import Clock, SystemClock
from shared.config import Settings
from shared.errors import ConfigurationError
from shared.guards import Guards, open_guards
from shared.keys import FileKeyStore, KeyStore, LiveRing
from shared.runtime.cancellation import Cancellations
from shared.runtime.keyring import local_secret, open_ring
from shared.runtime.pipeline import Link
from shared.runtime.progress import Progress
from shared.runtime.sender import Sender
from shared.telemetry import redact_values

if TYPE_CHECKING:
    from shared.ai import Model, Tool
    from shared.ai.reach import Reach
    from shared.ai.tools.asking import GatewayDocuments
    from shared.http.addresses import Gate
    from shared.outputs import Outputs
    from shared.runtime.dispatcher import Dispatcher
    from shared.runtime.oidc import IdentityTokens, PushTokens
    from shared.runtime.spec import FunctionSpec
    from shared.secrets import SecretManager
    from shared.state import WorkflowStore
    from shared.workflows import Definition

_log = logging.getLogger(__name__)
WORKFLOWS = Path(__file__).parents[2] / "workflows"


class Runtime:
    """The live objects of one process. What is passed in is used as it is; the rest is opened as the settings say.

    `serves` names the functions of the process; None is the whole platform on one machine.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        bus: Bus | None = None,
        guards: Guards | None = None,
        store: "WorkflowStore | None" = None,
        model: "Model | None" = None,
        outputs: "Outputs | None" = None,
        workflows: Path = WORKFLOWS,
        serves: Collection[str] | None = None,
        manager: "SecretManager | None" = None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = SystemClock() if clock is None else clock
        self._workflows = workflows
        self.serves = serves
        # A cached property looks here before it opens anything.
        given = {"bus": bus, "guards": guards, "store": store, "model": model, "outputs": outputs, "secrets": manager}
        self.__dict__.update({name: value for name, value in given.items() if value is not None})

    @cached_property
    def secrets(self) -> "SecretManager":
        """The project's Secret Manager. Raises ConfigurationError without GCP_PROJECT_ID."""
        from shared.secrets import SecretManager

        project = self.settings.gcp_project_id
        if project is None:
            raise ConfigurationError("SECRETS_FROM is secret-manager and GCP_PROJECT_ID is not set; set it to the project")
        return SecretManager(project, self.clock, member=account(project))

    @cached_property
    def keys(self) -> "KeyStore":
        """Where the keys that rotate are kept: Secret Manager, or a file in AGENT_TEAM_HOME."""
        if self.settings.secrets_from == "secret-manager":
            from shared.keys.manager import SecretManagerKeyStore

            return SecretManagerKeyStore(self.secrets)
        return FileKeyStore(self.settings.agent_team_home, self.clock)

    @cached_property
    def ring(self) -> "LiveRing":
        """The keys that sign and verify, kept up with those of `keys`."""
        return open_ring(self.settings, self.keys, self.clock)

    @cached_property
    def webhook_secret(self) -> str:
        """Signs outgoing webhooks. Outside production one that is not given is made, and kept in AGENT_TEAM_HOME.

        Raises ConfigurationError in production without one.
        """
        given = self.settings.webhook_secret
        if given is not None:
            return given.get_secret_value()
        if self.settings.is_production:
            expected = Settings.model_fields["webhook_secret"].description
            raise ConfigurationError(f"WEBHOOK_SECRET is not set, and webhooks cannot be signed without; set it to {expected}")
        new = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        made = local_secret(self.settings.agent_team_home, "webhook-secret", new)
        redact_values(made)
        return made

    @cached_property
    def callback_gate(self) -> "Gate":
        """Which addresses may be given as `callback_url`: the public internet's, and outside production this machine's."""
        from shared.http.addresses import Gate  # loads an HTTP client

        return Gate(loopback=not self.settings.is_production)

    @cached_property
    def bus(self) -> Bus:
        settings = self.settings
        return open_bus(
            settings.agent_bus_provider,
            self.clock,
            max_bytes=settings.max_payload_bytes,
            redis_url=self._redis_url,
            gcp_project=settings.gcp_project_id,
            pubsub_emulator=settings.pubsub_emulator_host,
        )

    @cached_property
    def guards(self) -> Guards:
        return open_guards(
            self.settings.guards_backend,
            self.clock,
            redis_url=self._redis_url,
            gcp_project=self.settings.gcp_project_id,
            instances=self.settings.guards_instances,
        )

    @cached_property
    def store(self) -> "WorkflowStore":
        from shared.state import open_store

        return open_store(self.settings, functions=self.serves, database_url=lambda: self.database_url)

    @cached_property
    def outputs(self) -> "Outputs":
        """Outputs that are too large for messages and state."""
        from shared.outputs import open_outputs

        return open_outputs(self.settings, self.clock)

    @cached_property
    def database_url(self) -> str:
        """`DATABASE_URL`, else the embedded database, which is started. Blocks for up to a second then."""
        if self.settings.database_url is not None:
            return self.settings.database_url.get_secret_value()
        from shared.state import embedded

        return embedded.start(self.settings.agent_team_home.resolve() / "postgres")

    @cached_property
    def model(self) -> "Model":
        from shared.ai import open_model

        settings = self.settings
        key = settings.gemini_api_key
        return open_model(
            gemini_api_key=None if key is None else key.get_secret_value(),
            models=settings.models,
            guards=self.guards,
            clock=self.clock,
            gemini_base_url=settings.gemini_base_url,
            qps=settings.ai_rate_qps,
            qps_given="ai_rate_qps" in settings.model_fields_set,
            breaker=settings.enable_circuit_breaker,
            retries=settings.enable_retry_logic,
            cache=settings.enable_cache,
        )

    @cached_property
    def tools(self) -> "Mapping[str, Tool]":
        """The built-in tools that prompts may name.

        Documents are searched in the store by a process that has it; others, such as an agent's in the cloud, ask the gateway.
        """
        from shared.ai import builtin

        if self._has_store:
            return builtin(search=self._search)
        if self.settings.agent_team_url is None and self._serves_with("AGENT_TEAM_API_KEY"):
            _log.info("documents cannot be searched here; set AGENT_TEAM_URL to the gateway, and AGENT_TEAM_API_KEY to a key of it")
        return builtin(search=None if self.documents is None else self.documents.search)

    @property
    def _has_store(self) -> bool:
        if self.serves is None or "store" in self.__dict__:
            return True
        configured = self.settings.database_url is not None or self.settings.supabase_url is not None
        return configured and self._serves_with("DATABASE_URL")

    def _serves_with(self, secret: str) -> bool:
        """Whether one of the functions of this process has the secret."""
        return any(secret in self.functions[name].secrets for name in self.serves or () if name in self.functions)

    @cached_property
    def documents(self) -> "GatewayDocuments | None":
        """The documents as the gateway of AGENT_TEAM_URL finds them; None without one."""
        settings = self.settings
        if settings.agent_team_url is None:
            return None
        from shared.ai.tools.asking import GatewayDocuments

        key = settings.agent_team_api_key
        return GatewayDocuments(settings.agent_team_url, None if key is None else key.get_secret_value())

    async def _search(self, query: str, limit: int) -> "Sequence[Mapping[str, Any]]":
        return await self.store.search_documents(query, limit)

    @property
    def asked_models(self) -> tuple[str, ...]:
        """The chain of models that are asked, in this order; none where the offline model answers."""
        return () if self.settings.gemini_api_key is None else self.settings.models

    @cached_property
    def reach(self) -> "Reach | None":
        """What tells whether the models would answer; None where the offline model does."""
        key = self.settings.gemini_api_key
        if key is None:
            return None
        from shared.ai.reach import Reach

        return Reach(key.get_secret_value(), base_url=self.settings.gemini_base_url)

    @cached_property
    def functions(self) -> "dict[str, FunctionSpec]":
        """Every function of the project, from its function.yaml."""
        from shared.runtime.spec import load_functions

        return load_functions()

    @cached_property
    def definitions(self) -> "dict[str, Definition]":
        """Every workflow definition of the project."""
        from shared.workflows import load_definitions

        agents = [name for name, spec in self.functions.items() if spec.is_agent]
        return load_definitions(self._workflows, agents=agents)

    @cached_property
    def push_tokens(self) -> "PushTokens | None":
        """What a push has to show; None where it is believed without: no `PUSH_AUDIENCE`."""
        audience, service_account = self.settings.push_audience, self.settings.push_service_account
        if audience is None:
            return None
        if service_account is None:
            raise ConfigurationError("PUSH_AUDIENCE is given and PUSH_SERVICE_ACCOUNT is not; set it to the account that pushes")
        from shared.runtime.oidc import PushTokens

        return PushTokens(
            audience, service_account, self.clock, verified_by_cloud_run=self.settings.push_verified_by == "cloud-run"
        )

    @cached_property
    def api_tokens(self) -> "IdentityTokens | None":
        """The Google identity tokens that callers of the API may show; None where there is no `API_AUDIENCE`."""
        audience = self.settings.api_audience
        if audience is None:
            return None
        from shared.runtime.oidc import IdentityTokens

        return IdentityTokens(audience, self.clock, setting="API_AUDIENCE")

    @cached_property
    def link(self) -> Link:
        """What every pipeline stands on."""
        settings = self.settings
        return Link(
            bus=self.bus,
            ring=self.ring,
            clock=self.clock,
            idempotency=self.guards.idempotency if settings.enable_idempotency else None,
            max_bytes=settings.max_payload_bytes,
            ttl_seconds=settings.comm_idempotency_ttl_sec,
            at_most_once=settings.comm_qos == "at-most-once",
            cache=self.guards.cache,
        )

    def sender(self, function: str) -> Sender:
        """Writes the envelopes of `function`."""
        settings = self.settings
        return Sender(
            function=function,
            ring=self.ring,
            clock=self.clock,
            ttl_seconds=settings.comm_idempotency_ttl_sec,
            max_bytes=settings.max_payload_bytes,
        )

    def dispatcher(self, function: str) -> "Dispatcher":
        """The door to the state, for `function`."""
        from shared.runtime.dispatcher import Dispatcher

        off = {} if self.settings.enable_debate_mode else {"debate": "debate mode is off (ENABLE_DEBATE_MODE)"}
        sender = self.sender(function)
        return Dispatcher(self.store, self.bus, sender, self.clock, self.cancellations, self.outputs, switched_off=off)

    @cached_property
    def cancellations(self) -> Cancellations:
        """What stops the work for workflows that have ended."""
        return Cancellations(self.guards.cache, self.clock, ttl_seconds=self.settings.comm_idempotency_ttl_sec)

    @cached_property
    def progress(self) -> Progress:
        """What running steps have written so far."""
        return Progress(self.guards.cache, self.clock)

    @property
    def _redis_url(self) -> str | None:
        url = self.settings.redis_url
        return None if url is None else url.get_secret_value()

    @property
    def max_retries(self) -> int:
        """Retries of a step that does not say."""
        return self.settings.orch_max_retries if self.settings.enable_retry_logic else 0

    async def close(self) -> None:
        """Free what was opened; handlers in progress end first."""
        for name in ("bus", "model", "reach", "documents", "store", "guards", "outputs", "secrets"):
            close = getattr(self.__dict__.get(name), "close", None)
            if close is not None:  # not every model holds connections
                await close()


def account(project: str) -> str:
    """Who this process is to Google's IAM, as far as it can tell: infra/services.tf gives every service an account of its own."""
    service = os.environ.get("K_SERVICE")
    return "user:YOU" if service is None else f"serviceAccount:fn-{service}@{project}.iam.gserviceaccount.com"
