-- Slots are shared between tenants, workflows can be paused, and a cancellation leaves a receipt.

alter table workflows add column tenant text collate "C" not null default '';
alter table workflows add column paused_at timestamptz;
alter table workflows add column paused_by text;
comment on column workflows.tenant is 'Who asked for it: the name of their API key; empty where nobody was asked for one. Tenants share the slots.';
comment on column workflows.paused_at is 'Since when nothing of it may start; null when all may. What is at work ends, and then it is WAITING.';
comment on column workflows.paused_by is 'Who paused it; empty where nobody said so.';

drop index workflows_queued;
create index workflows_queued on workflows (priority desc, tenant, id) where status = 'QUEUED';

create table turns (
    tenant text collate "C" primary key,
    turn bigint generated always as identity
);

comment on table turns is 'Which tenant was served last: the greater the turn, the later. One row for each who ever was, written by `_admit` alone.';

alter table turns enable row level security;
revoke all on turns from public;

drop function _end_workflow(text, text, jsonb, jsonb, timestamptz);

create or replace function _start(ready _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with running as (
        update steps as s
        set status = 'RUNNING', started_at = moment, due_at = moment + _lease(s.timeout_seconds),
            attempt = s.attempt + case when s.status = 'PENDING' and s.woken is null then 1 else 0 end
        from unnest(ready) as r
        join workflows as w on w.id = r.workflow_id and w.status = 'RUNNING' and w.paused_at is null
        where s.workflow_id = r.workflow_id and s.id = r.step_id
            and (s.status = 'PENDING' or s.status = 'WAITING' and s.children is null and s.signal is null)
        returning s.workflow_id, s.id, s.attempt, s.due_at
    )
    select array_agg(row(g.workflow_id, g.id, 'step.dispatched', g.attempt, null, 0, null, g.due_at)::_note)
    into notes from running as g;
    return coalesce(notes, '{}');
end;
$$;
comment on function _start is
    'PENDING steps whose needs have ended get their first attempt, or their next one after their workflow was resumed. One that was woken, or waited for a retry while its workflow was paused, goes on with its own. Of a paused workflow none starts.';

create or replace function _begun(w workflows) returns text[]
language plpgsql as $$
begin
    if w.resumed = 0 and w.forked_from is null and w.admitted_at = w.started_at
        -- One that was woken may have got both its slots in one moment.
        and not exists (select from history as h where h.workflow_id = w.id and h.type = 'workflow.woken')
    then
        return _roots(w.id);
    end if;
    return array(
        select s.id from steps as s where s.workflow_id = w.id and s.started_at = w.admitted_at order by s.position
    );
end;
$$;
comment on function _begun is 'The steps that the last admission of a workflow started.';

create function _startable(workflow text, cause integer, moment timestamptz) returns _step_ref[]
language plpgsql as $$
begin
    return array(
        select row(workflow, s.id, cause)::_step_ref
        from steps as s
        where s.workflow_id = workflow and (
            s.status = 'PENDING' and s.needs_open = 0
            or s.status = 'WAITING' and s.children is null and s.signal is null and s.due_at <= moment
        )
        order by s.position
    );
end;
$$;
comment on function _startable is
    'What a workflow goes on with: its roots when it is new, else wherever it was, retries that came due while it was paused included.';

create function _wakes_at(w workflows) returns timestamptz
language plpgsql as $$
begin
    return least(w.deadline_at, (
        select min(s.due_at) from steps as s
        -- What may not start before its workflow goes on is nothing to look for.
        where s.workflow_id = w.id and (
            s.status = 'RUNNING' or w.paused_at is null and (w.status = 'RUNNING' or s.signal is not null)
        )
    ));
end;
$$;
comment on function _wakes_at is 'When the sweeper has to look at a workflow again.';

create function _end_workflow(
    workflow text, outcome text, why jsonb, result jsonb, moment timestamptz, receipt jsonb default null
)
returns void
language plpgsql as $$
declare
    stopped integer;
begin
    update steps as s
    set status = 'CANCELLED', finished_at = moment, due_at = case when s.status = 'RUNNING' then s.due_at end
    where s.workflow_id = workflow and not _is_final(s.status);
    get diagnostics stopped = row_count;
    update workflows as w
    set status = outcome, error = why, output = result, finished_at = moment, steps_waiting = 0, paused_at = null, paused_by = null,
        wake_at = case when w.callback_url is not null then moment + interval '1 minute' end
    where w.id = workflow;
    perform _write(
        array[row(
            workflow, null,
            case outcome when 'SUCCESS' then 'workflow.succeeded' when 'FAILED' then 'workflow.failed' else 'workflow.cancelled' end,
            null, case when receipt is null then why else why || jsonb_build_object('receipt', receipt) end, stopped, null, null
        )::_note],
        moment
    );
end;
$$;
comment on function _end_workflow is 'A workflow ends, and with it every step that has not.';

create or replace function _on_requested(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    wf text := event ->> 'workflow';
    effect _effect;
    known workflows;
    created boolean;
begin
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
comment on function _on_requested is 'workflow.requested: create the workflow, QUEUED, unless its id or request key is known.';

create or replace function _on_cancelled(event jsonb, cause integer, moment timestamptz) returns _effect
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
            jsonb_build_object('type', 'Cancelled', 'message', coalesce(event ->> 'reason', '')), null, moment,
            _receipt(known, event, moment)
        );
    end if;
    return effect;
end;
$$;
comment on function _on_cancelled is 'workflow.cancelled: stop a workflow that has not ended.';

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
        due_at = due, error = event -> 'error',
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
comment on function _retry_step is 'The next attempt of a step (step.retried, step.lease_expired), or the same one later (step.deferred).';

create function _on_paused(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    w workflows;
begin
    select k.* into w from workflows as k where k.id = event ->> 'workflow';
    if w.id is null then
        return _ignored(event, cause);
    end if;
    if _is_final(w.status) then
        effect.reply := _too_late(w, event, cause);
        return effect;
    end if;
    if not _was_noted(event) then
        if w.paused_at is null then
            update workflows as k set paused_at = moment, paused_by = coalesce(event ->> 'by', '') where k.id = w.id returning * into w;
            update workflows as k set wake_at = _wakes_at(k) where k.id = w.id;
            perform _note_pause(event, moment);
        elsif event ? 'key' then
            perform _note_pause(event, moment);
        end if;
    end if;
    effect.touched := array[row(w.id, null, cause)::_step_ref];
    effect.reply := jsonb_build_object(
        'type', 'paused', 'cause', cause, 'workflow', w.id, 'paused_at', w.paused_at, 'paused_by', w.paused_by
    );
    return effect;
end;
$$;
comment on function _on_paused is 'workflow.paused: nothing of a workflow starts any more. Who did so first is who did.';

create function _on_unpaused(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    w workflows;
begin
    select k.* into w from workflows as k where k.id = event ->> 'workflow';
    if w.id is null then
        return _ignored(event, cause);
    end if;
    if _is_final(w.status) then
        effect.reply := _too_late(w, event, cause);
        return effect;
    end if;
    if w.paused_at is not null and not _was_noted(event) then
        effect.started := _go_on_after_pause(w, event, cause, moment);
    else
        if event ? 'key' and not _was_noted(event) then
            perform _note_pause(event, moment);
        end if;
        effect.started := array(
            select row(w.id, s.id, cause)::_step_ref
            from steps as s
            where s.workflow_id = w.id and s.status = 'RUNNING' and s.started_at >= (
                select max(h.at) from history as h where h.workflow_id = w.id and h.type = 'workflow.unpaused'
            )
        );
    end if;
    effect.touched := array[row(w.id, null, cause)::_step_ref];
    effect.reply := jsonb_build_object('type', 'unpaused', 'cause', cause, 'workflow', w.id);
    return effect;
end;
$$;
comment on function _on_unpaused is
    'workflow.unpaused: a workflow goes on with all that became ready meanwhile. Its repetition returns whatever started since.';

create function _note_pause(event jsonb, moment timestamptz) returns void
language plpgsql as $$
begin
    perform _write(
        array[row(
            event ->> 'workflow', null, event ->> 'type', null, jsonb_strip_nulls(jsonb_build_object(
                'by', coalesce(event ->> 'by', ''), 'reason', coalesce(event ->> 'reason', ''), 'key', event -> 'key'
            )), 0, null, null
        )::_note],
        moment
    );
end;
$$;
comment on function _note_pause is 'Who paused a workflow or let it go on, and when.';

create function _was_noted(event jsonb) returns boolean
language plpgsql stable as $$
begin
    -- A copy that comes after the opposite must not undo it. Without a key it is whoever asks, now.
    return event ? 'key' and exists (
        select from history as h
        where h.workflow_id = event ->> 'workflow' and h.type = event ->> 'type' and h.data ->> 'key' = event ->> 'key'
    );
end;
$$;
comment on function _was_noted is 'Whether an event with a key is the copy of one that came before.';

create function _go_on_after_pause(w workflows, event jsonb, cause integer, moment timestamptz) returns _step_ref[]
language plpgsql as $$
declare
    ready _step_ref[] := '{}';
begin
    update workflows as k set paused_at = null, paused_by = null where k.id = w.id;
    perform _note_pause(event, moment);
    if w.status = 'RUNNING' then
        ready := _startable(w.id, cause, moment);
        perform _write(_start(ready, moment), moment);
    elsif w.steps_open = 0 or exists (
        select from steps as s
        where s.workflow_id = w.id and (
            s.status = 'PENDING' and s.needs_open = 0 or s.status = 'WAITING' and s.children is null and s.signal is null
        )
    ) then
        update workflows as k set status = 'QUEUED' where k.id = w.id;
        perform _write(array[row(w.id, null, 'workflow.woken', null, null, 0, null, null)::_note], moment);
    end if;
    -- What waits for people or time alone stays WAITING.
    update workflows as k set wake_at = _wakes_at(k) where k.id = w.id;
    return ready;
end;
$$;
comment on function _go_on_after_pause is 'At once where a workflow has kept its slot; else it takes its place in the queue, if there is something to do.';

create function _too_late(w workflows, event jsonb, cause integer) returns jsonb
language sql immutable
return jsonb_build_object(
    'type', 'refused', 'cause', cause, 'workflow', w.id, 'problem', 'ended',
    'reason', format('the workflow has ended (%s), so it can be neither paused nor resumed', w.status)
);

create function _receipt(w workflows, event jsonb, moment timestamptz) returns jsonb
language plpgsql stable as $$
declare
    -- Of a thousand steps nobody reads every one; the counts are of all.
    most constant integer := 50;
begin
    return (
        with step as (
            select s.*,
                case when s.status = 'RUNNING' then 'running' when not _is_final(s.status) then 'stopped' else 'finished' end as was,
                row_number() over (
                    partition by s.status = 'RUNNING', _is_final(s.status) order by s.parent nulls first, s.position, s.id
                ) as place
            from steps as s where s.workflow_id = w.id
        )
        select jsonb_build_object(
            'at', moment, 'by', coalesce(event ->> 'by', ''), 'reason', coalesce(event ->> 'reason', ''), 'was', w.status,
            'running', count(*) filter (where s.was = 'running'),
            'running_steps', coalesce(jsonb_agg(
                jsonb_build_object('step', s.id, 'agent', s.agent, 'attempt', s.attempt, 'since', s.started_at) order by s.place
            ) filter (where s.was = 'running' and s.place <= most), '[]'),
            'stopped', count(*) filter (where s.was = 'stopped'),
            'stopped_steps', coalesce(jsonb_agg(s.id order by s.place) filter (where s.was = 'stopped' and s.place <= most), '[]'),
            'finished', count(*) filter (where s.was = 'finished'),
            'usage', _usage(w.model_calls, w.input_tokens, w.output_tokens, w.cost_microdollars)
        )
        from step as s
    );
end;
$$;
comment on function _receipt is
    'What a cancellation found: steps at work, steps that it stopped before they were, steps that had ended, and what all had used by then.';

create or replace function _wait(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    due timestamptz := coalesce(
        (event ->> 'until')::timestamptz, moment + make_interval(secs => (event ->> 'seconds')::double precision)
    );
    shown jsonb := event -> 'wait' || jsonb_build_object('since', moment, 'until', due);
    why jsonb := _take_kept(s);
    held boolean := exists (select from workflows as w where w.id = s.workflow_id and w.paused_at is not null);
begin
    if why is null and due <= moment then
        why := jsonb_build_object('woken_by', 'time', 'at', moment);
    end if;
    update steps as t
    set wait = shown, woken = why,
        status = case when why is null then 'WAITING' when held then 'PENDING' else 'RUNNING' end,
        due_at = case when why is null then due when not held then t.due_at end
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.waiting', s.attempt, shown, 0, null, due)::_note]
        || case when why is not null then
            array[
                row(s.workflow_id, s.id, 'step.woken', s.attempt, jsonb_build_object('by', why -> 'woken_by'), 0, null, null)::_note
            ]
        end
        || case when why is not null and not held then
            array[row(s.workflow_id, s.id, 'step.dispatched', s.attempt, null, 0, null, null)::_note]
        end,
        moment
    );
    if why is null then
        update workflows as w set steps_waiting = w.steps_waiting + 1 where w.id = s.workflow_id;
    elsif not held then
        effect.started := array[row(s.workflow_id, s.id, cause)::_step_ref];
    end if;
    return effect;
end;
$$;
comment on function _wait is 'step.waiting: a step begins to wait, unless its signal is there already or its moment has passed.';

create or replace function _wake(s steps, why jsonb, cause integer, moment timestamptz) returns _step_ref[]
language plpgsql as $$
declare
    ready _step_ref[] := array[row(s.workflow_id, s.id, cause)::_step_ref];
    state text;
    held boolean;
begin
    update steps as t set status = 'PENDING', woken = why, due_at = null where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.woken', s.attempt, jsonb_build_object('by', why -> 'woken_by'), 0, null, null)::_note],
        moment
    );
    update workflows as w set steps_waiting = w.steps_waiting - 1 where w.id = s.workflow_id
    returning w.status, w.paused_at is not null into state, held;
    if state = 'RUNNING' then
        perform _write(_start(ready, moment), moment);
        return ready;
    end if;
    if state = 'WAITING' and not held then
        update workflows as w set status = 'QUEUED' where w.id = s.workflow_id;
        perform _write(array[row(s.workflow_id, null, 'workflow.woken', null, null, 0, null, null)::_note], moment);
    end if;
    return '{}';
end;
$$;
comment on function _wake is
    'A step waits no longer. It goes on at once where its workflow has a slot; else its workflow waits for one, unless it is paused.';

create or replace function _park(workflow text, moment timestamptz) returns void
language plpgsql as $$
begin
    update workflows as w
    set status = 'WAITING'
    where w.id = workflow and (
        w.status = 'RUNNING' and (w.steps_waiting > 0 or w.paused_at is not null and w.steps_open > 0) and not exists (
            select from steps as s
            -- A step that was deferred starts again by itself, soon: it keeps the slot, unless it may not.
            where s.workflow_id = w.id and (
                s.status = 'RUNNING' or w.paused_at is null and s.status = 'WAITING' and s.children is null and s.signal is null
            )
        )
        or w.status = 'QUEUED' and w.paused_at is not null
    );
    if found then
        update workflows as w set wake_at = _wakes_at(w) where w.id = workflow;
        perform _write(array[row(workflow, null, 'workflow.waiting', null, null, 0, null, null)::_note], moment);
    end if;
end;
$$;
comment on function _park is 'A workflow in which nothing is at work and something waits, or which is paused, frees its slot or its place in the queue.';

create function _tenants(level integer, most integer default null) returns table (tenant text, turn bigint, head text)
language plpgsql stable as $$
begin
    -- From one tenant's first to the next one's, by the index: what lies between is not looked at.
    return query
    with recursive found as (
        (
            select w.tenant, w.id from workflows as w
            where w.status = 'QUEUED' and w.priority = level
            order by w.tenant, w.id limit 1
        )
        union all
        select n.tenant, n.id
        from found as f
        cross join lateral (
            select w.tenant, w.id from workflows as w
            where w.status = 'QUEUED' and w.priority = level and w.tenant > f.tenant
            order by w.tenant, w.id limit 1
        ) as n
    )
    select f.tenant, coalesce(t.turn, 0), f.id
    from (select k.* from found as k limit most) as f
    left join turns as t on t.tenant = f.tenant;
end;
$$;
comment on function _tenants is 'Who has something in the queue at a priority: when they were served last (0 for never), and the first of theirs.';

create function _busy() returns jsonb
language plpgsql stable as $$
begin
    return (
        select coalesce(jsonb_object_agg(r.tenant, r.running), '{}')
        from (select w.tenant, count(*) as running from workflows as w where w.status = 'RUNNING' group by w.tenant) as r
    );
end;
$$;
comment on function _busy is 'How many workflows each tenant runs that runs any.';

create function _in_turn(level integer, busy jsonb, slots integer) returns table (id text, tenant text, place bigint)
language plpgsql stable as $$
begin
    -- Whoever has the fewest comes next, and has one more then. Of those who have equally many, those that began with more were
    -- served longer ago: all others have just got theirs.
    return query
    select q.id, t.tenant, t.running + q.nth
    from (select k.*, coalesce((busy ->> k.tenant)::bigint, 0) as running from _tenants(level) as k) as t
    cross join lateral (
        select t.head as id, 1::bigint as nth
        union all
        select h.id, 1 + row_number() over (order by h.id)
        from (
            select w.id from workflows as w
            where w.status = 'QUEUED' and w.priority = level and w.tenant = t.tenant and w.id > t.head
            order by w.id limit slots - 1
        ) as h
    ) as q
    order by t.running + q.nth, t.running desc, t.turn, t.head;
end;
$$;
comment on function _in_turn is
    'The queue at one priority, as tenants take turns: fewest running, served longest ago, oldest. `place` is how many its tenant runs then.';

create or replace function _admit(max_running integer, touched _step_ref[], freed _step_ref, moment timestamptz) returns _step_ref[]
language plpgsql as $$
declare
    started _step_ref[] := '{}';
    slots integer;
    busy jsonb;
    level integer;
    queued record;
    served text[];
begin
    -- Slots are counted under a lock of their own; whoever waits here holds only rows that nobody needs to count.
    perform pg_advisory_xact_lock(hashtext('agent-team admission'));
    select max(w.priority) into level from workflows as w where w.status = 'QUEUED';
    if level is null then
        return started;
    end if;
    busy := _busy();
    slots := max_running - (select coalesce(sum(b.value::integer), 0) from jsonb_each_text(busy) as b);
    while slots > 0 and level is not null loop
        served := '{}';
        for queued in select q.* from _in_turn(level, busy, slots) as q loop
            -- Whoever has it locked comes here after us.
            perform from workflows as w where w.id = queued.id and w.status = 'QUEUED' for update skip locked;
            continue when not found;
            busy := busy || jsonb_build_object(queued.tenant, queued.place);
            started := started || _admit_one(
                queued.id, freed.workflow_id,
                coalesce((select t.cause from unnest(touched) as t where t.workflow_id = queued.id limit 1), freed.cause, 0), moment
            );
            served := served || queued.tenant;
            slots := slots - 1;
            exit when slots = 0;
        end loop;
        -- Once for each: a row that is written a hundred times in a transaction is a hundred rows to look through.
        insert into turns (tenant)
        select s.tenant from unnest(served) with ordinality as s (tenant, nth) group by s.tenant order by max(s.nth)
        on conflict (tenant) do update set turn = default;
        select max(w.priority) into level from workflows as w where w.status = 'QUEUED' and w.priority < level;
    end loop;
    return started;
end;
$$;
comment on function _admit is
    'Start queued workflows while fewer than max_running run: higher priority first, then whoever runs fewest, was served longest ago, is oldest.';

create function _admit_one(workflow text, freed_by text, cause integer, moment timestamptz) returns _step_ref[]
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
                select min(s.due_at) from steps as s where s.workflow_id = w.id and s.status = 'WAITING'
            ) end
        )
    where w.id = workflow;
    perform _write(
        array[row(workflow, null, 'workflow.started', null, null, 0, null, null)::_note] || _start(ready, moment), moment
    );
    return ready;
