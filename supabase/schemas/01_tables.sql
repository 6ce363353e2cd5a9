-- The state of every workflow. `advance` is the only writer of the first five tables.
--
-- No foreign keys between them: each would cost a lookup and a row lock per history entry, and the one writer and `purge` keep
-- them whole. Ids compare bytewise (collate "C"): they are ASCII, and ULIDs sort by time that way.

-- Rows change often and then never again: room in their pages and early vacuuming keep updates heap-only and indexes small.
create table workflows (
    id text collate "C" primary key,
    request_key text collate "C" unique,
    request_hash text,
    name text not null,
    version integer not null,
    status text not null check (status in ('QUEUED', 'RUNNING', 'WAITING', 'SUCCESS', 'FAILED', 'CANCELLED')),
    priority integer not null,
    input jsonb not null,
    output_template jsonb not null,
    output_needs text[] not null,
    output_uses_input boolean not null,
    output jsonb,
    error jsonb,
    max_steps integer,
    max_tokens bigint,
    max_cost_microdollars bigint,
    deadline_seconds double precision,
    callback_url text,
    traceparent text,
    steps_total integer not null,
    steps_open integer not null,
    model_calls bigint not null default 0,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cost_microdollars bigint not null default 0,
    seq integer not null default 0,
    admitted_by text collate "C",
    created_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz,
    deadline_at timestamptz,
    wake_at timestamptz,
    resumed integer not null default 0,
    forked_from text collate "C",
    forked_at integer,
    admitted_at timestamptz,
    steps_waiting integer not null default 0,
    tenant text collate "C" not null default '',
    paused_at timestamptz,
    paused_by text
) with (
    fillfactor = 60, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0
);

comment on table workflows is 'One run of a definition.';
comment on column workflows.request_key is 'What makes a repeated request recognisable; request_hash tells whether it asks for the same.';
comment on column workflows.output_template is 'Opaque here: rendered outside from the outputs of output_needs.';
comment on column workflows.steps_open is 'Steps that have not ended. At 0 the output is rendered and the workflow ends.';
comment on column workflows.seq is 'The last history entry.';
comment on column workflows.admitted_by is 'The workflow whose end gave this one its slot: its last event returns our first commands again.';
comment on column workflows.wake_at is
    'Nothing in this workflow is due before; the sweeper looks at it then and works out the next moment. Of one that ended: when to tell its callback again.';
comment on column workflows.admitted_at is 'When it last got a slot; later than started_at when it had given its first one away to wait.';
comment on column workflows.steps_waiting is 'Steps that wait for people, time or a signal. Only while there are any can the workflow give its slot away.';
comment on column workflows.tenant is 'Who asked for it: the name of their API key; empty where nobody was asked for one. Tenants share the slots.';
comment on column workflows.paused_at is 'Since when nothing of it may start; null when all may. What is at work ends, and then it is WAITING.';
comment on column workflows.paused_by is 'Who paused it; empty where nobody said so.';
comment on column workflows.resumed is 'How often it went on after it had failed. Each time it ends anew, and says so in a message of its own.';
comment on column workflows.forked_from is 'The workflow whose finished steps it took over; perhaps no longer there.';
comment on column workflows.forked_at is 'The entry of that one''s history up to which it did.';

-- Both stay as small as the number of workflows that run or wait for a slot.
create index workflows_running on workflows (id) where status = 'RUNNING';
create index workflows_queued on workflows (priority desc, tenant, id) where status = 'QUEUED';
-- Not by wake_at, which changes with each dispatch: an index that knew it would end heap-only updates.
create index workflows_called_back on workflows (finished_at) where callback_url is not null;
-- Written once, when the workflow ends, in an update that leaves an index anyway.
create index workflows_finished on workflows (finished_at) where finished_at is not null;
-- However many wait for a day or a year, the sweeper finds those whose moment has come.
create index workflows_waiting on workflows (wake_at) where status in ('WAITING', 'QUEUED');

create table turns (
    tenant text collate "C" primary key,
    turn bigint generated always as identity
);

comment on table turns is 'Which tenant was served last: the greater the turn, the later. One row for each who ever was, written by `_admit` alone.';

create table steps (
    workflow_id text collate "C" not null,
    id text collate "C" not null,
    position integer not null,
    parent text collate "C",
    agent text not null,
    status text not null check (status in ('PENDING', 'RUNNING', 'WAITING', 'SUCCESS', 'FAILED', 'SKIPPED', 'CANCELLED')),
    attempt integer not null default 0,
    deferrals integer not null default 0,
    max_retries integer not null,
    timeout_seconds double precision not null,
    on_failure text not null check (on_failure in ('fail', 'continue')),
    needs text[] not null,
    needs_open integer not null,
    children text[],
    join_from text collate "C",
    spec jsonb not null,
    uses_input boolean not null,
    output jsonb,
    error jsonb,
    late integer[],
    due_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    model_calls integer not null default 0,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cost_microdollars bigint not null default 0,
    models jsonb,
    reused boolean not null default false,
    signal text collate "C",
    wait jsonb,
    woken jsonb,
    prompts jsonb,
    primary key (workflow_id, id)
) with (
    fillfactor = 60, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0
);

