-- What callers read. JSON, in the shape that the API shows.

create function _usage(model_calls bigint, input_tokens bigint, output_tokens bigint, cost_microdollars bigint) returns json
language sql immutable
return json_build_object(
    'model_calls', model_calls, 'input_tokens', input_tokens, 'output_tokens', output_tokens, 'cost_microdollars', cost_microdollars
);

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

create function _head(w workflows) returns json
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

create function get_workflow(id text) returns json
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
                'models', coalesce(s.models, '{}'), 'prompts', coalesce(s.prompts, '[]'), 'reused', s.reused
            ) order by s.parent nulls first, s.position), '[]')
            from steps as s where s.workflow_id = w.id
        )
    ))::json
    from workflows as w where w.id = get_workflow.id;
end;
comment on function get_workflow is 'One workflow with its steps; null when there is none.';

create function list_workflows(status text default null, name text default null, before text default null, max_rows integer default 50)
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

create function count_queued() returns bigint
language sql stable
return (select count(*) from workflows where status = 'QUEUED');
comment on function count_queued is 'How many workflows wait for their turn.';

create function workflow_history(id text, after integer default 0, max_rows integer default 1000) returns json
language sql stable
begin atomic
    select coalesce(json_agg(json_build_object(
        'seq', page.seq, 'at', page.at, 'type', page.type, 'step', page.step_id, 'attempt', page.attempt, 'data', page.data
    )), '[]')
    from (
        select h.* from history as h
        where h.workflow_id = workflow_history.id and h.seq > after
        order by h.seq
        limit max_rows
    ) as page;
end;
comment on function workflow_history is 'What happened after entry `after`, oldest first.';

create function workflow_snapshot(id text, seq integer) returns json
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
comment on function workflow_snapshot is 'The state after history entry `seq`, worked out from the history; null when there is none.';
