-- What `advance` is made of. Names that begin with an underscore are internal: callers use 04_advance.sql and 05_read.sql.
-- PL/pgSQL throughout: its plans are kept, while a function in plain SQL is planned at every call.

create type _step_ref as (workflow_id text, step_id text, cause integer);
comment on type _step_ref is 'A step (or a workflow, without step), and the index of the event that led to it.';

create type _note as (
    workflow_id text,
    step_id text,
    type text,
    attempt integer,
    data jsonb,
    ended integer,
    usage jsonb,
    due_at timestamptz
);
comment on type _note is 'A history entry, with what it adds to its workflow''s counters: steps ended, usage, the next moment to wake.';

create type _effect as (ended _step_ref[], started _step_ref[], touched _step_ref[], reply jsonb);
comment on type _effect is 'What one event did: steps that ended, steps to dispatch (again), workflows to look at, an answer for the caller.';

create function _is_final(status text) returns boolean
language sql immutable
return status in ('SUCCESS', 'FAILED', 'SKIPPED', 'CANCELLED');

create function _is_decided(s steps) returns boolean
language sql immutable
return s.children is not null or s.status in ('FAILED', 'SKIPPED', 'CANCELLED') or s.status = 'SUCCESS' and s.agent like '%:%';

-- A lease covers the work and the way there: a message may wait for a free instance, and starting again early would do work twice.
create function _lease(timeout_seconds double precision) returns interval
language sql immutable
return make_interval(secs => timeout_seconds + 600);

-- A lease begins when the attempt may start. Adding to a timestamptz is only stable, and what claims more is not inlined.
create function _not_before(due_at timestamptz, timeout_seconds double precision, moment timestamptz) returns timestamptz
language sql stable
return nullif(greatest(due_at - _lease(timeout_seconds), moment), moment);

create function _sum_models(parts jsonb[]) returns jsonb
language plpgsql immutable as $$
begin
    return (
        select jsonb_object_agg(m.name, m.usage)
        from (
            select u.key as name, jsonb_build_object(
                'model_calls', sum((u.value ->> 'model_calls')::bigint),
                'input_tokens', sum((u.value ->> 'input_tokens')::bigint),
                'output_tokens', sum((u.value ->> 'output_tokens')::bigint),
                'cost_microdollars', sum((u.value ->> 'cost_microdollars')::bigint)
            ) as usage
            from unnest(parts) as p
            cross join lateral jsonb_each(p) as u
            group by u.key
        ) as m
    );
end;
$$;
comment on function _sum_models is 'Usage by model, added up; null when there is none.';

create function _spent(
    calls integer, tokens_in bigint, tokens_out bigint, cost bigint, known_models jsonb, used jsonb, used_models jsonb
)
returns table (model_calls integer, input_tokens bigint, output_tokens bigint, cost_microdollars bigint, models jsonb)
language sql stable
begin atomic
    select calls + coalesce((used ->> 'model_calls')::integer, 0),
        tokens_in + coalesce((used ->> 'input_tokens')::bigint, 0),
        tokens_out + coalesce((used ->> 'output_tokens')::bigint, 0),
        cost + coalesce((used ->> 'cost_microdollars')::bigint, 0),
        case when used_models is null or used_models = '{}' then known_models else _sum_models(array[known_models, used_models]) end;
end;
comment on function _spent is
    'A step''s counters after one more attempt. Inlined where it is called: STRICT or PL/pgSQL it would not be, and of a whole row it would copy the row.';

create function _unnoted(late integer[], tried integer, used jsonb) returns jsonb
language sql immutable
return case when late is not null and tried = any(late) then null else used end;
comment on function _unnoted is 'What an attempt used, unless it was noted as late before its workflow was resumed.';

create function _write(notes _note[], moment timestamptz) returns void
language plpgsql as $$
begin
    with delta as (
        select
            n.workflow_id,
            count(*) as entries,
            coalesce(sum(n.ended), 0) as ended,
            coalesce(sum((n.usage ->> 'model_calls')::bigint), 0) as model_calls,
            coalesce(sum((n.usage ->> 'input_tokens')::bigint), 0) as input_tokens,
            coalesce(sum((n.usage ->> 'output_tokens')::bigint), 0) as output_tokens,
            coalesce(sum((n.usage ->> 'cost_microdollars')::bigint), 0) as cost_microdollars,
            min(n.due_at) as due_at
        from unnest(notes) as n
        group by n.workflow_id
    ),
    counted as (
        update workflows as w
        set seq = w.seq + d.entries,
            steps_open = w.steps_open - d.ended,
            model_calls = w.model_calls + d.model_calls,
            input_tokens = w.input_tokens + d.input_tokens,
            output_tokens = w.output_tokens + d.output_tokens,
            cost_microdollars = w.cost_microdollars + d.cost_microdollars,
            wake_at = least(w.wake_at, d.due_at)
        from delta as d
        where w.id = d.workflow_id
        returning w.id, w.seq - d.entries as base
    )
    insert into history (workflow_id, seq, at, type, step_id, attempt, data)
    select n.workflow_id, c.base + row_number() over (partition by n.workflow_id order by n.ordinality),
        moment, n.type, n.step_id, n.attempt, n.data
    from unnest(notes) with ordinality as n
    join counted as c on c.id = n.workflow_id;
