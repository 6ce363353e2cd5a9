"""What every verb stands on: settings read, logs kept, and whatever goes wrong told in one line with the right exit code."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shared.cli.loop import Stopped
from shared.errors import AgentTeamError

if TYPE_CHECKING:
    from shared.config import Settings

SUCCESS, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; the workflow failed, or something nobody expected; something must be put right first; Ctrl-C."""

_log = logging.getLogger(__name__)


@contextmanager
def session(*, verbose: bool) -> Iterator["Settings"]:
    """The settings of this process. Meanwhile logs go to the home folder's log file, and to standard error when `verbose`."""
    with told_plainly():
        from shared.config import load_settings
        from shared.telemetry import redact_values

        settings = load_settings()
        redact_values(*settings.secret_values())
        with _kept_logs(settings, verbose=verbose), told_plainly(logged=True):
            yield settings


@contextmanager
def told_plainly(*, logged: bool = False) -> Iterator[None]:
    """Turn every exception into one message on standard error and `typer.Exit`; `logged` also logs the unexpected ones."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except AgentTeamError as error:
        _say_error(str(error))
        raise typer.Exit(USAGE) from None
    except Stopped as stopped:
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if logged:
            _log.error("unexpected error", exc_info=True)
        _tell_unexpected(error)
        raise typer.Exit(FAILURE) from None


def _tell_unexpected(error: Exception) -> None:
    if _wants_traceback():
        traceback.print_exception(error, file=sys.stderr)
    # Only class and place: what a foreign exception says may be payload.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    _say_error(f"unexpected error ({type(error).__name__} at {place}); run with LOG_LEVEL=debug for the traceback")


def _wants_traceback() -> bool:
    from shared.config import load_settings

    try:
        return load_settings().log_level == "debug"
    except AgentTeamError:
        return False


@contextmanager
def _kept_logs(settings: "Settings", *, verbose: bool) -> Iterator[None]:
    from shared.local.home import open_log
    from shared.telemetry import configure_logging

    root = logging.getLogger()
    with open_log(settings.agent_team_home) as file:
        kept = configure_logging(settings.log_level, stream=file)
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(kept.formatter)
        for redacting in kept.filters:
            shown.addFilter(redacting)
        if verbose:
            root.addHandler(shown)
        try:
            yield
        finally:
            root.removeHandler(shown)
            root.removeHandler(kept)


def _say_error(message: str) -> None:
    from shared.cli.output import say_error

    say_error(message)
