-- Schedules: a tick starts one workflow at most, whoever finds it due and however often. And what prompts steps were done with.

create table schedules (
    name text collate "C" primary key,
    cron text not null,
    last_tick timestamptz not null,
    workflow_id text collate "C"
);

comment on table schedules is 'One row per definition that has a schedule, from when it was first seen with it.';
comment on column schedules.last_tick is 'Every tick up to this moment was decided on: it started a workflow, or was passed over. None of them starts one any more.';
comment on column schedules.workflow_id is 'The workflow that was started last; perhaps no longer there.';

create function _take_tick(schedule jsonb, workflow text) returns boolean
language plpgsql as $$
declare
    tick timestamptz := (schedule ->> 'tick')::timestamptz;
begin
    update schedules as s set last_tick = tick, workflow_id = _take_tick.workflow
    where s.name = schedule ->> 'name' and s.cron = schedule ->> 'cron' and s.last_tick < tick;
    return found or exists (select from workflows as w where w.id = _take_tick.workflow);
end;
$$;
comment on function _take_tick is
    'Whether a tick may start its workflow, or has: not when it was passed over, or belongs to an expression that is no longer in force.';

create function read_schedules(moment timestamptz default now()) returns json
language sql stable
begin atomic
    select json_build_object('moment', moment, 'schedules', coalesce((
        select json_agg(json_build_object(
            'name', s.name, 'cron', s.cron, 'last_tick', s.last_tick, 'workflow', s.workflow_id
        ) order by s.name)
        from schedules as s
    ), '[]'));
end;
comment on function read_schedules is 'How far each schedule has come, and the time here, which is the one that they go by.';

create function note_schedules(notes jsonb) returns integer
language plpgsql as $$
declare
    note record;
    changed integer := 0;
begin
    for note in
        select n.value ->> 'name' as name, n.value ->> 'cron' as cron, (n.value ->> 'tick')::timestamptz as tick
        from jsonb_array_elements(notes) as n
        -- In one order, so that two calls cannot wait for each other.
        order by 1
    loop
        if note.cron is null then
            delete from schedules as s where s.name = note.name;
        else
            insert into schedules as s (name, cron, last_tick) values (note.name, note.cron, note.tick)
            on conflict (name) do update set cron = excluded.cron, last_tick = greatest(s.last_tick, excluded.last_tick)
            where s.cron <> excluded.cron or s.last_tick < excluded.last_tick;
        end if;
        changed := changed + found::integer;
    end loop;
    return changed;
end;
$$;
comment on function note_schedules is
    'Note ticks that are passed over, the moment from which an expression counts, and (without one) that a definition has no schedule any more.';