end;
$$;
comment on function _write is 'Append history entries and move their workflows'' counters.';

create function _start(ready _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with running as (
        update steps as s
        set status = 'RUNNING', started_at = moment, due_at = moment + _lease(s.timeout_seconds),
            attempt = s.attempt + case when s.status = 'PENDING' and s.woken is null then 1 else 0 end
        from unnest(ready) as r
        join workflows as w on w.id = r.workflow_id and w.status = 'RUNNING' and w.paused_at is null
        where s.workflow_id = r.workflow_id and s.id = r.step_id
            and (s.status = 'PENDING' or s.status = 'WAITING' and s.children is null and s.signal is null)
        returning s.workflow_id, s.id, s.attempt, s.due_at
    )
    select array_agg(row(g.workflow_id, g.id, 'step.dispatched', g.attempt, null, 0, null, g.due_at)::_note)
    into notes from running as g;
    return coalesce(notes, '{}');
end;
$$;
comment on function _start is
    'PENDING steps whose needs have ended get their first attempt, or their next one after their workflow was resumed. One that was woken, or waited for a retry while its workflow was paused, goes on with its own. Of a paused workflow none starts.';

create function _settle(inout ended _step_ref[], moment timestamptz, out ready _step_ref[], out notes _note[])
language plpgsql as $$
declare
    met _step_ref[];
    joined _step_ref[];
begin
    ready := '{}';
    notes := '{}';
    loop
        with heard as (
            select e.workflow_id, d.to_id, count(*)::integer as needs, max(e.cause) as cause
            from unnest(ended) as e
            join edges as d on d.workflow_id = e.workflow_id and d.from_id = e.step_id
            group by e.workflow_id, d.to_id
        ),
        counted as (
            update steps as s
            set needs_open = s.needs_open - h.needs
            from heard as h
            where s.workflow_id = h.workflow_id and s.id = h.to_id
            returning s.workflow_id, s.id, s.needs_open, s.status, h.cause
        )
        select
            array_agg(row(c.workflow_id, c.id, c.cause)::_step_ref) filter (where c.status = 'PENDING'),
            array_agg(row(c.workflow_id, c.id, c.cause)::_step_ref) filter (where c.status = 'WAITING')
        into met, joined
        from counted as c where c.needs_open = 0;

        if met is not null then
            ready := ready || met;
        end if;
        exit when joined is null;
        notes := notes || _join(joined, moment);
        ended := joined;
    end loop;
end;
$$;
comment on function _settle is 'Tell the successors of ended steps. Parents whose last child ended end too, and so on upwards.';

create function _join(joined _step_ref[], moment timestamptz) returns _note[]
language plpgsql as $$
declare
    notes _note[];
begin
    with done as (
        update steps as s
        set status = 'SUCCESS', finished_at = moment,
            output = case
                when s.join_from is null then s.output
                when s.join_from = '*' then (
                    select coalesce(jsonb_agg(c.output order by n.ordinality), '[]')
                    from unnest(s.children) with ordinality as n (id, ordinality)
                    join steps as c on c.workflow_id = s.workflow_id and c.id = n.id
                )
                else (select c.output from steps as c where c.workflow_id = s.workflow_id and c.id = s.join_from)
            end
        from unnest(joined) as j
        where s.workflow_id = j.workflow_id and s.id = j.step_id
        returning s.workflow_id, s.id, s.attempt
    )
    select array_agg(row(d.workflow_id, d.id, 'step.completed', d.attempt, null, 1, null, null)::_note)
    into notes from done as d;
    return notes;
end;
$$;
comment on function _join is 'Parents whose children have all ended end, with the output that they asked for.';

create function _add_steps(workflow text, above text, added jsonb) returns integer
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

create function _roots(workflow text) returns text[]
language plpgsql as $$
begin
    return array(
        select s.id from steps as s where s.workflow_id = workflow and s.parent is null and s.needs = '{}' order by s.position
    );
end;
$$;
comment on function _roots is 'The steps that a workflow starts with.';

create function _begun(w workflows) returns text[]
language plpgsql as $$
begin
    if w.resumed = 0 and w.forked_from is null and w.admitted_at = w.started_at
        -- One that was woken may have got both its slots in one moment.
        and not exists (select from history as h where h.workflow_id = w.id and h.type = 'workflow.woken')
    then
        return _roots(w.id);
    end if;
    return array(
        select s.id from steps as s where s.workflow_id = w.id and s.started_at = w.admitted_at order by s.position
    );
end;
$$;
comment on function _begun is 'The steps that the last admission of a workflow started.';

create function _ready(workflow text, among text[], cause integer) returns _step_ref[]
language plpgsql as $$
begin
    return array(
        select row(workflow, s.id, cause)::_step_ref
        from unnest(among) with ordinality as n (id, ordinality)
        join steps as s on s.workflow_id = workflow and s.id = n.id
        where s.status = 'PENDING' and s.needs_open = 0
        order by n.ordinality
    );
end;
$$;
comment on function _ready is 'Those of some steps that wait for nothing.';

create function _startable(workflow text, cause integer, moment timestamptz) returns _step_ref[]
language plpgsql as $$
begin
    return array(
        select row(workflow, s.id, cause)::_step_ref
        from steps as s
        where s.workflow_id = workflow and (
            s.status = 'PENDING' and s.needs_open = 0
            or s.status = 'WAITING' and s.children is null and s.signal is null and s.due_at <= moment
        )
        order by s.position
    );
end;
$$;
comment on function _startable is
    'What a workflow goes on with: its roots when it is new, else wherever it was, retries that came due while it was paused included.';

create function _wakes_at(w workflows) returns timestamptz
language plpgsql as $$
begin
    return least(w.deadline_at, (
        select min(s.due_at) from steps as s
        -- What may not start before its workflow goes on is nothing to look for.
        where s.workflow_id = w.id and (
            s.status = 'RUNNING' or w.paused_at is null and (w.status = 'RUNNING' or s.signal is not null)
        )
    ));
end;
$$;
comment on function _wakes_at is 'When the sweeper has to look at a workflow again.';

create function _end_workflow(
    workflow text, outcome text, why jsonb, result jsonb, moment timestamptz, receipt jsonb default null
)
returns void
language plpgsql as $$
declare
    stopped integer;
begin
    update steps as s
    set status = 'CANCELLED', finished_at = moment, due_at = case when s.status = 'RUNNING' then s.due_at end
    where s.workflow_id = workflow and not _is_final(s.status);
    get diagnostics stopped = row_count;
    update workflows as w
    set status = outcome, error = why, output = result, finished_at = moment, steps_waiting = 0, paused_at = null, paused_by = null,
        wake_at = case when w.callback_url is not null then moment + interval '1 minute' end
    where w.id = workflow;
    perform _write(
        array[row(
            workflow, null,
            case outcome when 'SUCCESS' then 'workflow.succeeded' when 'FAILED' then 'workflow.failed' else 'workflow.cancelled' end,
            null, case when receipt is null then why else why || jsonb_build_object('receipt', receipt) end, stopped, null, null
        )::_note],
        moment
    );
end;
$$;
comment on function _end_workflow is 'A workflow ends, and with it every step that has not.';

create function _again(workflow text, origins text[], cause integer, from_start boolean default false) returns _step_ref[]
language plpgsql as $$
begin
    -- Steps that were decided on without a message of their own (skipped, expanded, failed by their template) are looked through:
    -- into their children when we come from above, past them once they have ended.
    return array(
        with recursive reached as (
            select s.id, true as from_above, not from_start or _is_decided(s) as look_through
            from unnest(origins) as o
            join steps as s on s.workflow_id = workflow and s.id = o
            union
            select t.id, n.from_above, _is_decided(t) and (n.from_above or _is_final(t.status))
            from reached as r
            join steps as s on s.workflow_id = workflow and s.id = r.id
            cross join lateral (
                select d.to_id as id, d.to_id is distinct from s.parent as from_above
                from edges as d where d.workflow_id = workflow and d.from_id = s.id
                union all
                select unnest(s.children), true where r.from_above
            ) as n
            join steps as t on t.workflow_id = workflow and t.id = n.id
            where r.look_through
        )
        select distinct row(workflow, s.id, cause)::_step_ref
        from reached as r
        join steps as s on s.workflow_id = workflow and s.id = r.id
        where s.status = 'RUNNING'
    );
end;
$$;
comment on function _again is
    'The running steps that an event about the origins (or the start of the workflow at them) had started: what its repetition returns.';
