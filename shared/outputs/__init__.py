"""Large outputs, kept once by the hash of their content, outside of messages and state."""

from urllib.parse import unquote, urlsplit

from shared.clock import Clock
from shared.config import Settings
from shared.errors import ConfigurationError
from shared.outputs.base import INLINE_BYTES, LARGEST_BYTES, OutputStore
from shared.outputs.keeping import Outputs

__all__ = ["INLINE_BYTES", "LARGEST_BYTES", "OutputStore", "Outputs", "open_outputs"]


def open_outputs(settings: Settings, clock: Clock) -> Outputs:
    """What `OUTPUTS_URL` names; without it a folder beside this machine's other data, and in production nothing.

    Raises ConfigurationError for an address that is none.
    """
    return Outputs(_store(settings), clock)


def _store(settings: Settings) -> OutputStore | None:
    from pathlib import Path

    from shared.outputs.folder import FolderStore

    if settings.outputs_url is None:
        return None if settings.is_production else FolderStore(settings.agent_team_home / "outputs")
    url = urlsplit(settings.outputs_url)
    prefix = url.path.strip("/")
    if url.scheme == "file":
        if url.netloc not in ("", "localhost") or not prefix:
            raise ConfigurationError("OUTPUTS_URL names no folder; write it file:///var/lib/agent-team/outputs")
        return FolderStore(Path(unquote(url.path)))
    if url.scheme == "gs":
        from shared.outputs.gcs import GcsStore

        return GcsStore(url.netloc, prefix, project=settings.gcp_project_id)
    base, key = settings.supabase_url, settings.supabase_service_role_key
    if base is None or key is None:
        raise ConfigurationError("OUTPUTS_URL is in Supabase; set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, too")
    from shared.outputs.supabase import SupabaseStore

    return SupabaseStore(base, key.get_secret_value(), bucket=url.netloc, prefix=prefix)