comment on table steps is 'One unit of agent work in a workflow. Only the primary key is indexed, so that every transition is a heap-only update.';
comment on column steps.spec is 'Opaque here: templates, conditions and literal input, decided on when the step is about to be dispatched. But for spawn, which limits what its agent adds.';
comment on column steps.needs_open is 'PENDING: needs that have not ended. WAITING with children: children that have not ended.';
comment on column steps.join_from is 'What the output becomes when the children ended: null keeps it, * lists theirs, an id takes that one''s.';
comment on column steps.late is 'Attempts whose results came too late to count, each noted in the history once.';
comment on column steps.prompts is 'The prompts of the last attempt that told: name, version and content hash of each.';
comment on column steps.due_at is
    'RUNNING: the end of the lease. WAITING without children: when it starts again, or waits no longer. CANCELLED: the lease of the attempt that was cut off.';
comment on column steps.signal is 'The signal that ends the wait of a step for people, time or a signal, which takes its own id as well; null for every other step.';
comment on column steps.wait is 'What such a step waits for, to be shown: for, name, since, until and, of an approval, prompt.';
comment on column steps.woken is 'Why such a step waits no longer: woken_by (signal or time), at and, of a signal, by, decision, data and comment.';
comment on column steps.models is 'The usage of all attempts by the model that was asked; null when no attempt told.';
comment on column steps.reused is 'Taken over from the workflow that this one is a fork of. What it used is counted there.';

create table edges (
    workflow_id text collate "C" not null,
    from_id text collate "C" not null,
    to_id text collate "C" not null,
    primary key (workflow_id, from_id, to_id)
);

comment on table edges is 'to_id hears when from_id ends: it needs it, or is its parent.';

create table history (
    workflow_id text collate "C" not null,
    seq integer not null,
    at timestamptz not null,
    type text not null,
    step_id text collate "C",
    attempt integer,
    data jsonb,
    primary key (workflow_id, seq)
);

comment on table history is 'What happened, in order, append-only. Outputs stay in steps, where they are written once.';

create table signals (
    workflow_id text collate "C" not null,
    number integer not null,
    id text collate "C" not null,
    name text collate "C" not null,
    body jsonb not null,
    step_id text collate "C",
    kept boolean not null,
    primary key (workflow_id, number),
    unique (workflow_id, id)
);

comment on table signals is 'What people and programs told steps that wait, in order. At most as many as there are steps to take them.';
comment on column signals.id is 'What makes a repeated signal recognisable.';
comment on column signals.step_id is 'The step that took it; null while it is kept for one that does not wait yet.';
comment on column signals.kept is 'Whether it came before anybody waited for it.';

create table dead_letters (
    id bigint generated always as identity primary key,
    message_id text collate "C" not null,
    subscription text not null,
    topic text not null,
    attempts integer,
    reason text not null,
    workflow_id text collate "C",
    step_id text collate "C",
    data bytea not null,
    attributes jsonb not null,
    recorded_at timestamptz not null,
    function text collate "C" not null,
    cause text collate "C" not null,
    last_error jsonb,
    attempt integer,
    redrive_count integer not null default 0,
    failed_redrive integer not null default 0,
    redriven_at timestamptz,
    unique (subscription, message_id)
);

create index dead_letters_recorded on dead_letters (recorded_at);

comment on table dead_letters is 'Messages that used up their delivery attempts, as they arrived.';
comment on column dead_letters.cause is 'The group that the reason belongs to, to redrive what failed alike.';
comment on column dead_letters.last_error is 'Of the last delivery that said why it failed: type, message and at; null when none did.';
comment on column dead_letters.attempt is 'The attempt that the message was to start; null for every other message.';
comment on column dead_letters.failed_redrive is 'The number of the last redrive after which the message was dead again; 0 when none was.';

create table documents (
    name text collate "C" primary key,
    sha256 text not null,
    size_bytes bigint not null,
    added_at timestamptz not null
);

comment on table documents is 'Texts that agents may search, each whole in its passages.';

create table passages (
    document text collate "C" not null references documents (name) on delete cascade,
    position integer not null,
    text text not null,
    -- Whatever the language: another configuration would bend words by the rules of one, and drop those that are common in it.
    words tsvector not null generated always as (to_tsvector('simple'::regconfig, text)) stored,
    primary key (document, position)
);

create index passages_words on passages using gin (words);

comment on table passages is 'What a search finds: a document, cut where paragraphs or sentences end.';
