-- The end of a workflow with a callback is told once more a minute later.

comment on column workflows.wake_at is
    'Nothing in this workflow is due before; the sweeper looks at it then and works out the next moment. Of one that ended: when to tell its callback again.';

create index workflows_called_back on workflows (finished_at) where callback_url is not null;

create or replace function _end_workflow(workflow text, outcome text, why jsonb, result jsonb, moment timestamptz) returns void
language plpgsql as $$
declare
    stopped integer;
begin
    update steps as s
    set status = 'CANCELLED', finished_at = moment, due_at = case when s.status = 'RUNNING' then s.due_at end
    where s.workflow_id = workflow and not _is_final(s.status);
    get diagnostics stopped = row_count;
    update workflows as w
    set status = outcome, error = why, output = result, finished_at = moment,
        wake_at = case when w.callback_url is not null then moment + interval '1 minute' end
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

create or replace function _on_tick(event jsonb, cause integer, moment timestamptz) returns _effect
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
    return effect;
end;
$$;
comment on function _on_tick is 'tick: timers that are due, leases that ran out, deadlines that passed, ends to be told again. With recover: whatever was running starts again, expired or not.';
