-- Dead letters say why, and can be redriven: a workflow that one of them had failed goes on.

alter table workflows add column resumed integer not null default 0;
comment on column workflows.resumed is 'How often it went on after it had failed. Each time it ends anew, and says so in a message of its own.';

alter table dead_letters
    add column function text collate "C",
    add column cause text collate "C",
    add column last_error jsonb,
    add column attempt integer,
    add column redrive_count integer not null default 0,
    add column failed_redrive integer not null default 0,
    add column redriven_at timestamptz;
-- Of letters from before nobody knows why; their message says which attempt it was to start.
update dead_letters as d
set function = regexp_replace(d.subscription, '^.*[.]', ''),
    cause = case when d.reason like 'rejected: %' then replace(d.reason, ': ', ':') else 'unknown' end,
    attempt = case when d.step_id is not null then substring(d.message_id from '/([0-9]+)([.][0-9]+)?$')::integer end;
alter table dead_letters alter column function set not null, alter column cause set not null;

comment on column dead_letters.cause is 'The group that the reason belongs to, to redrive what failed alike.';
comment on column dead_letters.last_error is 'Of the last delivery that said why it failed: type, message and at; null when none did.';
comment on column dead_letters.attempt is 'The attempt that the message was to start; null for every other message.';
comment on column dead_letters.failed_redrive is 'The number of the last redrive after which the message was dead again; 0 when none was.';