end;
$$;
comment on function _admit_one is 'A workflow gets a slot.';

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
comment on function _on_tick is 'tick: timers that are due, leases that ran out, deadlines that passed, ends to be told again. With recover: whatever was running starts again, expired or not.';

create or replace function _on_due(s steps, recover boolean, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    w workflows;
begin
    if s.status = 'RUNNING' and not recover then
        if s.attempt > s.max_retries then
            return _fail_step(s, jsonb_build_object('error', jsonb_build_object(
                'type', 'LeaseExpired', 'message', format('no result after %s attempts', s.attempt)
            )), cause, moment);
        end if;
        return _retry_step(s, 'step.lease_expired', '{}', 0, cause, moment);
    end if;
    select k.* into w from workflows as k where k.id = s.workflow_id;
    -- What is to start again needs a slot; what only waits may be woken without one.
    if s.status = 'WAITING' and (s.due_at > moment or w.paused_at is not null or s.signal is null and w.status <> 'RUNNING') then
        return effect;
    end if;
    if s.status = 'WAITING' and s.signal is not null then
        effect.started := _wake(s, coalesce(_take_kept(s), jsonb_build_object('woken_by', 'time', 'at', moment)), cause, moment);
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
            e.value -> 'output' as output, e.value -> 'usage' as usage, e.value -> 'models' as models,
            e.ordinality::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        where e.value ->> 'type' = 'step.completed' and not e.value ? 'children'
        order by e.value ->> 'workflow', e.value ->> 'step', e.ordinality
    ),
    done as (
        update steps as s
        set status = 'SUCCESS', output = r.output, attempt = r.attempt, error = null, due_at = null, finished_at = moment,
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
comment on function advance is
    'Apply a batch of events and return the commands to carry out. An event applied before changes nothing and returns its commands again.';

create function _queue_place(w workflows) returns json
language plpgsql stable
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    -- Beyond these nobody counts: a page of places must stay cheap, however many wait.
    most constant integer := 1000;
    most_tenants constant integer := 100;
    busy jsonb := _busy();
    own record;
    ahead integer;
    exact boolean;
begin
    select count(*) into ahead from (
        select from workflows as q where q.status = 'QUEUED' and q.priority > w.priority limit most
    ) as h;
    -- Those of a higher priority change what their tenants run by the time.
    exact := ahead = 0;
    if ahead < most then
        select count(*)::integer as place, coalesce(min(h.id), w.id) as head, coalesce((busy ->> w.tenant)::integer, 0) as running,
            coalesce((select t.turn from turns as t where t.tenant = w.tenant), 0) as turn
        into own
        from (
            select q.id from workflows as q
            where q.status = 'QUEUED' and q.priority = w.priority and q.tenant = w.tenant and q.id < w.id
            order by q.id limit most
        ) as h;
        ahead := ahead + own.place + (
            select count(*)
            from (
                -- As many of each other tenant's as `_in_turn` puts before this one.
                select q.id
                from (select k.*, coalesce((busy ->> k.tenant)::integer, 0) as running from _tenants(w.priority, most_tenants) as k) as t
                cross join lateral (
                    select q.id from workflows as q
                    where q.status = 'QUEUED' and q.priority = w.priority and q.tenant = t.tenant and t.tenant <> w.tenant
                    order by q.id
                    limit greatest(0, own.running + own.place - t.running
                        + ((-t.running, t.turn, t.head) < (-own.running, own.turn, own.head))::integer)
                ) as q
                limit most
            ) as h
        );
        exact := exact and ahead < most and (select count(*) from _tenants(w.priority, most_tenants)) < most_tenants;
    end if;
    return json_build_object('position', least(ahead, most) + 1, 'ahead', least(ahead, most), 'exact', exact);
end;
$$;
comment on function _queue_place is
    'Where a queued workflow stands if slots become free one by one while all that runs goes on; an estimate when not exact.';

create or replace function _head(w workflows) returns json
language sql stable
return json_build_object(
    'id', w.id, 'workflow', w.name, 'version', w.version, 'status', w.status, 'priority', w.priority, 'seq', w.seq,
    'steps_total', w.steps_total, 'steps_open', w.steps_open, 'error', w.error,
    'usage', _usage(w.model_calls, w.input_tokens, w.output_tokens, w.cost_microdollars),
    'created_at', w.created_at, 'started_at', w.started_at, 'finished_at', w.finished_at,
    'forked_from', w.forked_from, 'forked_at', w.forked_at,
    'tenant', w.tenant, 'paused_at', w.paused_at, 'paused_by', w.paused_by,
    'queue', case when w.status = 'QUEUED' then _queue_place(w) end
);

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

create function cancel_receipt(id text) returns json
language sql stable
begin atomic
    select h.data -> 'receipt' from history as h
    where h.workflow_id = cancel_receipt.id and h.type = 'workflow.cancelled'
    order by h.seq desc
    limit 1;
end;
comment on function cancel_receipt is 'What the cancellation of a workflow found and stopped; null when it was not cancelled.';

create or replace function fork_workflow(fork jsonb, max_running integer default 10, moment timestamptz default now()) returns json
language plpgsql
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set jit = off
as $$
-- The planner is pinned as in `advance`, whose parts are called here: whoever comes first in a connection makes the plan.
declare
    w workflows;
    finished text[] := array(select jsonb_array_elements_text(fork -> 'finished'));
    expanded text[] := array(select jsonb_array_elements_text(fork -> 'expanded'));
    created boolean;
begin
    select k.* into w from workflows as k where k.id = fork ->> 'from';
    if w.id is null then
        return null;
    end if;
    insert into workflows
    select r.*
    from jsonb_populate_record(w, jsonb_build_object(
        'id', fork -> 'workflow', 'request_key', fork -> 'request_key', 'request_hash', fork -> 'request_hash',
        'traceparent', fork -> 'traceparent', 'forked_from', w.id, 'forked_at', fork -> 'at', 'input', fork -> 'input',
        'status', 'QUEUED', 'output', null, 'error', null, 'callback_url', null, 'seq', 0, 'resumed', 0, 'admitted_by', null,
        'model_calls', 0, 'input_tokens', 0, 'output_tokens', 0, 'cost_microdollars', 0,
        'created_at', moment, 'admitted_at', null, 'started_at', null, 'finished_at', null, 'deadline_at', null, 'wake_at', null,
        'steps_waiting', 0, 'tenant', coalesce(fork ->> 'tenant', ''), 'paused_at', null, 'paused_by', null
    )) as r
    on conflict do nothing;
    created := found;
    if created then
        perform _fork_steps(w.id, fork ->> 'workflow', finished, expanded);
        perform _fork_history(w.id, fork ->> 'workflow', (fork ->> 'at')::integer, moment);
    end if;

    select k.* into w from workflows as k
    where k.id = fork ->> 'workflow' or k.request_key = fork ->> 'request_key'
    order by k.id = fork ->> 'workflow' desc limit 1 for update;
    if w.request_hash is distinct from fork ->> 'request_hash' then
        return json_build_array(json_build_object('type', 'conflict', 'cause', 0, 'workflow', w.id));
    end if;
    return _go_on(
        w, not created,
        jsonb_build_object('type', 'accepted', 'workflow', w.id, 'name', w.name, 'created', created), max_running, moment
    );
end;
$$;
comment on function fork_workflow is
    'Start a workflow that reuses what another had finished; the commands as `advance` returns them, and again when its request key is known. Null when there is no original.';

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and (p.proname like '\_%' or p.proname in (
            'advance', 'get_workflow', 'list_workflows', 'cancel_receipt', 'count_queued', 'workflow_history', 'workflow_snapshot', 'record_dead_letter',
            'list_dead_letters', 'count_dead_letters', 'read_dead_letters', 'redrive_dead_letters', 'return_dead_letters',
            'put_document', 'list_documents', 'remove_document', 'search_documents',
            'fork_plan', 'fork_workflow', 'rerun_workflow', 'purge', 'purgeable'
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
            execute format('revoke all on workflows, turns, steps, edges, history, signals, dead_letters, documents, passages from %I', role);
            execute format('revoke all on sequence dead_letters_id_seq, turns_turn_seq from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on workflows, turns, steps, edges, history, signals, dead_letters, documents, passages to service_role;
    end if;
end;
$$;
