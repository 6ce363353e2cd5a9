-- What telemetry counts: attempts whose lease ran out, and workflows that wait.

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
        where w.status = 'RUNNING' and (
            w.wake_at <= moment or recover
            -- Whoever was to render its output may be gone; they may also just be about it.
            or w.steps_open = 0 and exists (
                select from history as h where h.workflow_id = w.id and h.seq = w.seq and h.at <= moment - interval '10 seconds'
            )
        )
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
        update workflows as w
        set wake_at = least(w.deadline_at, (select min(t.due_at) from steps as t where t.workflow_id = wf.id))
        where w.id = wf.id and w.status = 'RUNNING';
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
create function count_queued() returns bigint
language sql stable
return (select count(*) from workflows where status = 'QUEUED');
comment on function count_queued is 'How many workflows wait for their turn.';

-- The same as for every other function that callers use.
revoke execute on function count_queued from public;

do $$
declare
    role name;
begin
    foreach role in array array['anon', 'authenticated'] loop
        if exists (select from pg_roles where rolname = role) then
            execute format('revoke execute on function count_queued from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant execute on function count_queued to service_role;
    end if;
end;
$$;
