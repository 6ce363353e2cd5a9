-- What held for each way to move a workflow, and not for two of them together.

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
    -- One that waits for people or time is not told again what it was told, nor anything else, before its workflow goes on.
    set status = case when soon then 'RUNNING' when t.signal is null then 'WAITING' else 'PENDING' end,
        attempt = case
            when type = 'step.deferred' or not soon and t.signal is not null and t.woken is null then t.attempt else t.attempt + 1
        end,
        deferrals = case when type = 'step.deferred' then t.deferrals + 1 else 0 end,
        due_at = case when soon or t.signal is null then due end, error = event -> 'error', prompts = event -> 'prompts',
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

create or replace function _on_redriven(event jsonb, cause integer, moment timestamptz) returns _effect
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
        -- It may have ended at once.
        effect.touched := array[row(w.id, null, cause)::_step_ref];
    end if;
    effect.reply := jsonb_build_object(
        'type', case when reason is null then 'redriven' else 'refused' end, 'cause', cause,
        'workflow', event ->> 'workflow', 'step', event ->> 'step', 'attempt', tried, 'reason', reason
    );
    return effect;
end;
$$;

create or replace function _take(known signals, later boolean, cause integer, moment timestamptz) returns _step_ref[]
language plpgsql as $$
declare
    taker steps;
begin
    select s.* into taker from steps as s
    where s.workflow_id = known.workflow_id and known.name in (s.id, s.signal) and s.status = 'WAITING' and s.signal is not null
        -- One that is due may be so for a signal that came before, which it takes with the next tick.
        and not (coalesce(s.due_at <= moment, false) and exists (
            select from signals as k
            where k.workflow_id = s.workflow_id and k.number < known.number and k.step_id is null and k.name in (s.id, s.signal)
        ))
    order by coalesce(s.due_at <= moment, false), s.position limit 1;
    if taker.id is null then
        return '{}';
    end if;
    if later then
        update steps as s set due_at = moment where s.workflow_id = taker.workflow_id and s.id = taker.id;
        update workflows as w set wake_at = least(w.wake_at, moment) where w.id = taker.workflow_id;
        return '{}';
    end if;
    -- This one and no other that is kept: its repetition has to find what it woke.
    update signals as k set kept = false, step_id = taker.id where k.workflow_id = known.workflow_id and k.number = known.number;
    return _wake(taker, known.body, cause, moment);
end;
$$;

create or replace function _admit_one(workflow text, freed_by text, cause integer, moment timestamptz) returns _step_ref[]
language plpgsql as $$
declare
    ready _step_ref[] := _startable(workflow, cause, moment);
begin
    update workflows as w
    -- One that gave its slot away has begun before: its deadline counts from then, and what it had put off is due some time.
    set status = 'RUNNING', admitted_at = moment, admitted_by = freed_by,
        started_at = case when w.admitted_at is null then moment else w.started_at end,
        deadline_at = coalesce(w.deadline_at, moment + make_interval(secs => w.deadline_seconds)),
        wake_at = least(
            w.wake_at, coalesce(w.deadline_at, moment + make_interval(secs => w.deadline_seconds)),
            case when w.admitted_at is not null then (
                select min(s.due_at) from steps as s
                -- What was put off and is due by now starts at once.
                where s.workflow_id = w.id and s.status = 'WAITING' and (s.signal is not null or s.due_at > moment)
            ) end
        )
    where w.id = workflow;
    perform _write(
        array[row(workflow, null, 'workflow.started', null, null, 0, null, null)::_note] || _start(ready, moment), moment
    );
    return ready;
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
        -- One that goes on after a failure may have spent all before.
        if (event.no_tokens or event.no_money) and not (select _is_final(w.status) from workflows as w where w.id = event.id) then
            perform _end_workflow(event.id, 'FAILED', jsonb_build_object(
                'type', 'BudgetExceeded',
                'message', format('the workflow passed its %s', case when event.no_tokens then 'max_tokens' else 'max_cost_usd' end)
            ), null, moment);
        else
            perform _park(event.id, moment);
        end if;
        state := (select w.status from workflows as w where w.id = event.id);
        continue when state = 'RUNNING';
        -- Whoever is in the queue frees nothing; asked again, the one that does tells what it let start.
        if state <> 'QUEUED' or freed.workflow_id is null then
            freed := row(event.id, null, event.cause)::_step_ref;
        end if;
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
        select distinct on (e.step_id) e.step_id, e.type, case
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
        -- A wait whose lease ran out while its workflow was paused does not wait: it has to begin again.
        select s.*, case
            when s.signal is not null and l.type = 'step.lease_expired' then 'PENDING' else coalesce(l.status, 'PENDING')
        end as status_then
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
