"""The verbs of `agent-team`, put together.

A verb's module imports nothing heavy before the verb is used: `agent-team --help` should answer at once.
"""

import typer

from shared.cli import dead_letters, doctor, documents, migrate, publish, run, serve, show, signal, worker, workflows

app = typer.Typer(
    help="A team of LLM agents: durable workflows, on budget, within quota.",
    epilog="Exit codes: 0 done, 1 the workflow failed, 2 something must be put right first, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(serve.serve)
app.command()(worker.worker)
app.command()(publish.publish)
app.command()(show.show)
app.command()(signal.signal)
app.add_typer(workflows.app, name="workflows")
app.add_typer(documents.app, name="documents")
app.add_typer(dead_letters.app, name="dead-letters")
app.command()(migrate.migrate)
app.command()(doctor.doctor)
