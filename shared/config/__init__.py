"""Settings: every environment variable of the platform, validated, frozen, and all mistakes reported at once.

`load_settings` is the only place that reads the environment. It lays the environment over a `.env` file; a blank value counts as
unset, and blanks around a value don't belong to it. What it refuses, it refuses together, in one ConfigurationError that names
each variable, what is wrong with it and what is expected. Secrets (URLs with passwords are secrets too) appear in no message,
`repr` or log; `redact_url` and `Settings.redacted` show what may be shown of them.
"""

from shared.config.loading import OPTIONAL_SECRETS, load_settings, secrets_project
from shared.config.settings import Settings, redact_url, variable_of

__all__ = ["OPTIONAL_SECRETS", "Settings", "load_settings", "redact_url", "secrets_project", "variable_of"]
