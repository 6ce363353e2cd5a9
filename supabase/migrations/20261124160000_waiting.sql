-- Steps that wait for people, time and signals; workflows that give their slot away meanwhile.

alter table workflows add column admitted_at timestamptz;
alter table workflows add column steps_waiting integer not null default 0;
-- So far a slot was kept from start to end, so the last one is the first. Whoever was resumed has that moment as its start.
update workflows set admitted_at = started_at where status = 'RUNNING';
comment on column workflows.admitted_at is 'When it last got a slot; later than started_at when it had given its first one away to wait.';
comment on column workflows.steps_waiting is 'Steps that wait for people, time or a signal. Only while there are any can the workflow give its slot away.';

create index workflows_waiting on workflows (wake_at) where status in ('WAITING', 'QUEUED');

alter table steps add column signal text collate "C";
alter table steps add column wait jsonb;
alter table steps add column woken jsonb;
comment on column steps.signal is 'The signal that ends the wait of a step for people, time or a signal, which takes its own id as well; null for every other step.';
comment on column steps.wait is 'What such a step waits for, to be shown: for, name, since, until and, of an approval, prompt.';
comment on column steps.woken is 'Why such a step waits no longer: woken_by (signal or time), at and, of a signal, by, decision, data and comment.';
comment on column steps.due_at is
    'RUNNING: the end of the lease. WAITING without children: when it starts again, or waits no longer. CANCELLED: the lease of the attempt that was cut off.';

create table signals (
    workflow_id text collate "C" not null,
    number integer not null,
    id text collate "C" not null,
    name text collate "C" not null,
    body jsonb not null,
    step_id text collate "C",
    kept boolean not null,
    primary key (workflow_id, number),
    unique (workflow_id, id)
);

comment on table signals is 'What people and programs told steps that wait, in order. At most as many as there are steps to take them.';
comment on column signals.id is 'What makes a repeated signal recognisable.';
comment on column signals.step_id is 'The step that took it; null while it is kept for one that does not wait yet.';
comment on column signals.kept is 'Whether it came before anybody waited for it.';


alter table signals enable row level security;
revoke all on signals from public;

create or replace function _is_decided(s steps) returns boolean
language sql immutable
return s.children is not null or s.status in ('FAILED', 'SKIPPED', 'CANCELLED') or s.signal is not null and s.status = 'SUCCESS';

-- A lease covers the work and the way there: a message may wait for a free instance, and starting again early would do work twice.

