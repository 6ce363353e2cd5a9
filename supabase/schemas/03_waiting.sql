-- Steps that wait for people, time and signals, and workflows that give their slot away meanwhile. Like every event, each can be repeated.

create function _wait(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
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

create function _take_kept(s steps) returns jsonb
language plpgsql as $$
declare
    why jsonb;
begin
    update signals as k set step_id = s.id
    where k.workflow_id = s.workflow_id and k.number = (
        select min(o.number) from signals as o where o.workflow_id = s.workflow_id and o.step_id is null and o.name in (s.id, s.signal)
    )
    returning k.body into why;
    return why;
end;
$$;
comment on function _take_kept is 'The first signal that is kept for a step, which is the step''s from now on; null when there is none.';

create function _wake(s steps, why jsonb, cause integer, moment timestamptz) returns _step_ref[]
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

create function _park(workflow text, moment timestamptz) returns void
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

create function _on_signalled(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    wf text := event ->> 'workflow';
    known signals;
    refusal jsonb;
    state text;
begin
    select w.status into state from workflows as w where w.id = wf;
    if state is null then
        return _ignored(event, cause);
    end if;
    select k.* into known from signals as k where k.workflow_id = wf and k.id = event ->> 'signal';
    if known.id is null then
        refusal := _not_signalled(event, state);
        if refusal is not null then
            effect.reply := refusal || jsonb_build_object('type', 'refused', 'cause', cause, 'workflow', wf, 'name', event -> 'name');
        else
            known := _keep(event, moment);
            effect.started := _take(known, coalesce((event ->> 'later')::boolean, false), cause, moment);
            select k.* into known from signals as k where k.workflow_id = wf and k.number = known.number;
        end if;
    else
        effect.started := _again(wf, array[known.step_id], cause);
    end if;
    if known.id is not null then
        -- Where the signal was the last thing missing its repetition tells of the end again.
        effect.touched := case when known.step_id is not null then array[row(wf, null, cause)::_step_ref] end;
        effect.reply := jsonb_build_object(
            'type', 'signalled', 'cause', cause, 'workflow', wf, 'name', known.name,
            'outcome', case when known.kept then 'kept' else 'woken' end
        );
    end if;
    return effect;
end;
$$;
comment on function _on_signalled is
    'step.signalled: the first step that waits for it goes on; where none waits yet it is kept for the first that will. Refused where none ever will.';

create function _not_signalled(event jsonb, state text) returns jsonb
language plpgsql stable as $$
declare
    wf text := event ->> 'workflow';
    called text := event ->> 'name';
    takers text[];
    still_open integer;
    approval boolean;
begin
    select array_agg(s.id order by s.position), count(*) filter (where not _is_final(s.status) and s.woken is null),
        bool_and(s.agent = 'wait:approval')
    into takers, still_open, approval
    from steps as s where s.workflow_id = wf and s.signal is not null and called in (s.id, s.signal);
    return case
        when takers is null then jsonb_build_object(
            'problem', 'unknown', 'reason', format('no step of this workflow waits for %s; %s', called, coalesce(
                'there are ' || (
                    select string_agg(s.signal, ', ' order by s.position) from steps as s
                    where s.workflow_id = wf and s.signal is not null
                ),
                'none waits for anything'
            ))
        )
        when _is_final(state) then jsonb_build_object(
            'problem', 'ended', 'reason', format('the workflow has ended (%s), and %s changes nothing any more', state, called)
        )
        when approval <> (event ->> 'decision' is not null) then jsonb_build_object(
            'problem', 'unfit', 'reason', case when approval
                then format('%s waits for a decision: approve, reject or amend', called)
                else format('%s waits for a signal, which takes data and no decision', called)
            end
        )
        when still_open = 0 then jsonb_build_object(
            'problem', 'ended', 'reason', format('%s waits no longer; what it was told first counts', called)
        )
        when still_open <= (
            select count(*) from signals as k
            where k.workflow_id = wf and k.step_id is null and (k.name = called or k.name = any(takers))
        ) then jsonb_build_object(
            'problem', 'ended', 'reason', format('%s was told already, before it waits; what it was told first counts', called)
        )
    end;
end;
$$;
comment on function _not_signalled is 'Why a signal is refused: problem (unknown, ended, unfit) and reason; null when a step can take it.';

create function _keep(event jsonb, moment timestamptz) returns signals
language plpgsql as $$
declare
    known signals;
    about jsonb := jsonb_strip_nulls(jsonb_build_object(
        'by', event -> 'by', 'decision', event -> 'decision', 'comment', event -> 'comment'
    ));
begin
    insert into signals (workflow_id, number, id, name, body, kept)
    select event ->> 'workflow', count(*) + 1, event ->> 'signal', event ->> 'name',
        about || jsonb_build_object('woken_by', 'signal', 'at', moment)
        || case when event ? 'data' then jsonb_build_object('data', event -> 'data') else '{}' end, true
    from signals as k where k.workflow_id = event ->> 'workflow'
    returning * into known;
    perform _write(
        array[row(
            known.workflow_id, null, 'workflow.signalled', null, about || jsonb_build_object('name', known.name), 0, null, null
        )::_note],
        moment
    );
    return known;
end;
$$;
comment on function _keep is 'Write a signal down: who said what and when.';

create function _take(known signals, later boolean, cause integer, moment timestamptz) returns _step_ref[]
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
comment on function _take is
    'The first step that waits for a signal takes it, at once or, for callers that cannot publish what comes of it, with the next tick.';
