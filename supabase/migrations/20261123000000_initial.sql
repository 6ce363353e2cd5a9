-- The state of every workflow. `advance` is the only writer of the first four tables.
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
    wake_at timestamptz
) with (
    fillfactor = 60, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0
);

comment on table workflows is 'One run of a definition.';
comment on column workflows.request_key is 'What makes a repeated request recognisable; request_hash tells whether it asks for the same.';
comment on column workflows.output_template is 'Opaque here: rendered outside from the outputs of output_needs.';
comment on column workflows.steps_open is 'Steps that have not ended. At 0 the output is rendered and the workflow ends.';
comment on column workflows.seq is 'The last history entry.';
comment on column workflows.admitted_by is 'The workflow whose end gave this one its slot: its last event returns our first commands again.';
comment on column workflows.wake_at is 'Nothing in this workflow is due before; the sweeper looks at it then and works out the next moment.';

-- Both stay as small as the number of workflows that run or wait for a slot.
create index workflows_running on workflows (id) where status = 'RUNNING';
create index workflows_queued on workflows (priority desc, id) where status = 'QUEUED';

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
    primary key (workflow_id, id)
) with (
    fillfactor = 60, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0
);

comment on table steps is 'One unit of agent work in a workflow. Only the primary key is indexed, so that every transition is a heap-only update.';
comment on column steps.spec is 'Opaque here: templates, conditions and literal input, decided on when the step is about to be dispatched.';
comment on column steps.needs_open is 'PENDING: needs that have not ended. WAITING with children: children that have not ended.';
comment on column steps.join_from is 'What the output becomes when the children ended: null keeps it, * lists theirs, an id takes that one''s.';
comment on column steps.late is 'Attempts whose results came too late to count, each noted in the history once.';
comment on column steps.due_at is 'RUNNING: the end of the lease. WAITING without children: when it starts again.';

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
    unique (subscription, message_id)
);

comment on table dead_letters is 'Messages that used up their delivery attempts, as they arrived.';
-- What `advance` is made of. Names that begin with an underscore are internal: callers use 04_advance.sql and 05_read.sql.
-- PL/pgSQL throughout: its plans are kept, while a function in plain SQL is planned at every call.

create type _step_ref as (workflow_id text, step_id text, cause integer);
comment on type _step_ref is 'A step (or a workflow, without step), and the index of the event that led to it.';

create type _note as (
    workflow_id text,
    step_id text,
    type text,
    attempt integer,
    data jsonb,
    ended integer,
    usage jsonb,
    due_at timestamptz
);
comment on type _note is 'A history entry, with what it adds to its workflow''s counters: steps ended, usage, the next moment to wake.';

create type _effect as (ended _step_ref[], started _step_ref[], touched _step_ref[], reply jsonb);
comment on type _effect is 'What one event did: steps that ended, steps to dispatch (again), workflows to look at, an answer for the caller.';

create function _is_final(status text) returns boolean
language sql immutable
return status in ('SUCCESS', 'FAILED', 'SKIPPED', 'CANCELLED');

create function _is_decided(s steps) returns boolean
language sql immutable
return s.children is not null or s.status in ('FAILED', 'SKIPPED', 'CANCELLED');

-- A lease covers the work and the way there: a message may wait for a free instance, and starting again early would do work twice.
create function _lease(timeout_seconds double precision) returns interval
language sql immutable
return make_interval(secs => timeout_seconds + 600);

-- A lease begins when the attempt may start. Adding to a timestamptz is only stable, and what claims more is not inlined.
create function _not_before(due_at timestamptz, timeout_seconds double precision, moment timestamptz) returns timestamptz
language sql stable
return nullif(greatest(due_at - _lease(timeout_seconds), moment), moment);

create function _write(notes _note[], moment timestamptz) returns void
language plpgsql as $$
begin
    with delta as (
        select
            n.workflow_id,
            count(*) as entries,
            coalesce(sum(n.ended), 0) as ended,
            coalesce(sum((n.usage ->> 'model_calls')::bigint), 0) as model_calls,
            coalesce(sum((n.usage ->> 'input_tokens')::bigint), 0) as input_tokens,
            coalesce(sum((n.usage ->> 'output_tokens')::bigint), 0) as output_tokens,
            coalesce(sum((n.usage ->> 'cost_microdollars')::bigint), 0) as cost_microdollars,
            min(n.due_at) as due_at
        from unnest(notes) as n
        group by n.workflow_id
    ),
    counted as (
        update workflows as w
        set seq = w.seq + d.entries,
            steps_open = w.steps_open - d.ended,
            model_calls = w.model_calls + d.model_calls,
            input_tokens = w.input_tokens + d.input_tokens,
            output_tokens = w.output_tokens + d.output_tokens,
            cost_microdollars = w.cost_microdollars + d.cost_microdollars,
            wake_at = least(w.wake_at, d.due_at)
        from delta as d
        where w.id = d.workflow_id
        returning w.id, w.seq - d.entries as base
    )
    insert into history (workflow_id, seq, at, type, step_id, attempt, data)
    select n.workflow_id, c.base + row_number() over (partition by n.workflow_id order by n.ordinality),
        moment, n.type, n.step_id, n.attempt, n.data
    from unnest(notes) with ordinality as n
    join counted as c on c.id = n.workflow_id;
end;
$$;
comment on function _write is 'Append history entries and move their workflows'' counters.';

