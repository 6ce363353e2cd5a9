"""The verbs of `agent-team`, put together.

A verb's module imports nothing heavy before the verb is used: `agent-team --help` should answer at once.
"""

import typer

from shared.cli import (
    backup,
    cancel,
    completion,
    dead_letters,
    diff,
    doctor,
    documents,
    fork,
    keys,
    list,
    logs,
    migrate,
    pause,
    publish,
    purge,
    rerun,
    restore,
    run,
    schedules,
    serve,
    show,
    signal,
    smoke,
    submit,
    watch,
    worker,
    workflows,
)

completion.prepare()
app = typer.Typer(
    help="A team of LLM agents: durable workflows, on budget, within quota.",
    epilog="Exit codes: 0 done, 1 the workflow failed, 2 something must be put right first, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(serve.serve)
app.command(epilog=submit.EPILOG)(submit.submit)
app.command(epilog=watch.EPILOG)(watch.watch)
app.command(name="list", epilog=list.EPILOG)(list.list_)
app.command(epilog=schedules.EPILOG)(schedules.schedules)
app.command()(show.show)
app.command()(logs.logs)
app.command(epilog=cancel.EPILOG)(cancel.cancel)
app.command(epilog=pause.EPILOG)(pause.pause)
app.command(epilog=pause.EPILOG)(pause.resume)
app.command()(worker.worker)
app.command()(publish.publish)
app.command()(signal.signal)
app.command()(fork.fork)
app.command()(rerun.rerun)
app.command()(diff.diff)
app.add_typer(workflows.app, name="workflows")
app.add_typer(documents.app, name="documents")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(keys.app, name="keys")
app.command()(migrate.migrate)
app.command()(backup.backup)
app.command()(restore.restore)
app.command()(purge.purge)
app.command()(doctor.doctor)
app.command(epilog=smoke.EPILOG)(smoke.smoke)