create or replace function _start(ready _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with running as (
        update steps as s
        set status = 'RUNNING', attempt = s.attempt + 1, started_at = moment, due_at = moment + _lease(s.timeout_seconds)
        from unnest(ready) as r
        where s.workflow_id = r.workflow_id and s.id = r.step_id and s.status = 'PENDING'
        returning s.workflow_id, s.id, s.attempt, s.due_at
    )
    select array_agg(row(g.workflow_id, g.id, 'step.dispatched', g.attempt, null, 0, null, g.due_at)::_note)
    into notes from running as g;
    return coalesce(notes, '{}');
end;
$$;
comment on function _start is 'PENDING steps whose needs have ended get their first attempt, or their next one after their workflow was resumed.';

create function _begun(w workflows) returns text[]
language plpgsql as $$
begin
    if w.resumed = 0 then
        return _roots(w.id);
    end if;
    return array(
        select s.id from steps as s where s.workflow_id = w.id and s.started_at = w.started_at order by s.position
    );
end;
$$;
comment on function _begun is 'The steps that the last admission of a workflow started.';

create function _on_redriven(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    w workflows;
    s steps;
    tried integer := (event ->> 'attempt')::integer;
    reason text;
begin
    select k.* into w from workflows as k where k.id = event ->> 'workflow';
    select k.* into s from steps as k where k.workflow_id = event ->> 'workflow' and k.id = event ->> 'step';
    reason := _not_resumable(w, s, tried);
    if reason is null then
        perform _resume(w, s, cause, moment);
        effect.touched := array[row(w.id, null, cause)::_step_ref];
    elsif exists (
        select from history as h
        where h.workflow_id = s.workflow_id and h.step_id = s.id and h.type = 'step.redriven' and h.attempt = tried
    ) then
        reason := null;
        effect.started := _again(w.id, _begun(w), cause, true);
    end if;
    effect.reply := jsonb_build_object(
        'type', case when reason is null then 'redriven' else 'refused' end, 'cause', cause,
        'workflow', event ->> 'workflow', 'step', event ->> 'step', 'attempt', tried, 'reason', reason
    );
    return effect;
end;
$$;
comment on function _on_redriven is 'step.redriven: a step whose message was dead gets another attempt, and its workflow goes on.';

create function _not_resumable(w workflows, s steps, tried integer) returns text
language plpgsql stable as $$
begin
    return case
        when w.id is null or s.id is null then 'its workflow is not there any more'
        when s.attempt > tried then format('attempt %s of its step came after it', s.attempt)
        when w.status <> 'FAILED' then format('its workflow is %s and does not wait for it', w.status)
        when w.error ->> 'step' is distinct from s.id or s.error ->> 'type' is distinct from 'DeadLettered' then format(
            'its workflow failed for another reason (%s)', concat_ws(' in step ', w.error ->> 'type', w.error ->> 'step')
        )
    end;
end;
$$;
comment on function _not_resumable is 'Why a dead letter''s step cannot go on; null when it can.';

create function _resume(w workflows, s steps, cause integer, moment timestamptz) returns void
language plpgsql as $$
declare
    reopened integer;
    joined _step_ref[];
begin
    -- What the failure cut off may still be working under its old attempt, so it gets the next one; and its retries anew.
    update steps as t
    set status = case when t.children is null then 'PENDING' else 'WAITING' end,
        max_retries = t.max_retries + case when t.children is null then t.attempt else 0 end,
        deferrals = 0, error = null, finished_at = null
    where t.workflow_id = w.id and (t.status = 'CANCELLED' or t.id = s.id);
    get diagnostics reopened = row_count;
    update workflows as t
    set status = 'QUEUED', resumed = t.resumed + 1, error = null, finished_at = null, deadline_at = null, admitted_by = null
    where t.id = w.id;
    perform _write(
        array[
            row(w.id, s.id, 'step.redriven', s.attempt, null, -reopened, null, null)::_note,
            row(w.id, null, 'workflow.resumed', null, null, 0, null, null)::_note
        ],
        moment
    );

    -- A parent whose last child ended in the moment of the failure has nobody left to end it.
    joined := array(
        select row(w.id, t.id, cause)::_step_ref from steps as t
        where t.workflow_id = w.id and t.status = 'WAITING' and t.children is not null and t.needs_open = 0
    );
    if cardinality(joined) > 0 then
        perform _write(_join(joined, moment), moment);
        perform _write(m.notes, moment) from _settle(joined, moment) as m;
    end if;
end;
$$;
comment on function _resume is 'A workflow that failed waits for a slot again, with everything open that its failure closed.';

create or replace function _admit(max_running integer, touched _step_ref[], freed _step_ref, moment timestamptz) returns _step_ref[]
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
        roots := _ready(
            queued.id,
            -- Of a new workflow these are its roots; a resumed one goes on wherever it was.
            array(
                select s.id from steps as s
                where s.workflow_id = queued.id and s.status = 'PENDING' and s.needs_open = 0
                order by s.position
            ),
            coalesce(queued.cause, freed.cause, 0)
        );
        perform _write(
            array[row(queued.id, null, 'workflow.started', null, null, 0, null, null)::_note] || _start(roots, moment), moment
        );
        started := started || roots;
    end loop;
    return started;
end;
$$;
comment on function _admit is 'Start queued workflows while fewer than max_running run: higher priority first, then the older.';

create or replace function _admitted(by_workflow text, cause integer) returns _step_ref[]
language plpgsql as $$
declare
    started _step_ref[] := '{}';
    running workflows;
begin
    for running in select w.* from workflows as w where w.status = 'RUNNING' and w.admitted_by = by_workflow loop
        started := started || _again(running.id, _begun(running), cause, true);
    end loop;
    return started;
end;
$$;
comment on function _admitted is 'What the end of a workflow had started by giving its slot away: returned again when its last event is repeated.';

create or replace function _commands(started _step_ref[], touched _step_ref[], replies jsonb[], moment timestamptz) returns json
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
                'resumed', w.resumed,
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

create or replace function advance(events jsonb, max_running integer default 10, moment timestamptz default now()) returns json
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
        -- One that is refused must not make others' commands come again; one that is not says itself that it touched its workflow.
        where e.value ? 'workflow' and e.value ->> 'type' is distinct from 'step.redriven'
        group by 1
    ) as t;
    -- In one order, so that two batches cannot wait for each other.
    perform from workflows as w
    where w.id in (select e.value ->> 'workflow' from jsonb_array_elements(events) as e)
    order by w.id for update;

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
            when event.type = 'step.redriven' then
                effect := _on_redriven(event.body, event.cause, moment);
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
        if (select _is_final(w.status) from workflows as w where w.id = event.id) then
            started := started || _admitted(event.id, event.cause);
        end if;
    end loop;
    if slots then
        started := started || _admit(max_running, touched, freed, moment);
    end if;

    return _commands(started, touched, replies, moment);
end;
$$;
comment on function advance is
    'Apply a batch of events and return the commands to carry out. An event applied before changes nothing and returns its commands again.';

create or replace function list_workflows(status text default null, name text default null, before text default null, max_rows integer default 50)
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

create or replace function workflow_snapshot(id text, seq integer) returns json
language sql stable
begin atomic
    with entry as (
        select h.* from history as h where h.workflow_id = workflow_snapshot.id and h.seq <= workflow_snapshot.seq
    ),
    resumption as (
        select coalesce(max(e.seq), 0) as seq from entry as e where e.type = 'workflow.resumed'
    ),
    ending as (
        select e.type from entry as e, resumption as r
        where e.type in ('workflow.succeeded', 'workflow.failed', 'workflow.cancelled') and e.seq > r.seq
    ),
    last as (
        select distinct on (e.step_id) e.step_id, case
            when e.type = 'step.completed' then 'SUCCESS'
            when e.type = 'step.failed' then 'FAILED'
            when e.type = 'step.skipped' then 'SKIPPED'
            when e.type = 'step.expanded' then 'WAITING'
            when e.seq < r.seq then 'PENDING'
            when e.type = 'step.dispatched' then 'RUNNING'
            else 'WAITING'
        end as status
        from entry as e cross join resumption as r
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
            case
                when exists (select from entry as e, resumption as r where e.type = 'workflow.started' and e.seq > r.seq) then 'RUNNING'
                else 'QUEUED'
            end
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

create function _letter_state(d dead_letters) returns text
language sql immutable
return case when d.redrive_count = 0 then 'waiting' when d.failed_redrive >= d.redrive_count then 'again' else 'redriven' end;
comment on function _letter_state is 'waiting: never redriven; redriven: sent, and nothing heard since; again: dead again after its last redrive.';

create function _is_wanted(d dead_letters, filter jsonb) returns boolean
language sql stable
return (filter -> 'ids' is null or filter -> 'ids' @> to_jsonb(d.id))
    and (filter -> 'states' is null or filter -> 'states' ? _letter_state(d))
    and (filter ->> 'cause' is null or d.cause = filter ->> 'cause' or starts_with(d.cause, (filter ->> 'cause') || ':'))
    and (filter ->> 'function' is null or d.function = filter ->> 'function')
    and (filter ->> 'workflow' is null or d.workflow_id = filter ->> 'workflow')
    and (filter ->> 'since' is null or d.recorded_at >= (filter ->> 'since')::timestamptz)
    and (filter ->> 'until' is null or d.recorded_at < (filter ->> 'until')::timestamptz);
comment on function _is_wanted is 'Whether a letter fits a filter: ids, states, cause (or its group), function, workflow, since, until; what is left out is not asked.';

create function _letter_head(d dead_letters) returns jsonb
language sql stable
return jsonb_build_object(
    'id', d.id, 'message_id', d.message_id, 'subscription', d.subscription, 'topic', d.topic, 'function', d.function,
    'cause', d.cause, 'reason', d.reason, 'last_error', d.last_error, 'attempts', d.attempts,
    'workflow', d.workflow_id, 'step', d.step_id, 'attempt', d.attempt, 'state', _letter_state(d),
    'redrive_count', d.redrive_count, 'redriven_at', d.redriven_at, 'recorded_at', d.recorded_at, 'size_bytes', length(d.data)
);

create function _letter(d dead_letters) returns jsonb
language plpgsql stable as $$
declare
    w workflows;
    s steps;
begin
    select k.* into w from workflows as k where k.id = d.workflow_id;
    select k.* into s from steps as k where k.workflow_id = d.workflow_id and k.id = d.step_id;
    return _letter_head(d) || jsonb_build_object(
        'data', translate(encode(d.data, 'base64'), E'\n', ''), 'attributes', d.attributes,
        'blocked', case when d.attempt is not null then _not_resumable(w, s, d.attempt) end
    );
end;
$$;
comment on function _letter is 'A letter whole, with what keeps its step from being resumed.';

create or replace function record_dead_letter(letter jsonb, moment timestamptz default now()) returns bigint
language plpgsql as $$
declare
    known bigint;
    tried integer := (letter ->> 'attempt')::integer;
    redrive integer := coalesce((letter ->> 'redrive')::integer, 0);
begin
    -- A redriven step starts under its next attempt, whose message has an id of its own. It is the same letter that is dead again.
    select d.id into known from dead_letters as d
    where d.subscription = letter ->> 'subscription' and d.workflow_id = letter ->> 'workflow' and d.step_id = letter ->> 'step'
        and d.redrive_count > 0 and d.message_id <> letter ->> 'message_id' and tried is not null
    order by d.attempt desc
    limit 1
    for update;
    if known is not null then
        update dead_letters as d
        set message_id = letter ->> 'message_id', attempt = tried, attempts = (letter ->> 'attempts')::integer,
            reason = letter ->> 'reason', cause = letter ->> 'cause', last_error = nullif(letter -> 'last_error', 'null'),
            data = decode(letter ->> 'data', 'base64'), attributes = letter -> 'attributes', failed_redrive = d.redrive_count
        where d.id = known and d.attempt < tried;
        return known;
    end if;

    insert into dead_letters as d (
        message_id, subscription, topic, attempts, reason, workflow_id, step_id, data, attributes, recorded_at,
        function, cause, last_error, attempt
    )
    values (
        letter ->> 'message_id', letter ->> 'subscription', letter ->> 'topic', (letter ->> 'attempts')::integer, letter ->> 'reason',
        letter ->> 'workflow', letter ->> 'step', decode(letter ->> 'data', 'base64'), letter -> 'attributes', moment,
        letter ->> 'function', letter ->> 'cause', nullif(letter -> 'last_error', 'null'), tried
    )
    on conflict (subscription, message_id) do update
    set attempts = excluded.attempts, reason = excluded.reason, cause = excluded.cause, last_error = excluded.last_error,
        failed_redrive = least(greatest(d.failed_redrive, redrive), d.redrive_count)
    -- A copy from before the last redrive says nothing about it.
    where redrive >= d.redrive_count
    returning d.id into known;
    if known is null then
        select d.id into known from dead_letters as d
        where d.subscription = letter ->> 'subscription' and d.message_id = letter ->> 'message_id';
    end if;
    return known;
end;
$$;
comment on function record_dead_letter is 'Keep a message that used up its attempts; a copy of it changes nothing but the count, and one that was redriven is marked as dead again.';

create function list_dead_letters(filter jsonb default '{}', before bigint default null, max_rows integer default 50) returns json
language sql stable
begin atomic
    select coalesce(json_agg(page.head), '[]')
    from (
        select _letter_head(d) as head from dead_letters as d
        where (before is null or d.id < before) and _is_wanted(d, filter)
        order by d.id desc
        limit max_rows
    ) as page;
end;
comment on function list_dead_letters is 'The newest letters first, without their data; before is the last id of the page before.';

create function count_dead_letters(filter jsonb default '{}') returns bigint
language sql stable
begin atomic
    select count(*) from dead_letters as d where _is_wanted(d, filter);
end;
comment on function count_dead_letters is 'How many letters fit a filter.';

create function read_dead_letters(ids bigint[]) returns json
language sql stable
begin atomic
    select coalesce(json_agg(_letter(d) order by d.id desc), '[]') from dead_letters as d where d.id = any(ids);
end;
comment on function read_dead_letters is 'Letters whole, the newest first.';

create function redrive_dead_letters(ids bigint[], states text[], moment timestamptz default now()) returns json
language plpgsql as $$
declare
    letters json;
begin
    -- Of two that redrive at once each letter goes to one: the other passes over what is locked, and later finds its state changed.
    with claimed as (
        select d.id from dead_letters as d
        where d.id = any(ids) and _letter_state(d) = any(states)
        order by d.id
        for update skip locked
    ),
    marked as (
        update dead_letters as d
        set redrive_count = d.redrive_count + 1, redriven_at = moment
        from claimed as c
        where d.id = c.id
        returning d.id, _letter(d) as letter
    )
    select json_agg(m.letter order by m.id desc) into letters from marked as m;
    return coalesce(letters, '[]');
end;
$$;
comment on function redrive_dead_letters is 'Mark letters that are in one of these states as redriven, and return them to be sent, each to one caller.';

create function return_dead_letters(ids bigint[]) returns bigint
language plpgsql as $$
declare
    returned bigint;
begin
    update dead_letters as d
    set redrive_count = d.redrive_count - 1, redriven_at = case when d.redrive_count > 1 then d.redriven_at end
    where d.id = any(ids) and d.redrive_count > d.failed_redrive;
    get diagnostics returned = row_count;
    return returned;
end;
$$;
comment on function return_dead_letters is 'Take the mark back from letters that were not sent after all.';

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and (p.proname like '\_%' or p.proname in (
            'advance', 'get_workflow', 'list_workflows', 'workflow_history', 'workflow_snapshot', 'record_dead_letter',
            'list_dead_letters', 'count_dead_letters', 'read_dead_letters', 'redrive_dead_letters', 'return_dead_letters'
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
