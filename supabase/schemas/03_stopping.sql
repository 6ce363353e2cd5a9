-- Workflows that people stop, for a while or for good. Nothing of a paused one starts; what is at work ends, and its results count.

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