alter table schedules enable row level security;
revoke all on schedules from public;

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and p.proname in ('_take_tick', 'read_schedules', 'note_schedules')
    loop
        execute format('revoke execute on function %s from public', function);
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
            execute format('revoke all on schedules from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on schedules to service_role;
    end if;
end;
$$;

alter table steps add column prompts jsonb;
comment on column steps.prompts is 'The prompts of the last attempt that told: name, version and content hash of each.';

create or replace function _on_requested(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    wf text := event ->> 'workflow';
    effect _effect;
    known workflows;
    created boolean;
begin
    if event ? 'schedule' and not _take_tick(event -> 'schedule', wf) then
        effect.reply := jsonb_build_object('type', 'passed', 'cause', cause, 'workflow', wf, 'name', event ->> 'name');
        return effect;
    end if;
    insert into workflows (
        id, request_key, request_hash, name, version, status, priority, input, output_template, output_needs, output_uses_input,
        max_steps, max_tokens, max_cost_microdollars, deadline_seconds, callback_url, traceparent, steps_total, steps_open, created_at,
        tenant
    )
    values (
        wf, event ->> 'request_key', event ->> 'request_hash', event ->> 'name', (event ->> 'version')::integer, 'QUEUED',
        (event ->> 'priority')::integer, event -> 'input', event -> 'output',
        array(select jsonb_array_elements_text(event -> 'output_needs')), (event ->> 'output_uses_input')::boolean,
        (event ->> 'max_steps')::integer, (event ->> 'max_tokens')::bigint, (event ->> 'max_cost_microdollars')::bigint,
        (event ->> 'deadline_seconds')::double precision, event ->> 'callback_url', event ->> 'traceparent',
        jsonb_array_length(event -> 'steps'), jsonb_array_length(event -> 'steps'), moment,
        coalesce(event ->> 'tenant', '')
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
comment on function _on_requested is
    'workflow.requested: create the workflow, QUEUED, unless its id or request key is known, or it is for a tick that starts none.';

create or replace function _fail_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    nested text;
begin
    update steps as t
    set status = 'FAILED', error = event -> 'error', due_at = null, finished_at = moment, prompts = event -> 'prompts',
        (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
            select p.*
            from _spent(
                t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
            ) as p
        )
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.failed', s.attempt, event -> 'error', 1, event -> 'usage', null)::_note], moment
    );
    if s.on_failure = 'continue' then
        effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
        return effect;
    end if;
    nested := _goes_on(s);
    if nested is not null then
        perform _end_nested(s.workflow_id, nested, event -> 'error' || jsonb_build_object('step', s.id), moment);
        effect.ended := array[row(s.workflow_id, nested, cause)::_step_ref];
    else
        perform _end_workflow(s.workflow_id, 'FAILED', event -> 'error' || jsonb_build_object('step', s.id), null, moment);
    end if;
    return effect;
end;
$$;

create or replace function _retry_step(s steps, type text, event jsonb, delay_seconds double precision, cause integer, moment timestamptz)
returns _effect
language plpgsql as $$
declare
    effect _effect;
    start_at timestamptz := moment + make_interval(secs => delay_seconds);
    -- Short delays are waited out by whoever publishes; later moments belong to the sweeper, and none is kept while paused.
    soon boolean := delay_seconds <= 10
        and exists (select from workflows as w where w.id = s.workflow_id and w.paused_at is null);
    due timestamptz := case when soon then start_at + _lease(s.timeout_seconds) else start_at end;
begin
    update steps as t
    set status = case when soon then 'RUNNING' else 'WAITING' end,
        attempt = case when type = 'step.deferred' then t.attempt else t.attempt + 1 end,
        deferrals = case when type = 'step.deferred' then t.deferrals + 1 else 0 end,
        due_at = due, error = event -> 'error', prompts = event -> 'prompts',
        (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
            select p.*
            from _spent(
                t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
            ) as p
        )
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

create or replace function _expand_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    tried integer := (event ->> 'attempt')::integer;
    size integer := jsonb_array_length(event -> 'children');
    ids text[];
    added jsonb := event -> 'children';
    limits jsonb;
    refusal jsonb;
begin
    if event ->> 'type' = 'step.completed' then
        -- Patterns and for_each stand in the definition; what an agent spawns is limited.
        limits := '{"max_depth": 5}' || coalesce(s.spec -> 'spawn', '{}');
        refusal := jsonb_build_object('type', 'InputError', 'message', _spawn_refusal(limits, added));
        added := _bequeathed(limits, added);
    end if;
    if refusal ->> 'message' is null and not (
        select w.max_steps is null or w.steps_total + size <= w.max_steps from workflows as w where w.id = s.workflow_id
    ) then
        refusal := jsonb_build_object('type', 'BudgetExceeded', 'message', format('%s more steps would pass max_steps', size));
    end if;
    if refusal ->> 'message' is not null then
        -- This result is known: its repetition must not pass for a late one.
        update steps as t set late = t.late || tried where t.workflow_id = s.workflow_id and t.id = s.id;
        return _fail_step(s, event || jsonb_build_object('error', refusal), cause, moment);
    end if;
    update workflows as w set steps_total = w.steps_total + size, steps_open = w.steps_open + size where w.id = s.workflow_id;
    perform _add_steps(s.workflow_id, s.id, added);
    ids := array(
        select c.value ->> 'id' from jsonb_array_elements(added) with ordinality as c order by c.ordinality
    );
    update steps as t
    set status = 'WAITING', due_at = null, needs_open = size, join_from = event ->> 'join', output = event -> 'output', error = null,
        attempt = tried, children = ids, prompts = event -> 'prompts',
        (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
            select p.*
            from _spent(
                t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
            ) as p
        )
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
    state text;
    freed _step_ref;
begin
    select array_agg(row(t.workflow_id, null, t.cause)::_step_ref) into touched
    from (
        select e.value ->> 'workflow' as workflow_id, max(e.ordinality)::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        -- One that is refused must not make others' commands come again; one that is not says itself that it touched its workflow.
        where e.value ? 'workflow' and e.value ->> 'type' not in (
            'step.redriven', 'step.signalled', 'workflow.paused', 'workflow.unpaused'
        )
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
            when event.type = 'workflow.paused' then
                effect := _on_paused(event.body, event.cause, moment);
            when event.type = 'workflow.unpaused' then
                effect := _on_unpaused(event.body, event.cause, moment);
            when event.type = 'step.redriven' then
                effect := _on_redriven(event.body, event.cause, moment);
            when event.type = 'step.signalled' then
                effect := _on_signalled(event.body, event.cause, moment);
            when event.type = 'tick' then
                effect := _on_tick(event.body, event.cause, moment);
                freed.cause := event.cause;
                slots := true;
            when event.type in (
                'step.failed', 'step.deferred', 'step.skipped', 'step.expanded', 'step.waiting', 'step.completed'
            ) then
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
            e.value -> 'output' as output, e.value -> 'usage' as usage, e.value -> 'models' as models, e.value -> 'prompts' as prompts,
            e.ordinality::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        where e.value ->> 'type' = 'step.completed' and not e.value ? 'children'
        order by e.value ->> 'workflow', e.value ->> 'step', e.ordinality
    ),
    done as (
        update steps as s
        set status = 'SUCCESS', output = r.output, attempt = r.attempt, error = null, due_at = null, finished_at = moment,
            prompts = r.prompts,
            (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
                select p.*
                from _spent(
                    s.model_calls, s.input_tokens, s.output_tokens, s.cost_microdollars, s.models,
                    _unnoted(s.late, r.attempt, r.usage), _unnoted(s.late, r.attempt, r.models)
                ) as p
            )
        from result as r
        where s.workflow_id = r.workflow_id and s.id = r.step_id and s.status in ('RUNNING', 'WAITING') and s.children is null
        returning s.workflow_id, s.id, r.attempt, _unnoted(s.late, r.attempt, r.usage) as usage, r.cause
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
        where w.status <> 'RUNNING' or w.steps_waiting > 0 or w.paused_at is not null
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
        else
            perform _park(event.id, moment);
        end if;
        state := (select w.status from workflows as w where w.id = event.id);
        continue when state = 'RUNNING';
        freed := row(event.id, null, event.cause)::_step_ref;
        slots := true;
        if state <> 'QUEUED' then
            started := started || _admitted(event.id, event.cause);
        end if;
    end loop;
    if slots then
        started := started || _admit(max_running, touched, freed, moment);
    end if;

    return _commands(started, touched, replies, moment);
end;
$$;

create or replace function get_workflow(id text) returns json
language sql stable
begin atomic
    select (_head(w)::jsonb || jsonb_build_object(
        'input', w.input,
        'output', w.output,
        'models', coalesce(
            _sum_models(array(select s.models from steps as s where s.workflow_id = w.id and s.models is not null)), '{}'
        ),
        'budget', jsonb_build_object(
            'max_steps', w.max_steps, 'max_tokens', w.max_tokens, 'max_cost_microdollars', w.max_cost_microdollars,
            'deadline_seconds', w.deadline_seconds
        ),
        'steps', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'id', s.id, 'parent', s.parent, 'agent', s.agent, 'status', s.status, 'attempt', s.attempt, 'needs', s.needs,
                'output', case when s.status = 'SUCCESS' then s.output end, 'error', s.error,
                'waiting', case when s.status = 'WAITING' and s.signal is not null then s.wait end,
                -- A step that waited began when it began to wait, not when it was woken.
                'started_at', coalesce((s.wait ->> 'since')::timestamptz, s.started_at), 'finished_at', s.finished_at,
                'usage', _usage(s.model_calls, s.input_tokens, s.output_tokens, s.cost_microdollars),
                'models', coalesce(s.models, '{}'), 'prompts', coalesce(s.prompts, '[]'), 'reused', s.reused
            ) order by s.parent nulls first, s.position), '[]')
            from steps as s where s.workflow_id = w.id
        )
    ))::json
    from workflows as w where w.id = get_workflow.id;
