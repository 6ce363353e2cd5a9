-- A step may be a nested workflow, which is its children. One that goes on when it fails (on_failure) ends what is left of it, and
-- nothing else; history says so of each step, so that snapshots and forks know.

create function _goes_on(s steps) returns text
language plpgsql stable as $$
declare
    above steps;
begin
    while s.parent is not null loop
        select t.* into above from steps as t where t.workflow_id = s.workflow_id and t.id = s.parent;
        if above.agent like 'workflow:%' and above.on_failure = 'continue' then
            return above.id;
        end if;
        s := above;
    end loop;
    return null;
end;
$$;
comment on function _goes_on is 'The nearest nested workflow around a step that may fail without failing what it is a step of; null when there is none.';

create function _end_nested(workflow text, nested text, why jsonb, moment timestamptz) returns void
language plpgsql as $$
declare
    notes _note[];
    waited integer;
begin
    update steps as t set status = 'FAILED', error = why, due_at = null, finished_at = moment
    where t.workflow_id = workflow and t.id = nested;
    with recursive below as (
        select unnest(t.children) as id from steps as t where t.workflow_id = workflow and t.id = nested
        union all
        select unnest(t.children) from below as b join steps as t on t.workflow_id = workflow and t.id = b.id
    ),
    still_open as (
        select t.id, t.attempt, t.status = 'WAITING' and t.signal is not null as waits
        from below as b join steps as t on t.workflow_id = workflow and t.id = b.id
        where not _is_final(t.status)
    ),
    stopped as (
        update steps as t
        set status = 'CANCELLED', finished_at = moment, due_at = case when t.status = 'RUNNING' then t.due_at end
        from still_open as o
        where t.workflow_id = workflow and t.id = o.id
        returning t.id, o.attempt, o.waits
    )
    select
        array_agg(row(workflow, p.id, 'step.cancelled', nullif(p.attempt, 0), null, 1, null, null)::_note order by p.id),
        count(*) filter (where p.waits)
    into notes, waited
    from stopped as p;
    update workflows as w set steps_waiting = w.steps_waiting - waited where w.id = workflow and waited > 0;
    perform _write(
        array[row(
            workflow, nested, 'step.failed', (select t.attempt from steps as t where t.workflow_id = workflow and t.id = nested),
            why, 1, null, null
        )::_note] || notes,
        moment
    );
end;
$$;
comment on function _end_nested is 'A nested workflow fails, and with it every step of it that has not ended; what it is a step of goes on.';

create or replace function _fail_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    nested text;
begin
    update steps as t
    set status = 'FAILED', error = event -> 'error', due_at = null, finished_at = moment,
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
comment on function _fail_step is
    'A step has failed for good: its workflow fails, or goes on without its output or that of the nested workflow around it.';

create or replace function _resume(w workflows, s steps, cause integer, moment timestamptz) returns void
language plpgsql as $$
declare
    reopened integer;
    joined _step_ref[];
begin
    -- What the failure cut off may still be working under its old attempt, so it gets the next one; and its retries anew.
    update steps as t
    set status = case when t.children is null then 'PENDING' else 'WAITING' end,
        max_retries = t.max_retries + case when t.children is null then t.attempt else 0 end,
        -- What a step was told may be what failed it: then it asks anew. One whose message or process was lost goes on with it.
        woken = case when t.id <> s.id or s.error ->> 'type' in ('DeadLettered', 'LeaseExpired') then t.woken end,
        deferrals = 0, error = null, due_at = null, finished_at = null
    where t.workflow_id = w.id and (
        t.status = 'CANCELLED' and t.id not in (
            -- What a nested workflow took down with it when it failed stays down with it.
            with recursive below as (
                select unnest(f.children) as id from steps as f
                where f.workflow_id = w.id and f.status = 'FAILED' and f.children is not null
                union all
                select unnest(f.children) from below as b join steps as f on f.workflow_id = w.id and f.id = b.id
            )
            select b.id from below as b
        )
        or t.id = s.id
    );
    get diagnostics reopened = row_count;
    update workflows as t
    set status = 'QUEUED', resumed = t.resumed + 1, error = null, finished_at = null, deadline_at = null, wake_at = null,
        admitted_by = null, admitted_at = null
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
        update workflows as w
        set wake_at = least(w.deadline_at, (select min(t.due_at) from steps as t where t.workflow_id = wf.id))
        where w.id = wf.id and not _is_final(w.status);
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
comment on function workflow_snapshot is 'The state after history entry `seq`, worked out from the history; null when there is none.';

create or replace function _fork_history(origin text, fork text, entry integer, moment timestamptz) returns void
language plpgsql as $$
declare
    joined _step_ref[];
begin
    update workflows as w
    set (steps_total, steps_open) = (
        select count(*), count(*) filter (where not _is_final(s.status)) from steps as s where s.workflow_id = fork
    )
    where w.id = fork;
    perform _write(
        array[row(
            fork, null, 'workflow.forked', null, jsonb_build_object('from', origin, 'at', entry), 0, null, null
        )::_note]
        || array(
            select row(
                fork, h.step_id, h.type, h.attempt, coalesce(h.data, '{}') || jsonb_build_object('reused', true), 0, null, null
            )::_note
            from history as h
            join steps as s on s.workflow_id = fork and s.id = h.step_id and s.reused
            where h.workflow_id = origin and h.seq <= entry and (
                h.type in ('step.completed', 'step.skipped', 'step.expanded', 'step.cancelled') or h.type = 'step.failed' and s.status = 'FAILED'
            )
            order by h.seq
        ),
        moment
    );

    -- The fork may lie between the end of a last child and that of its parent.
    joined := array(
        select row(fork, s.id, 0)::_step_ref from steps as s
        where s.workflow_id = fork and s.status = 'WAITING' and s.needs_open = 0
    );
    if cardinality(joined) > 0 then
        perform _write(_join(joined, moment), moment);
        perform _write(m.notes, moment) from _settle(joined, moment) as m;
    end if;
end;
$$;
comment on function _fork_history is 'A fork''s history begins with what it took over, so that its snapshots are right, too.';

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and p.proname in ('_goes_on', '_end_nested')
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
end;
$$;
