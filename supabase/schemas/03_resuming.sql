-- How a workflow that a dead letter had failed goes on when the letter is redriven. Like every event it locks nothing and can be repeated.

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