end;

create or replace function _fork_steps(origin text, fork text, finished text[], expanded text[]) returns void
language plpgsql as $$
declare
    -- What an attempt leaves behind. Everything else, columns of later versions included, a fork has from its origin.
    unused jsonb := jsonb_build_object(
        'workflow_id', fork, 'deferrals', 0, 'late', null, 'due_at', null, 'models', null,
        'model_calls', 0, 'input_tokens', 0, 'output_tokens', 0, 'cost_microdollars', 0, 'reused', true
    );
    anew jsonb := unused || jsonb_build_object(
        'status', 'PENDING', 'attempt', 0, 'children', null, 'join_from', null, 'output', null, 'error', null,
        'prompts', null, 'wait', null, 'woken', null, 'started_at', null, 'finished_at', null, 'reused', false
    );
begin
    insert into steps
    select r.*
    from unnest(finished) as k (id)
    join steps as t on t.workflow_id = origin and t.id = k.id
    cross join lateral jsonb_populate_record(t, unused) as r;

    insert into steps
    select r.*
    from unnest(expanded) as k (id)
    join steps as t on t.workflow_id = origin and t.id = k.id
    cross join lateral jsonb_populate_record(t, unused || jsonb_build_object(
        'status', 'WAITING', 'error', null, 'finished_at', null, 'output', case when t.join_from is null then t.output end
    )) as r;

    -- Of a step that is made anew the children are, too.
    insert into steps
    select r.*
    from steps as t
    cross join lateral jsonb_populate_record(t, anew) as r
    where t.workflow_id = origin
        and not exists (select from steps as f where f.workflow_id = fork and f.id = t.id)
        and (t.parent is null or exists (select from steps as f where f.workflow_id = fork and f.id = t.parent));

    update steps as t
    set needs_open = (
        select count(*)
        from unnest(case when t.status = 'WAITING' then t.children else t.needs end) as n (id)
        join steps as u on u.workflow_id = fork and u.id = n.id
        where not _is_final(u.status)
    )
    where t.workflow_id = fork and not _is_final(t.status);

    insert into edges (workflow_id, from_id, to_id)
    select fork, u.id, t.id
    from steps as t
    cross join lateral (select distinct n.id from unnest(t.needs) as n (id)) as n
    join steps as u on u.workflow_id = fork and u.id = n.id
    where t.workflow_id = fork and t.status = 'PENDING' and not _is_final(u.status);
    insert into edges (workflow_id, from_id, to_id)
    select fork, t.id, t.parent from steps as t where t.workflow_id = fork and t.parent is not null and not _is_final(t.status);