create or replace function _start(ready _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with running as (
        update steps as s
        set status = 'RUNNING', attempt = s.attempt + case when s.woken is null then 1 else 0 end, started_at = moment, due_at = moment + _lease(s.timeout_seconds)
        from unnest(ready) as r
        where s.workflow_id = r.workflow_id and s.id = r.step_id and s.status = 'PENDING'
        returning s.workflow_id, s.id, s.attempt, s.due_at
    )
    select array_agg(row(g.workflow_id, g.id, 'step.dispatched', g.attempt, null, 0, null, g.due_at)::_note)
    into notes from running as g;
    return coalesce(notes, '{}');
end;
$$;
comment on function _start is
    'PENDING steps whose needs have ended get their first attempt, or their next one after their workflow was resumed. One that was woken goes on with its own.';

create or replace function _add_steps(workflow text, above text, added jsonb) returns integer
language plpgsql as $$
declare
    family steps;
    count_added integer;
begin
    select s.* into family from steps as s where s.workflow_id = workflow and s.id = above;
    insert into steps (
        workflow_id, id, position, parent, agent, status, max_retries, timeout_seconds, on_failure, needs, needs_open, spec, uses_input,
        signal
    )
    select workflow, a.value ->> 'id', a.ordinality, above, a.value ->> 'agent', 'PENDING',
        coalesce((a.value ->> 'max_retries')::integer, family.max_retries),
        coalesce((a.value ->> 'timeout_seconds')::double precision, family.timeout_seconds),
        coalesce(a.value ->> 'on_failure', family.on_failure),
        n.ids, n.still_open, a.value -> 'spec', coalesce((a.value ->> 'uses_input')::boolean, false),
        a.value ->> 'signal'
    from jsonb_array_elements(added) with ordinality as a
    cross join lateral (
        select coalesce(array_agg(need.value order by need.ordinality), '{}') as ids,
            (count(*) - count(t.id))::integer as still_open
        from jsonb_array_elements_text(a.value -> 'needs') with ordinality as need
        left join steps as t on t.workflow_id = workflow and t.id = need.value and _is_final(t.status)
    ) as n;
    get diagnostics count_added = row_count;

    -- A need that has ended tells nobody any more.
    insert into edges (workflow_id, from_id, to_id)
    select distinct workflow, need.value, a.value ->> 'id'
    from jsonb_array_elements(added) as a
    cross join lateral jsonb_array_elements_text(a.value -> 'needs') as need
    where not exists (
        select from steps as t where t.workflow_id = workflow and t.id = need.value and _is_final(t.status)
    );
    insert into edges (workflow_id, from_id, to_id)
    select workflow, a.value ->> 'id', above from jsonb_array_elements(added) as a where above is not null;
    return count_added;
end;
$$;
comment on function _add_steps is 'Add steps and their edges; children inherit what they do not say from their parent.';

create or replace function _begun(w workflows) returns text[]
language plpgsql as $$
begin
    if w.resumed = 0 and w.forked_from is null and w.admitted_at = w.started_at then
        return _roots(w.id);
    end if;
    return array(
        select s.id from steps as s where s.workflow_id = w.id and s.started_at = w.admitted_at order by s.position
    );
end;
$$;
comment on function _begun is 'The steps that the last admission of a workflow started.';

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
    set status = outcome, error = why, output = result, finished_at = moment, steps_waiting = 0,
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

create or replace function _on_step(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    s steps;
    kind text := event ->> 'type';
    tried integer := (event ->> 'attempt')::integer;
    effect _effect;
begin
    select t.* into s from steps as t where t.workflow_id = event ->> 'workflow' and t.id = event ->> 'step';
    if s.id is null then
        return _ignored(event, cause);
    end if;
    if tried = any(s.late) then
        -- What it used was noted before its workflow was resumed.
        event := event - '{usage,models}'::text[];
    end if;

    -- A result counts whichever attempt it is of; anything else must be about the dispatch in progress.
    if s.status not in ('RUNNING', 'WAITING') or s.children is not null
        or (kind <> 'step.completed' and (
            tried < s.attempt or s.woken is not null and kind = 'step.waiting' or (event ->> 'deferrals')::integer < s.deferrals or s.status = 'WAITING'
        ))
    then
        return _repeated(s, event, cause, moment);
    end if;

    case kind
        when 'step.failed' then
            if (event ->> 'permanent')::boolean or s.attempt > s.max_retries then
                return _fail_step(s, event, cause, moment);
            end if;
            return _retry_step(
                s, 'step.retried', event,
                greatest(coalesce((event ->> 'retry_after_seconds')::double precision, 0), least(2 ^ least(s.attempt - 1, 9), 300)),
                cause, moment
            );
        when 'step.deferred' then
            return _retry_step(
                s, 'step.deferred', event,
                greatest(0, extract(epoch from (event ->> 'not_before')::timestamptz - moment)), cause, moment
            );
        when 'step.waiting' then
            return _wait(s, event, cause, moment);
        when 'step.skipped' then
            update steps as t set status = 'SKIPPED', due_at = null, finished_at = moment
            where t.workflow_id = s.workflow_id and t.id = s.id;
            perform _write(
                array[row(
                    s.workflow_id, s.id, 'step.skipped', s.attempt, jsonb_build_object('reason', event -> 'reason'), 1, null, null
                )::_note],
                moment
            );
            effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
            return effect;
        else
            return _expand_step(s, event, cause, moment);
    end case;
end;
$$;
comment on function _on_step is 'step.failed, .deferred, .skipped, .expanded, .waiting, and .completed with children.';

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
    where t.workflow_id = w.id and (t.status = 'CANCELLED' or t.id = s.id);
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

create function _wait(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    due timestamptz := coalesce(
        (event ->> 'until')::timestamptz, moment + make_interval(secs => (event ->> 'seconds')::double precision)
    );
    shown jsonb := event -> 'wait' || jsonb_build_object('since', moment, 'until', due);
    why jsonb := _take_kept(s);
begin
    if why is null and due <= moment then
        why := jsonb_build_object('woken_by', 'time', 'at', moment);
    end if;
    update steps as t
    set wait = shown, woken = why, status = case when why is null then 'WAITING' else 'RUNNING' end,
        due_at = case when why is null then due else t.due_at end
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.waiting', s.attempt, shown, 0, null, due)::_note]
        || case when why is not null then
            array[
                row(s.workflow_id, s.id, 'step.woken', s.attempt, jsonb_build_object('by', why -> 'woken_by'), 0, null, null)::_note,
                row(s.workflow_id, s.id, 'step.dispatched', s.attempt, null, 0, null, null)::_note
            ]
        end,
        moment
    );
    if why is null then
        update workflows as w set steps_waiting = w.steps_waiting + 1 where w.id = s.workflow_id;
    else
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
begin
    update steps as t set status = 'PENDING', woken = why, due_at = null where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.woken', s.attempt, jsonb_build_object('by', why -> 'woken_by'), 0, null, null)::_note],
        moment
    );
    update workflows as w set steps_waiting = w.steps_waiting - 1 where w.id = s.workflow_id returning w.status into state;
    if state = 'RUNNING' then
        perform _write(_start(ready, moment), moment);
        return ready;
    end if;
    if state = 'WAITING' then
        update workflows as w set status = 'QUEUED' where w.id = s.workflow_id;
        perform _write(array[row(s.workflow_id, null, 'workflow.woken', null, null, 0, null, null)::_note], moment);
    end if;
    return '{}';
end;
$$;
comment on function _wake is 'A step waits no longer. It goes on at once where its workflow has a slot; else its workflow waits for one.';

create function _park(workflow text, moment timestamptz) returns void
language plpgsql as $$
begin
    -- A step that was deferred starts again by itself, soon: it keeps the slot.
    update workflows as w
    set status = 'WAITING',
        wake_at = least(w.deadline_at, (select min(s.due_at) from steps as s where s.workflow_id = w.id))
    where w.id = workflow and w.status = 'RUNNING' and w.steps_waiting > 0 and not exists (
        select from steps as s
        where s.workflow_id = w.id
            and (s.status = 'RUNNING' or s.status = 'WAITING' and s.children is null and s.signal is null)
    );
    if found then
        perform _write(array[row(workflow, null, 'workflow.waiting', null, null, 0, null, null)::_note], moment);
    end if;
end;
$$;
comment on function _park is 'A workflow in which nothing is at work and something waits frees its slot.';

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
    -- One that is due may be so for a signal that came before.
    order by coalesce(s.due_at <= moment, false), s.position limit 1;
    if taker.id is null then
        return '{}';
    end if;
    if later then
        update steps as s set due_at = moment where s.workflow_id = taker.workflow_id and s.id = taker.id;
        update workflows as w set wake_at = moment where w.id = taker.workflow_id;
        return '{}';
    end if;
    update signals as k set kept = false where k.workflow_id = known.workflow_id and k.number = known.number;
    return _wake(taker, _take_kept(taker), cause, moment);
end;
$$;
comment on function _take is
    'The first step that waits for a signal takes it, at once or, for callers that cannot publish what comes of it, with the next tick.';

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
        -- One that gave its slot away to wait has begun before: its deadline counts from then.
        set status = 'RUNNING', admitted_at = moment, admitted_by = freed.workflow_id,
            started_at = case when w.admitted_at is null then moment else w.started_at end,
            deadline_at = coalesce(w.deadline_at, moment + make_interval(secs => w.deadline_seconds)),
            wake_at = least(w.wake_at, coalesce(w.deadline_at, moment + make_interval(secs => w.deadline_seconds)))
        where w.id = queued.id;
        roots := _ready(
            queued.id,
            -- Of a new workflow these are its roots; one that was resumed or woken goes on wherever it was.
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
comment on function _admitted is
    'What a workflow had started by giving its slot away when it ended or began to wait: returned again when its last event is repeated.';

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

create or replace function _on_due(s steps, recover boolean, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
begin
    if s.status = 'RUNNING' and not recover then
        if s.attempt > s.max_retries then
            return _fail_step(s, jsonb_build_object('error', jsonb_build_object(
                'type', 'LeaseExpired', 'message', format('no result after %s attempts', s.attempt)
            )), cause, moment);
        end if;
        return _retry_step(s, 'step.lease_expired', '{}', 0, cause, moment);
    end if;
    if s.status = 'WAITING' and s.due_at > moment then
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
            'deferrals', s.deferrals, 'resumed', w.resumed, 'agent', s.agent, 'spec', s.spec, 'timeout_seconds', s.timeout_seconds,
            'woken', s.woken, 'deadline', least(s.due_at, w.deadline_at), 'not_before', _not_before(s.due_at, s.timeout_seconds, moment),
            'traceparent', w.traceparent,
            'remaining', json_build_object(
                'tokens', case when w.max_tokens is not null then greatest(0, w.max_tokens - w.input_tokens - w.output_tokens) end,
                'cost_microdollars',
                case when w.max_cost_microdollars is not null then greatest(0, w.max_cost_microdollars - w.cost_microdollars) end,
                'max_tokens', w.max_tokens, 'max_cost_microdollars', w.max_cost_microdollars
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
    state text;
    freed _step_ref;
begin
    select array_agg(row(t.workflow_id, null, t.cause)::_step_ref) into touched
    from (
        select e.value ->> 'workflow' as workflow_id, max(e.ordinality)::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        -- One that is refused must not make others' commands come again; one that is not says itself that it touched its workflow.
        where e.value ? 'workflow' and e.value ->> 'type' not in ('step.redriven', 'step.signalled')
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
        where w.status <> 'RUNNING' or w.steps_waiting > 0
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
                'models', coalesce(s.models, '{}'), 'reused', s.reused
            ) order by s.parent nulls first, s.position), '[]')
            from steps as s where s.workflow_id = w.id
        )
    ))::json
    from workflows as w where w.id = get_workflow.id;