create function _start(ready _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with running as (
        update steps as s
        set status = 'RUNNING', attempt = 1, started_at = moment, due_at = moment + _lease(s.timeout_seconds)
        from unnest(ready) as r
        where s.workflow_id = r.workflow_id and s.id = r.step_id and s.status = 'PENDING'
        returning s.workflow_id, s.id, s.due_at
    )
    select array_agg(row(g.workflow_id, g.id, 'step.dispatched', 1, null, 0, null, g.due_at)::_note)
    into notes from running as g;
    return coalesce(notes, '{}');
end;
$$;
comment on function _start is 'PENDING steps whose needs have ended get their first attempt.';

create function _settle(inout ended _step_ref[], moment timestamptz, out ready _step_ref[], out notes _note[])
language plpgsql as $$
declare
    met _step_ref[];
    joined _step_ref[];
begin
    ready := '{}';
    notes := '{}';
    loop
        with heard as (
            select e.workflow_id, d.to_id, count(*)::integer as needs, max(e.cause) as cause
            from unnest(ended) as e
            join edges as d on d.workflow_id = e.workflow_id and d.from_id = e.step_id
            group by e.workflow_id, d.to_id
        ),
        counted as (
            update steps as s
            set needs_open = s.needs_open - h.needs
            from heard as h
            where s.workflow_id = h.workflow_id and s.id = h.to_id
            returning s.workflow_id, s.id, s.needs_open, s.status, h.cause
        )
        select
            array_agg(row(c.workflow_id, c.id, c.cause)::_step_ref) filter (where c.status = 'PENDING'),
            array_agg(row(c.workflow_id, c.id, c.cause)::_step_ref) filter (where c.status = 'WAITING')
        into met, joined
        from counted as c where c.needs_open = 0;

        if met is not null then
            ready := ready || met;
        end if;
        exit when joined is null;
        notes := notes || _join(joined, moment);
        ended := joined;
    end loop;
end;
$$;
comment on function _settle is 'Tell the successors of ended steps. Parents whose last child ended end too, and so on upwards.';

create function _join(joined _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with done as (
        update steps as s
        set status = 'SUCCESS', finished_at = moment,
            output = case
                when s.join_from is null then s.output
                when s.join_from = '*' then (
                    select coalesce(jsonb_agg(c.output order by n.ordinality), '[]')
                    from unnest(s.children) with ordinality as n (id, ordinality)
                    join steps as c on c.workflow_id = s.workflow_id and c.id = n.id
                )
                else (select c.output from steps as c where c.workflow_id = s.workflow_id and c.id = s.join_from)
            end
        from unnest(joined) as j
        where s.workflow_id = j.workflow_id and s.id = j.step_id
        returning s.workflow_id, s.id, s.attempt
    )
    select array_agg(row(d.workflow_id, d.id, 'step.completed', d.attempt, null, 1, null, null)::_note)
    into notes from done as d;
    return notes;
end;
$$;
comment on function _join is 'Parents whose children have all ended end, with the output that they asked for.';

create function _add_steps(workflow text, above text, added jsonb) returns integer
language plpgsql as $$
declare
    family steps;
    count_added integer;
begin
    select s.* into family from steps as s where s.workflow_id = workflow and s.id = above;
    insert into steps (
        workflow_id, id, position, parent, agent, status, max_retries, timeout_seconds, on_failure, needs, needs_open, spec, uses_input
    )
    select workflow, a.value ->> 'id', a.ordinality, above, a.value ->> 'agent', 'PENDING',
        coalesce((a.value ->> 'max_retries')::integer, family.max_retries),
        coalesce((a.value ->> 'timeout_seconds')::double precision, family.timeout_seconds),
        coalesce(a.value ->> 'on_failure', family.on_failure),
        n.ids, n.still_open, a.value -> 'spec', coalesce((a.value ->> 'uses_input')::boolean, false)
    from jsonb_array_elements(added) with ordinality as a
    cross join lateral (
        select coalesce(array_agg(need.value order by need.ordinality), '{}') as ids,
            (count(*) - count(t.id))::integer as still_open
        from jsonb_array_elements_text(a.value -> 'needs') with ordinality as need
        left join steps as t on t.workflow_id = workflow and t.id = need.value and _is_final(t.status)
    ) as n;
    get diagnostics count_added = row_count;

    -- A need that has ended tells nobody any more.
    insert into edges (workflow_id, from_id, to_id)
    select distinct workflow, need.value, a.value ->> 'id'
    from jsonb_array_elements(added) as a
    cross join lateral jsonb_array_elements_text(a.value -> 'needs') as need
    where not exists (
        select from steps as t where t.workflow_id = workflow and t.id = need.value and _is_final(t.status)
    );
    insert into edges (workflow_id, from_id, to_id)
    select workflow, a.value ->> 'id', above from jsonb_array_elements(added) as a where above is not null;
    return count_added;
end;
$$;
comment on function _add_steps is 'Add steps and their edges; children inherit what they do not say from their parent.';

create function _roots(workflow text) returns text[]
language plpgsql as $$
begin
    return array(
        select s.id from steps as s where s.workflow_id = workflow and s.parent is null and s.needs = '{}' order by s.position
    );
end;
$$;
comment on function _roots is 'The steps that a workflow starts with.';

create function _ready(workflow text, among text[], cause integer) returns _step_ref[]
language plpgsql as $$
begin
    return array(
        select row(workflow, s.id, cause)::_step_ref
        from unnest(among) with ordinality as n (id, ordinality)
        join steps as s on s.workflow_id = workflow and s.id = n.id
        where s.status = 'PENDING' and s.needs_open = 0
        order by n.ordinality
    );
end;
$$;
comment on function _ready is 'Those of some steps that wait for nothing.';

create function _end_workflow(workflow text, outcome text, why jsonb, result jsonb, moment timestamptz) returns void
language plpgsql as $$
declare
    stopped integer;
begin
    update steps as s
    set status = 'CANCELLED', finished_at = moment, due_at = null
    where s.workflow_id = workflow and not _is_final(s.status);
    get diagnostics stopped = row_count;
    update workflows as w
    set status = outcome, error = why, output = result, finished_at = moment, wake_at = null
    where w.id = workflow;
    perform _write(
        array[row(
            workflow, null,
            case outcome when 'SUCCESS' then 'workflow.succeeded' when 'FAILED' then 'workflow.failed' else 'workflow.cancelled' end,
            null, why, stopped, null, null
        )::_note],
        moment
    );
end;
$$;
comment on function _end_workflow is 'A workflow ends, and with it every step that has not.';

create function _again(workflow text, origins text[], cause integer, from_start boolean default false) returns _step_ref[]
language plpgsql as $$
begin
    -- Steps that were decided on without a message of their own (skipped, expanded, failed by their template) are looked through:
    -- into their children when we come from above, past them once they have ended.
    return array(
        with recursive reached as (
            select s.id, true as from_above, not from_start or _is_decided(s) as look_through
            from unnest(origins) as o
            join steps as s on s.workflow_id = workflow and s.id = o
            union
            select t.id, n.from_above, _is_decided(t) and (n.from_above or _is_final(t.status))
            from reached as r
            join steps as s on s.workflow_id = workflow and s.id = r.id
            cross join lateral (
                select d.to_id as id, d.to_id is distinct from s.parent as from_above
                from edges as d where d.workflow_id = workflow and d.from_id = s.id
                union all
                select unnest(s.children), true where r.from_above
            ) as n
            join steps as t on t.workflow_id = workflow and t.id = n.id
            where r.look_through
        )
        select distinct row(workflow, s.id, cause)::_step_ref
        from reached as r
        join steps as s on s.workflow_id = workflow and s.id = r.id
        where s.status = 'RUNNING'
    );
end;
$$;
comment on function _again is
    'The running steps that an event about the origins (or the start of the workflow at them) had started: what its repetition returns.';
-- One function per kind of event, for those that come seldom. Each locks nothing: `advance` holds the workflow's row.
-- Applied again, each changes nothing and returns what it returned before.

create function _on_requested(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    wf text := event ->> 'workflow';
    effect _effect;
    known workflows;
    created boolean;
begin
    insert into workflows (
        id, request_key, request_hash, name, version, status, priority, input, output_template, output_needs, output_uses_input,
        max_steps, max_tokens, max_cost_microdollars, deadline_seconds, callback_url, traceparent, steps_total, steps_open, created_at
    )
    values (
        wf, event ->> 'request_key', event ->> 'request_hash', event ->> 'name', (event ->> 'version')::integer, 'QUEUED',
        (event ->> 'priority')::integer, event -> 'input', event -> 'output',
        array(select jsonb_array_elements_text(event -> 'output_needs')), (event ->> 'output_uses_input')::boolean,
        (event ->> 'max_steps')::integer, (event ->> 'max_tokens')::bigint, (event ->> 'max_cost_microdollars')::bigint,
        (event ->> 'deadline_seconds')::double precision, event ->> 'callback_url', event ->> 'traceparent',
        jsonb_array_length(event -> 'steps'), jsonb_array_length(event -> 'steps'), moment
    )
    on conflict do nothing;
    created := found;
    if created then
        perform _add_steps(wf, null, event -> 'steps');
        perform _write(array[row(wf, null, 'workflow.requested', null, null, 0, null, null)::_note], moment);
    end if;

    select w.* into known from workflows as w
    where w.id = wf or w.request_key = event ->> 'request_key'
    order by w.id = wf desc limit 1 for update;
    if known.request_hash is distinct from event ->> 'request_hash' then
        effect.reply := jsonb_build_object('type', 'conflict', 'cause', cause, 'workflow', known.id);
        return effect;
    end if;
    effect.reply := jsonb_build_object('type', 'accepted', 'cause', cause, 'workflow', known.id, 'name', known.name, 'created', created);
    effect.touched := array[row(known.id, null, cause)::_step_ref];
    if not created then
        effect.started := _again(known.id, _roots(known.id), cause, true) || _admitted(known.id, cause);
    end if;
    return effect;
end;
$$;
comment on function _on_requested is 'workflow.requested: create the workflow, QUEUED, unless its id or request key is known.';

create function _ignored(event jsonb, cause integer) returns _effect
language plpgsql as $$
declare
    effect _effect;
begin
    effect.reply := jsonb_build_object('type', 'ignored', 'cause', cause, 'workflow', event ->> 'workflow', 'step', event ->> 'step');
    return effect;
end;
$$;
comment on function _ignored is 'An event about a workflow or a step that is not there.';

create function _on_rendered(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    known workflows;
begin
    select w.* into known from workflows as w where w.id = event ->> 'workflow';
    if known.id is null then
        return _ignored(event, cause);
    end if;
    if known.status = 'RUNNING' and known.steps_open = 0 then
        perform _end_workflow(
            event ->> 'workflow',
            case event ->> 'type' when 'workflow.rendered' then 'SUCCESS' else 'FAILED' end,
            event -> 'error', event -> 'output', moment
        );
    end if;
    return effect;
end;
$$;
comment on function _on_rendered is 'workflow.rendered, workflow.failed: the output of a workflow whose steps have all ended, or why there is none.';

create function _on_cancelled(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    known workflows;
begin
    select w.* into known from workflows as w where w.id = event ->> 'workflow';
    if known.id is null then
        return _ignored(event, cause);
    end if;
    if not _is_final(known.status) then
        perform _end_workflow(
            event ->> 'workflow', 'CANCELLED',
            jsonb_build_object('type', 'Cancelled', 'message', coalesce(event ->> 'reason', '')), null, moment
        );
    end if;
    return effect;
end;
$$;
comment on function _on_cancelled is 'workflow.cancelled: stop a workflow that has not ended.';

create function _fail_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
begin
    update steps as t
    set status = 'FAILED', error = event -> 'error', due_at = null, finished_at = moment,
        model_calls = t.model_calls + coalesce((event #>> '{usage,model_calls}')::integer, 0),
        input_tokens = t.input_tokens + coalesce((event #>> '{usage,input_tokens}')::bigint, 0),
        output_tokens = t.output_tokens + coalesce((event #>> '{usage,output_tokens}')::bigint, 0),
        cost_microdollars = t.cost_microdollars + coalesce((event #>> '{usage,cost_microdollars}')::bigint, 0)
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.failed', s.attempt, event -> 'error', 1, event -> 'usage', null)::_note], moment
    );
    if s.on_failure = 'continue' then
        effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
    else
        perform _end_workflow(s.workflow_id, 'FAILED', event -> 'error' || jsonb_build_object('step', s.id), null, moment);
    end if;
    return effect;
end;
$$;
comment on function _fail_step is 'A step has failed for good: its workflow fails, or goes on without its output.';

create function _retry_step(s steps, type text, event jsonb, delay_seconds double precision, cause integer, moment timestamptz)
returns _effect
language plpgsql as $$
declare
    effect _effect;
    start_at timestamptz := moment + make_interval(secs => delay_seconds);
    -- Short delays are waited out by whoever publishes; later moments belong to the sweeper.
    soon boolean := delay_seconds <= 10;
    due timestamptz := case when soon then start_at + _lease(s.timeout_seconds) else start_at end;
begin
    update steps as t
    set status = case when soon then 'RUNNING' else 'WAITING' end,
        attempt = case when type = 'step.deferred' then t.attempt else t.attempt + 1 end,
        deferrals = case when type = 'step.deferred' then t.deferrals + 1 else 0 end,
        due_at = due, error = event -> 'error',
        model_calls = t.model_calls + coalesce((event #>> '{usage,model_calls}')::integer, 0),
        input_tokens = t.input_tokens + coalesce((event #>> '{usage,input_tokens}')::bigint, 0),
        output_tokens = t.output_tokens + coalesce((event #>> '{usage,output_tokens}')::bigint, 0),
        cost_microdollars = t.cost_microdollars + coalesce((event #>> '{usage,cost_microdollars}')::bigint, 0)
    where t.workflow_id = s.workflow_id and t.id = s.id
    returning t.attempt into s.attempt;
    perform _write(
        array[row(
            s.workflow_id, s.id, type, s.attempt,
            jsonb_build_object('not_before', start_at, 'error', event -> 'error'), 0, event -> 'usage', due
        )::_note]
        || case when soon then
            array[row(s.workflow_id, s.id, 'step.dispatched', s.attempt, null, 0, null, null)::_note]
        end,
        moment
    );
    if soon then
        effect.started := array[row(s.workflow_id, s.id, cause)::_step_ref];
    end if;
    return effect;
end;
$$;
comment on function _retry_step is 'The next attempt of a step (step.retried, step.lease_expired), or the same one later (step.deferred).';

create function _on_step(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    s steps;
    kind text := event ->> 'type';
    tried integer := (event ->> 'attempt')::integer;
    effect _effect;
begin
    select t.* into s from steps as t where t.workflow_id = event ->> 'workflow' and t.id = event ->> 'step';
    if s.id is null then
        return _ignored(event, cause);
    end if;

    -- A result counts whichever attempt it is of; anything else must be about the dispatch in progress.
    if s.status not in ('RUNNING', 'WAITING') or s.children is not null
        or (kind <> 'step.completed' and (
            tried < s.attempt or (event ->> 'deferrals')::integer < s.deferrals or s.status = 'WAITING'
        ))
    then
        return _repeated(s, event, cause, moment);
    end if;

    case kind
        when 'step.failed' then
            if (event ->> 'permanent')::boolean or s.attempt > s.max_retries then
                return _fail_step(s, event, cause, moment);
            end if;
            return _retry_step(
                s, 'step.retried', event,
                greatest(coalesce((event ->> 'retry_after_seconds')::double precision, 0), least(2 ^ least(s.attempt - 1, 9), 300)),
                cause, moment
            );
        when 'step.deferred' then
            return _retry_step(
                s, 'step.deferred', event,
                greatest(0, extract(epoch from (event ->> 'not_before')::timestamptz - moment)), cause, moment
            );
        when 'step.skipped' then
            update steps as t set status = 'SKIPPED', due_at = null, finished_at = moment
            where t.workflow_id = s.workflow_id and t.id = s.id;
            perform _write(
                array[row(
                    s.workflow_id, s.id, 'step.skipped', s.attempt, jsonb_build_object('reason', event -> 'reason'), 1, null, null
                )::_note],
                moment
            );
            effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
            return effect;
        else
            return _expand_step(s, event, cause, moment);
    end case;
end;
$$;
comment on function _on_step is 'step.failed, .deferred, .skipped, .expanded, and .completed with children.';

create function _expand_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    tried integer := (event ->> 'attempt')::integer;
    size integer := jsonb_array_length(event -> 'children');
    ids text[];
    room boolean;
begin
    select w.max_steps is null or w.steps_total + size <= w.max_steps into room from workflows as w where w.id = s.workflow_id;
    if not room then
        -- This result is known: its repetition must not pass for a late one.
        update steps as t set late = t.late || tried where t.workflow_id = s.workflow_id and t.id = s.id;
        return _fail_step(s, jsonb_build_object(
            'error', jsonb_build_object('type', 'BudgetExceeded', 'message', format('%s more steps would pass max_steps', size)),
            'usage', event -> 'usage'
        ), cause, moment);
    end if;
    update workflows as w set steps_total = w.steps_total + size, steps_open = w.steps_open + size where w.id = s.workflow_id;
    perform _add_steps(s.workflow_id, s.id, event -> 'children');
    ids := array(
        select c.value ->> 'id' from jsonb_array_elements(event -> 'children') with ordinality as c order by c.ordinality
    );
    update steps as t
    set status = 'WAITING', due_at = null, needs_open = size, join_from = event ->> 'join', output = event -> 'output', error = null,
        attempt = tried, children = ids,
        model_calls = t.model_calls + coalesce((event #>> '{usage,model_calls}')::integer, 0),
        input_tokens = t.input_tokens + coalesce((event #>> '{usage,input_tokens}')::bigint, 0),
        output_tokens = t.output_tokens + coalesce((event #>> '{usage,output_tokens}')::bigint, 0),
        cost_microdollars = t.cost_microdollars + coalesce((event #>> '{usage,cost_microdollars}')::bigint, 0)
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(
            s.workflow_id, s.id, 'step.expanded', tried, jsonb_build_object('steps', size), 0, event -> 'usage', null
        )::_note],
        moment
    );
    if size = 0 then
        perform _write(_join(array[row(s.workflow_id, s.id, cause)::_step_ref], moment), moment);
        effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
    else
        effect.started := _ready(s.workflow_id, ids, cause);
        perform _write(_start(effect.started, moment), moment);
    end if;
    return effect;
end;
$$;
comment on function _expand_step is 'A step gets children and waits for them: for_each, a pattern, or an agent''s spawn.';

create function _repeated(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    tried integer := (event ->> 'attempt')::integer;
begin
    if event ->> 'type' = 'step.completed' and s.status <> 'PENDING'
        and not (tried = s.attempt and (s.status = 'SUCCESS' or s.children is not null))
        and not tried = any(coalesce(s.late, '{}'))
    then
        update steps as t set late = t.late || tried where t.workflow_id = s.workflow_id and t.id = s.id;
        perform _write(
            array[row(s.workflow_id, s.id, 'step.late', tried, null, 0, event -> 'usage', null)::_note], moment
        );
    end if;
    effect.started := _again(s.workflow_id, array[s.id], cause);
    return effect;
end;
$$;
comment on function _repeated is 'An event that was applied before returns its commands again; a result that came too late to count is noted once.';
-- The one door: events in, commands out, one transaction.

create function _admit(max_running integer, touched _step_ref[], freed _step_ref, moment timestamptz) returns _step_ref[]
language plpgsql as $$
declare
    started _step_ref[] := '{}';
    queued record;
    roots _step_ref[];
begin
    -- Slots are counted under a lock of their own; whoever waits here holds only rows that nobody needs to count.
    perform pg_advisory_xact_lock(hashtext('agent-team admission'));
    for queued in
        select w.id, (select t.cause from unnest(touched) as t where t.workflow_id = w.id limit 1) as cause
        from workflows as w
        where w.status = 'QUEUED'
        order by w.priority desc, w.id
        limit greatest(0, max_running - (select count(*) from workflows as r where r.status = 'RUNNING'))
        for update skip locked
    loop
        update workflows as w
        set status = 'RUNNING', started_at = moment, admitted_by = freed.workflow_id,
            deadline_at = moment + make_interval(secs => w.deadline_seconds),
            wake_at = moment + make_interval(secs => w.deadline_seconds)
        where w.id = queued.id;
        roots := _ready(queued.id, _roots(queued.id), coalesce(queued.cause, freed.cause, 0));
        perform _write(
            array[row(queued.id, null, 'workflow.started', null, null, 0, null, null)::_note] || _start(roots, moment), moment
        );
        started := started || roots;
    end loop;
    return started;
end;
$$;
comment on function _admit is 'Start queued workflows while fewer than max_running run: higher priority first, then the older.';

create function _admitted(by_workflow text, cause integer) returns _step_ref[]
language plpgsql as $$
declare
    started _step_ref[] := '{}';
    running record;
begin
    for running in select w.id from workflows as w where w.status = 'RUNNING' and w.admitted_by = by_workflow loop
        started := started || _again(running.id, _roots(running.id), cause, true);
    end loop;
    return started;
end;
$$;
comment on function _admitted is 'What the end of a workflow had started by giving its slot away: returned again when its last event is repeated.';

create function _on_tick(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    one _effect;
    recover boolean := coalesce((event ->> 'recover')::boolean, false);
    wf record;
    s steps;
begin
    effect.started := '{}';
    effect.ended := '{}';
    effect.touched := '{}';
    for wf in
        select w.id, w.deadline_at from workflows as w
        -- Whoever was to render the output of a workflow without open steps may be gone.
        where w.status = 'RUNNING' and (w.wake_at <= moment or w.steps_open = 0 or recover)
        order by w.id
        limit coalesce((event ->> 'limit')::integer, 500)
        for update skip locked
    loop
        effect.touched := effect.touched || row(wf.id, null, cause)::_step_ref;
        if wf.deadline_at <= moment then
            perform _end_workflow(wf.id, 'FAILED', jsonb_build_object(
                'type', 'BudgetExceeded', 'message', 'the workflow passed its deadline_seconds'
            ), null, moment);
            continue;
        end if;
        for s in
            select t.* from steps as t
            where t.workflow_id = wf.id and t.due_at is not null and (t.due_at <= moment or recover)
            order by t.position
        loop
            one := _on_due(s, recover, cause, moment);
            effect.started := effect.started || one.started;
            effect.ended := effect.ended || one.ended;
            exit when (select _is_final(w.status) from workflows as w where w.id = wf.id);
        end loop;
        update workflows as w
        set wake_at = least(w.deadline_at, (select min(t.due_at) from steps as t where t.workflow_id = wf.id))
        where w.id = wf.id and w.status = 'RUNNING';
    end loop;
    return effect;
end;
$$;
comment on function _on_tick is 'tick: timers that are due, leases that ran out, deadlines that passed. With recover: whatever was running starts again, expired or not.';

create function _on_due(s steps, recover boolean, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
begin
    if s.status = 'RUNNING' and not recover then
        if s.attempt > s.max_retries then
            return _fail_step(s, jsonb_build_object('error', jsonb_build_object(
                'type', 'LeaseExpired', 'message', format('no result after %s attempts', s.attempt)
            )), cause, moment);
        end if;
        return _retry_step(s, 'step.lease_expired', '{}', 0, cause, moment);
    end if;
    if s.status = 'WAITING' and s.due_at > moment then
        return effect;
    end if;
    -- Due, or to be recovered: the process that had it is gone, so the attempt starts again under the same number.
    update steps as t
    set status = 'RUNNING', due_at = moment + _lease(t.timeout_seconds)
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(
            s.workflow_id, s.id, 'step.dispatched', s.attempt, null, 0, null, moment + _lease(s.timeout_seconds)
        )::_note],
        moment
    );
    effect.started := array[row(s.workflow_id, s.id, cause)::_step_ref];
    return effect;
end;
$$;
comment on function _on_due is 'A step whose moment has come: a lease that ran out, a wait that is over, work that must start again.';

create function _commands(started _step_ref[], touched _step_ref[], replies jsonb[], moment timestamptz) returns json
language plpgsql as $$
declare
    commands json;
begin
    with dispatch as (
        select r.workflow_id, r.step_id, min(r.cause) as cause from unnest(started) as r group by r.workflow_id, r.step_id
    ),
    command as (
        select d.cause, s.position, json_build_object(
            'type', 'dispatch', 'cause', d.cause, 'workflow', s.workflow_id, 'name', w.name, 'step', s.id, 'attempt', s.attempt,
            'deferrals', s.deferrals, 'agent', s.agent, 'spec', s.spec, 'timeout_seconds', s.timeout_seconds,
            'deadline', least(s.due_at, w.deadline_at), 'not_before', _not_before(s.due_at, s.timeout_seconds, moment),
            'traceparent', w.traceparent,
            'remaining', json_build_object(
                'tokens', case when w.max_tokens is not null then greatest(0, w.max_tokens - w.input_tokens - w.output_tokens) end,
                'cost_microdollars',
                case when w.max_cost_microdollars is not null then greatest(0, w.max_cost_microdollars - w.cost_microdollars) end
            ),
            'input', case when s.uses_input then w.input end,
            'upstream', coalesce((
                select json_object_agg(u.id, u.output)
                from unnest(s.needs) as n
                join steps as u on u.workflow_id = s.workflow_id and u.id = n
            ), '{}')
        ) as body
        from dispatch as d
        join steps as s on s.workflow_id = d.workflow_id and s.id = d.step_id
        join workflows as w on w.id = d.workflow_id
        where s.status = 'RUNNING'
        union all
        select t.cause, null, case when w.status = 'RUNNING'
            then json_build_object(
                'type', 'render', 'cause', t.cause, 'workflow', w.id, 'output', w.output_template,
                'input', case when w.output_uses_input then w.input end,
                'upstream', coalesce((
                    select json_object_agg(u.id, u.output)
                    from unnest(w.output_needs) as n
                    join steps as u on u.workflow_id = w.id and u.id = n
                ), '{}')
            )
            else json_build_object(
                'type', 'finished', 'cause', t.cause, 'workflow', w.id, 'name', w.name, 'status', w.status, 'output', w.output,
                'error', w.error, 'callback_url', w.callback_url, 'traceparent', w.traceparent,
                'milliseconds', round(extract(epoch from w.finished_at - w.created_at) * 1000),
                'usage', json_build_object(
                    'model_calls', w.model_calls, 'input_tokens', w.input_tokens, 'output_tokens', w.output_tokens,
                    'cost_microdollars', w.cost_microdollars
                )
            )
            end
        from (select t.workflow_id, max(t.cause) as cause from unnest(touched) as t group by t.workflow_id) as t
        join workflows as w on w.id = t.workflow_id
        where _is_final(w.status) or w.status = 'RUNNING' and w.steps_open = 0
        union all
        select (r ->> 'cause')::integer, -1,
            (r || coalesce((select jsonb_build_object('status', w.status) from workflows as w where w.id = r ->> 'workflow'), '{}'))::json
        from unnest(replies) as r
    )
    select json_agg(c.body order by c.cause, c.position) into commands from command as c;
    return coalesce(commands, '[]');
end;
$$;
comment on function _commands is 'What callers carry out: dispatch a step, render an output, tell that a workflow finished, answer a request.';

create function advance(events jsonb, max_running integer default 10, moment timestamptz default now()) returns json
language plpgsql
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set jit = off
as $$
-- The planner is pinned: a plan made while a table held ten rows would scan it when it holds millions.
declare
    event record;
    effect _effect;
    touched _step_ref[];
    completed _step_ref[];
    ended _step_ref[] := '{}';
    ready _step_ref[];
    started _step_ref[] := '{}';
    notes _note[];
    more _note[];
    replies jsonb[] := '{}';
    slots boolean := false;
    freed _step_ref;
begin
    select array_agg(row(t.workflow_id, null, t.cause)::_step_ref) into touched
    from (
        select e.value ->> 'workflow' as workflow_id, max(e.ordinality)::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        where e.value ? 'workflow'
        group by 1
    ) as t;
    -- In one order, so that two batches cannot wait for each other.
    perform from workflows as w where w.id in (select t.workflow_id from unnest(touched) as t) order by w.id for update;

    for event in
        select e.ordinality::integer - 1 as cause, e.value as body, e.value ->> 'type' as type
        from jsonb_array_elements(events) with ordinality as e
        where e.value ->> 'type' is distinct from 'step.completed' or e.value ? 'children'
        order by e.ordinality
    loop
        case
            when event.type = 'workflow.requested' then
                effect := _on_requested(event.body, event.cause, moment);
            when event.type in ('workflow.rendered', 'workflow.failed') then
                effect := _on_rendered(event.body, event.cause, moment);
            when event.type = 'workflow.cancelled' then
                effect := _on_cancelled(event.body, event.cause, moment);
            when event.type = 'tick' then
                effect := _on_tick(event.body, event.cause, moment);
                freed.cause := event.cause;
                slots := true;
            when event.type in ('step.failed', 'step.deferred', 'step.skipped', 'step.expanded', 'step.completed') then
                effect := _on_step(event.body, event.cause, moment);
            else
                raise exception 'advance knows no event of type %', event.type using errcode = 'invalid_parameter_value';
        end case;
        ended := ended || effect.ended;
        started := started || effect.started;
        touched := touched || effect.touched;
        replies := replies || array_remove(array[effect.reply], null);
    end loop;

    -- The common case, for the whole batch at once: plain results. The first of several for one step counts.
    with result as materialized (
        select distinct on (e.value ->> 'workflow', e.value ->> 'step')
            e.value ->> 'workflow' as workflow_id, e.value ->> 'step' as step_id, (e.value ->> 'attempt')::integer as attempt,
            e.value -> 'output' as output, e.value -> 'usage' as usage, e.ordinality::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        where e.value ->> 'type' = 'step.completed' and not e.value ? 'children'
        order by e.value ->> 'workflow', e.value ->> 'step', e.ordinality
    ),
    done as (
        update steps as s
        set status = 'SUCCESS', output = r.output, attempt = r.attempt, error = null, due_at = null, finished_at = moment,
            model_calls = s.model_calls + coalesce((r.usage ->> 'model_calls')::integer, 0),
            input_tokens = s.input_tokens + coalesce((r.usage ->> 'input_tokens')::bigint, 0),
            output_tokens = s.output_tokens + coalesce((r.usage ->> 'output_tokens')::bigint, 0),
            cost_microdollars = s.cost_microdollars + coalesce((r.usage ->> 'cost_microdollars')::bigint, 0)
        from result as r
        where s.workflow_id = r.workflow_id and s.id = r.step_id and s.status in ('RUNNING', 'WAITING') and s.children is null
        returning s.workflow_id, s.id, r.attempt, r.usage, r.cause
    )
    select array_agg(row(d.workflow_id, d.id, d.cause)::_step_ref),
        array_agg(row(d.workflow_id, d.id, 'step.completed', d.attempt, null, 1, d.usage, null)::_note)
    into completed, notes
    from done as d;

    for event in
        select e.ordinality::integer - 1 as cause, e.value as body
        from jsonb_array_elements(events) with ordinality as e
        where e.value ->> 'type' = 'step.completed' and not e.value ? 'children'
            and e.ordinality - 1 not in (select c.cause from unnest(completed) as c)
        order by e.ordinality
    loop
        effect := _on_step(event.body, event.cause, moment);
        started := started || effect.started;
        replies := replies || array_remove(array[effect.reply], null);
    end loop;

    ended := ended || completed;
    if cardinality(ended) > 0 then
        select s.ready, s.notes into ready, more from _settle(ended, moment) as s;
        notes := notes || more || _start(ready, moment);
        started := started || ready;
    end if;
    if notes is not null then
        perform _write(notes, moment);
    end if;

    for event in
        select w.id, max(t.cause) as cause,
            w.steps_open > 0 and coalesce(w.input_tokens + w.output_tokens > w.max_tokens, false) as no_tokens,
            w.steps_open > 0 and coalesce(w.cost_microdollars > w.max_cost_microdollars, false) as no_money
        from unnest(touched) as t
        join workflows as w on w.id = t.workflow_id
        where w.status <> 'RUNNING'
            or w.input_tokens + w.output_tokens > w.max_tokens
            or w.cost_microdollars > w.max_cost_microdollars
        group by w.id
        order by w.id
    loop
        if (select w.status from workflows as w where w.id = event.id) = 'RUNNING' and (event.no_tokens or event.no_money) then
            perform _end_workflow(event.id, 'FAILED', jsonb_build_object(
                'type', 'BudgetExceeded',
                'message', format('the workflow passed its %s', case when event.no_tokens then 'max_tokens' else 'max_cost_usd' end)
            ), null, moment);
        end if;
        freed := row(event.id, null, event.cause)::_step_ref;
        slots := true;
        started := started || _admitted(event.id, event.cause);
    end loop;
    if slots then
        started := started || _admit(max_running, touched, freed, moment);
    end if;

    return _commands(started, touched, replies, moment);
end;
$$;
comment on function advance is
    'Apply a batch of events and return the commands to carry out. An event applied before changes nothing and returns its commands again.';
-- What callers read. JSON, in the shape that the API shows.

create function _usage(model_calls bigint, input_tokens bigint, output_tokens bigint, cost_microdollars bigint) returns json
language sql immutable
return json_build_object(
    'model_calls', model_calls, 'input_tokens', input_tokens, 'output_tokens', output_tokens, 'cost_microdollars', cost_microdollars
);

create function _head(w workflows) returns json
language sql stable
return json_build_object(
    'id', w.id, 'workflow', w.name, 'version', w.version, 'status', w.status, 'priority', w.priority, 'seq', w.seq,
    'steps_total', w.steps_total, 'steps_open', w.steps_open, 'error', w.error,
    'usage', _usage(w.model_calls, w.input_tokens, w.output_tokens, w.cost_microdollars),
    'created_at', w.created_at, 'started_at', w.started_at, 'finished_at', w.finished_at
);

create function get_workflow(id text) returns json
language sql stable
begin atomic
    select (_head(w)::jsonb || jsonb_build_object(
        'input', w.input,
        'output', w.output,
        'budget', jsonb_build_object(
            'max_steps', w.max_steps, 'max_tokens', w.max_tokens, 'max_cost_microdollars', w.max_cost_microdollars,
            'deadline_seconds', w.deadline_seconds
        ),
        'steps', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'id', s.id, 'parent', s.parent, 'agent', s.agent, 'status', s.status, 'attempt', s.attempt, 'needs', s.needs,
                'output', case when s.status = 'SUCCESS' then s.output end, 'error', s.error,
                'started_at', s.started_at, 'finished_at', s.finished_at,
                'usage', _usage(s.model_calls, s.input_tokens, s.output_tokens, s.cost_microdollars)
            ) order by s.parent nulls first, s.position), '[]')
            from steps as s where s.workflow_id = w.id
        )
    ))::json
    from workflows as w where w.id = get_workflow.id;
end;
comment on function get_workflow is 'One workflow with its steps; null when there is none.';

create function list_workflows(status text default null, name text default null, before text default null, max_rows integer default 50)
returns json
language sql stable
begin atomic
    select coalesce(json_agg(_head(page)), '[]')
    from (
        select w.* from workflows as w
        where (list_workflows.status is null or w.status = list_workflows.status)
            and (list_workflows.name is null or w.name = list_workflows.name)
            and (before is null or w.id < before collate "C")
        order by w.id desc
        limit max_rows
    ) as page;
end;
comment on function list_workflows is 'The newest workflows first; before is the last id of the page before.';

create function workflow_history(id text, after integer default 0, max_rows integer default 1000) returns json
language sql stable
begin atomic
    select coalesce(json_agg(json_build_object(
        'seq', page.seq, 'at', page.at, 'type', page.type, 'step', page.step_id, 'attempt', page.attempt, 'data', page.data
    )), '[]')
    from (
        select h.* from history as h
        where h.workflow_id = workflow_history.id and h.seq > after
        order by h.seq
        limit max_rows
    ) as page;
end;
comment on function workflow_history is 'What happened after entry `after`, oldest first.';

create function workflow_snapshot(id text, seq integer) returns json
language sql stable
begin atomic
    with entry as (
        select h.* from history as h where h.workflow_id = workflow_snapshot.id and h.seq <= workflow_snapshot.seq
    ),
    ending as (
        select e.type from entry as e where e.type in ('workflow.succeeded', 'workflow.failed', 'workflow.cancelled')
    ),
    last as (
        select distinct on (e.step_id) e.step_id, case e.type
            when 'step.completed' then 'SUCCESS'
            when 'step.failed' then 'FAILED'
            when 'step.skipped' then 'SKIPPED'
            when 'step.dispatched' then 'RUNNING'
            else 'WAITING'
        end as status
        from entry as e
        where e.step_id is not null and e.type <> 'step.late'
        order by e.step_id, e.seq desc
    ),
    step as (
        select s.*, coalesce(l.status, 'PENDING') as status_then
        from steps as s
        left join last as l on l.step_id = s.id
        where s.workflow_id = workflow_snapshot.id
            and (s.parent is null or s.parent in (select e.step_id from entry as e where e.type = 'step.expanded'))
    )
    select json_build_object(
        'id', w.id, 'workflow', w.name, 'version', w.version, 'seq', least(w.seq, workflow_snapshot.seq),
        'status', coalesce(
            (select case g.type
                when 'workflow.succeeded' then 'SUCCESS' when 'workflow.failed' then 'FAILED' else 'CANCELLED' end
            from ending as g),
            case when exists (select from entry as e where e.type = 'workflow.started') then 'RUNNING' else 'QUEUED' end
        ),
        'steps', (
            select coalesce(json_agg(json_build_object(
                'id', s.id, 'parent', s.parent, 'agent', s.agent,
                'status', case
                    when s.status_then in ('PENDING', 'RUNNING', 'WAITING') and exists (select from ending) then 'CANCELLED'
                    else s.status_then
                end,
                'output', case when s.status_then = 'SUCCESS' then s.output end
            ) order by s.parent nulls first, s.position), '[]')
            from step as s
        )
    )
    from workflows as w
    where w.id = workflow_snapshot.id and exists (select from entry);
end;
comment on function workflow_snapshot is 'The state after history entry `seq`, worked out from the history; null when there is none.';

create function record_dead_letter(letter jsonb, moment timestamptz default now()) returns bigint
language sql
begin atomic
    insert into dead_letters (
        message_id, subscription, topic, attempts, reason, workflow_id, step_id, data, attributes, recorded_at
    )
    values (
        letter ->> 'message_id', letter ->> 'subscription', letter ->> 'topic', (letter ->> 'attempts')::integer, letter ->> 'reason',
        letter ->> 'workflow', letter ->> 'step', decode(letter ->> 'data', 'base64'), letter -> 'attributes', moment
    )
    on conflict (subscription, message_id) do update set attempts = excluded.attempts
    returning id;
end;
comment on function record_dead_letter is 'Keep a message that used up its attempts; a copy of it changes nothing but the count.';
-- Only the server speaks to these tables: row-level security is on without a policy, and the API's public roles get nothing.

alter table workflows enable row level security;
alter table steps enable row level security;
alter table edges enable row level security;
alter table history enable row level security;
alter table dead_letters enable row level security;

revoke all on workflows, steps, edges, history, dead_letters from public;

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and (p.proname like '\_%' or p.proname in (
            'advance', 'get_workflow', 'list_workflows', 'workflow_history', 'workflow_snapshot', 'record_dead_letter'
        ))
    loop
        execute format('revoke execute on function %s from public', function);
        -- These roles are Supabase's; a plain PostgreSQL has none of them.
        foreach role in array array['anon', 'authenticated'] loop
            if exists (select from pg_roles where rolname = role) then
                execute format('revoke execute on function %s from %I', function, role);
            end if;
        end loop;
        if exists (select from pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', function);
        end if;
    end loop;

    foreach role in array array['anon', 'authenticated'] loop
        if exists (select from pg_roles where rolname = role) then
            execute format('revoke all on workflows, steps, edges, history, dead_letters from %I', role);
            execute format('revoke all on sequence dead_letters_id_seq from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on workflows, steps, edges, history, dead_letters to service_role;
    end if;
end;
$$;
