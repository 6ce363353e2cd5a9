-- Going back in a workflow's time: another run from any point of its history, and going on from where it failed.
-- What may be reused is decided outside, where templates are known; here is only the DAG.

create function fork_plan(id text, seq integer default null) returns json
language sql stable
begin atomic
    with last as (
        select distinct on (h.step_id) h.step_id, h.type
        from history as h
        where h.workflow_id = fork_plan.id and h.step_id is not null and h.type <> 'step.late'
            and (fork_plan.seq is null or h.seq <= fork_plan.seq)
        order by h.step_id, h.seq desc
    )
    select json_build_object(
        'id', w.id, 'workflow', w.name, 'version', w.version, 'seq', w.seq, 'input', w.input,
        'steps', (
            select coalesce(json_agg(json_build_object(
                'id', s.id, 'parent', s.parent, 'needs', s.needs, 'spec', s.spec, 'on_failure', s.on_failure, 'last', l.type
            ) order by s.parent nulls first, s.position), '[]')
            from steps as s
            left join last as l on l.step_id = s.id
            where s.workflow_id = w.id
        )
    )
    from workflows as w where w.id = fork_plan.id;
end;
comment on function fork_plan is
    'What decides which steps a fork after entry `seq` may reuse: their templates, and their last entry by then. Null when there is no workflow.';

create function _fork_steps(origin text, fork text, finished text[], expanded text[]) returns void
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
comment on function _fork_steps is
    'The steps of a fork: finished ones as they ended, expanded ones waiting for their children, all others as if they had never begun.';

create function _fork_history(origin text, fork text, entry integer, moment timestamptz) returns void
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

create function _go_on(w workflows, repeated boolean, reply jsonb, max_running integer, moment timestamptz) returns json
language plpgsql as $$
declare
    commands jsonb;
begin
    commands := advance(jsonb_build_array(jsonb_build_object('type', 'tick', 'workflow', w.id, 'limit', 0)), max_running, moment);
    if repeated and w.status = 'RUNNING' then
        commands := commands || _commands(_again(w.id, _begun(w), 0, true), '{}', '{}', moment)::jsonb;
    end if;
    return (commands || _commands('{}', '{}', array[reply || '{"cause": 0}'], moment)::jsonb)::json;
end;
$$;
comment on function _go_on is 'The commands for a workflow that was just put into the queue; the same ones again when that was asked for before.';

create function fork_workflow(fork jsonb, max_running integer default 10, moment timestamptz default now()) returns json
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

create function _not_rerunnable(w workflows, step text) returns text
language sql immutable
return case
    when w.status <> 'FAILED' then format('it is %s, and only a workflow that failed can be rerun; fork it for another run', w.status)
    when w.error ->> 'step' is null then
        format('it failed as a whole (%s) and not in a step; fork it for another run', w.error ->> 'type')
    when step <> w.error ->> 'step' then format('the step that failed it is %s', w.error ->> 'step')
end;
comment on function _not_rerunnable is 'Why a workflow cannot go on from its failed step; null when it can.';

create function rerun_workflow(
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
comment on function rerun_workflow is
    'A workflow that failed goes on from the step that failed it, as after a redrive; the commands as `advance` returns them. Null when there is no workflow.';