end;
comment on function get_workflow is 'One workflow with its steps; null when there is none.';

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

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and (p.proname like '\_%' or p.proname in (
            'advance', 'get_workflow', 'list_workflows', 'workflow_history', 'workflow_snapshot', 'record_dead_letter',
            'list_dead_letters', 'count_dead_letters', 'read_dead_letters', 'redrive_dead_letters', 'return_dead_letters',
            'put_document', 'list_documents', 'remove_document', 'search_documents'
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
            execute format('revoke all on workflows, steps, edges, history, signals, dead_letters, documents, passages from %I', role);
            execute format('revoke all on sequence dead_letters_id_seq from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on workflows, steps, edges, history, signals, dead_letters, documents, passages to service_role;
    end if;
end;
$$;

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
        'wait', null, 'woken', null, 'started_at', null, 'finished_at', null, 'reused', false
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
        'steps_waiting', 0
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

create or replace function purge(older_than_seconds double precision, max_rows integer default 1000, moment timestamptz default now()) returns json
language plpgsql
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set jit = off
as $$
declare
    before timestamptz := moment - make_interval(secs => older_than_seconds);
    gone text[];
    letters bigint[];
    size integer;
begin
    -- One that is locked is being told something; it goes the next time.
    with old as (
        select w.id, w.seq + w.steps_total as size, w.finished_at from workflows as w
        where w.finished_at < before and _is_final(w.status)
        order by w.finished_at
        -- The smallest has a step and four entries.
        limit greatest(1, max_rows / 5)
        for update skip locked
    ),
    counted as (
        select o.id, o.size, sum(o.size) over (order by o.finished_at, o.id) as so_far from old as o
    )
    -- At least one, or the largest would stay for ever.
    select array_agg(c.id), sum(c.size) into gone, size from counted as c where c.so_far - c.size = 0 or c.so_far <= max_rows;
    delete from history as h where h.workflow_id = any(gone);
    delete from signals as k where k.workflow_id = any(gone);
    delete from edges as e where e.workflow_id = any(gone);
    delete from steps as s where s.workflow_id = any(gone);
    delete from workflows as w where w.id = any(gone);

    letters := array(
        select d.id from dead_letters as d
        where d.recorded_at < before and coalesce(d.redriven_at < before, true)
            and not exists (select from workflows as w where w.id = d.workflow_id and not _is_final(w.status))
        order by d.recorded_at
        limit greatest(0, max_rows - coalesce(size, 0))
        for update skip locked
    );
    delete from dead_letters as d where d.id = any(letters);
    return json_build_object('workflows', coalesce(cardinality(gone), 0), 'dead_letters', cardinality(letters));
end;
$$;

create or replace function rerun_workflow(
    workflow text, step text default null, request_key text default null, max_running integer default 10,
    moment timestamptz default now()
)
returns json
language plpgsql
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set jit = off
as $$
declare
    w workflows;
    s steps;
    reason text;
    -- Without a key, whoever asks while the workflow goes on may not have heard the answer.
    repeated boolean;
begin
    select k.* into w from workflows as k where k.id = rerun_workflow.workflow for update;
    if w.id is null then
        return null;
    end if;
    repeated := coalesce(
        exists (
            select from history as h
            where h.workflow_id = w.id and h.type = 'workflow.rerun' and h.data ->> 'request_key' = rerun_workflow.request_key
        )
        or rerun_workflow.request_key is null and w.resumed > 0 and not _is_final(w.status),
        false
    );
    if not repeated then
        reason := _not_rerunnable(w, rerun_workflow.step);
        if reason is not null then
            return json_build_array(json_build_object('type', 'refused', 'cause', 0, 'workflow', w.id, 'reason', reason));
        end if;
        select k.* into s from steps as k where k.workflow_id = w.id and k.id = w.error ->> 'step';
        perform _write(
            array[row(
                w.id, null, 'workflow.rerun', null,
                jsonb_build_object('step', s.id, 'request_key', rerun_workflow.request_key), 0, null, null
            )::_note],
            moment
        );
        perform _resume(w, s, 0, moment);
    end if;
    return _go_on(
        w, repeated, jsonb_build_object('type', 'rerun', 'workflow', w.id, 'created', not repeated), max_running, moment
    );
end;
$$;