end;
$$;

-- It looks at whole rows, whose columns were fixed when it was made.
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
            when e.type = 'step.cancelled' then 'CANCELLED'
            when e.type = 'step.expanded' then 'WAITING'
            when e.seq < r.seq or e.type = 'step.woken' then 'PENDING'
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
            (select case e.type when 'workflow.started' then 'RUNNING' when 'workflow.waiting' then 'WAITING' end
            from entry as e, resumption as r
            where e.type in ('workflow.started', 'workflow.waiting', 'workflow.woken') and e.seq > r.seq
            order by e.seq desc limit 1),
            'QUEUED'
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

create or replace function _on_tick(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    one _effect;
    recover boolean := coalesce((event ->> 'recover')::boolean, false);
    expired integer := 0;
    wf record;
    s steps;
begin
    effect.started := '{}';
    effect.ended := '{}';
    effect.touched := '{}';
    for wf in
        select w.id, w.deadline_at from workflows as w
        where w.id in (
            select r.id from workflows as r
            where r.status = 'RUNNING' and (
                r.wake_at <= moment or recover
                -- Whoever was to render its output may be gone; they may also just be about it.
                or r.steps_open = 0 and exists (
                    select from history as h where h.workflow_id = r.id and h.seq = r.seq and h.at <= moment - interval '10 seconds'
                )
            )
            union all
            select r.id from workflows as r where r.status in ('WAITING', 'QUEUED') and r.wake_at <= moment
        )
        -- Said once more: whoever held the row until now may have changed it.
        and (w.wake_at <= moment or w.status = 'RUNNING' and (w.steps_open = 0 or recover))
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
            -- One that was due before it may have failed the nested workflow that both are in.
            continue when exists (select from steps as t where t.workflow_id = wf.id and t.id = s.id and _is_final(t.status));
            one := _on_due(s, recover, cause, moment);
            expired := expired + (s.status = 'RUNNING' and not recover)::integer;
            effect.started := effect.started || one.started;
            effect.ended := effect.ended || one.ended;
            exit when (select _is_final(w.status) from workflows as w where w.id = wf.id);
        end loop;
        update workflows as w set wake_at = _wakes_at(w) where w.id = wf.id and not _is_final(w.status);
    end loop;
    for wf in
        select w.id from workflows as w
        -- Whoever was to tell of an end may be gone: it is told twice, and whoever tells the callback knows the copy.
        where w.callback_url is not null and w.finished_at > moment - interval '1 hour' and (w.wake_at <= moment or recover and w.wake_at is not null)
        order by w.finished_at
        limit coalesce((event ->> 'limit')::integer, 500)
        for update skip locked
    loop
        update workflows as w set wake_at = null where w.id = wf.id;
        effect.touched := effect.touched || row(wf.id, null, cause)::_step_ref;
    end loop;
    if expired > 0 then
        effect.reply := jsonb_build_object('type', 'expired', 'cause', cause, 'attempts', expired);
    end if;
    return effect;
end;
$$;
