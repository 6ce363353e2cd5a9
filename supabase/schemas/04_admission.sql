-- Who gets a slot: the highest priority first, and within one tenants in turn.

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

create function _admit(max_running integer, touched _step_ref[], freed _step_ref, moment timestamptz) returns _step_ref[]
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
                select min(s.due_at) from steps as s
                -- What was put off and is due by now starts at once.
                where s.workflow_id = w.id and s.status = 'WAITING' and (s.signal is not null or s.due_at > moment)
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

create function _admitted(by_workflow text, cause integer) returns _step_ref[]
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
