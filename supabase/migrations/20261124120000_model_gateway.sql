-- The model gateway: usage by model, what late attempts used, and documents to search.

alter table steps add column models jsonb;
comment on column steps.models is 'The usage of all attempts by the model that was asked; null when no attempt told.';
comment on column steps.due_at is
    'RUNNING: the end of the lease. WAITING without children: when it starts again. CANCELLED: the lease of the attempt that was cut off.';

create table documents (
    name text collate "C" primary key,
    sha256 text not null,
    size_bytes bigint not null,
    added_at timestamptz not null
);

comment on table documents is 'Texts that agents may search, each whole in its passages.';

create table passages (
    document text collate "C" not null references documents (name) on delete cascade,
    position integer not null,
    text text not null,
    -- Whatever the language: another configuration would bend words by the rules of one, and drop those that are common in it.
    words tsvector not null generated always as (to_tsvector('simple'::regconfig, text)) stored,
    primary key (document, position)
);

create index passages_words on passages using gin (words);

comment on table passages is 'What a search finds: a document, cut where paragraphs or sentences end.';

alter table documents enable row level security;
alter table passages enable row level security;
revoke all on documents, passages from public;

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
    set status = outcome, error = why, output = result, finished_at = moment, wake_at = null
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

create or replace function _fail_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
begin
    update steps as t
    set status = 'FAILED', error = event -> 'error', due_at = null, finished_at = moment,
        (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
            select p.*
            from _spent(
                t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
            ) as p
        )
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(s.workflow_id, s.id, 'step.failed', s.attempt, event -> 'error', 1, event -> 'usage', null)::_note], moment
    );
    if s.on_failure = 'continue' then
        effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
    else
        perform _end_workflow(s.workflow_id, 'FAILED', event -> 'error' || jsonb_build_object('step', s.id), null, moment);
    end if;
    return effect;
end;
$$;
comment on function _fail_step is 'A step has failed for good: its workflow fails, or goes on without its output.';

create or replace function _retry_step(s steps, type text, event jsonb, delay_seconds double precision, cause integer, moment timestamptz)
returns _effect
language plpgsql as $$
declare
    effect _effect;
    start_at timestamptz := moment + make_interval(secs => delay_seconds);
    -- Short delays are waited out by whoever publishes; later moments belong to the sweeper.
    soon boolean := delay_seconds <= 10;
    due timestamptz := case when soon then start_at + _lease(s.timeout_seconds) else start_at end;
begin
    update steps as t
    set status = case when soon then 'RUNNING' else 'WAITING' end,
        attempt = case when type = 'step.deferred' then t.attempt else t.attempt + 1 end,
        deferrals = case when type = 'step.deferred' then t.deferrals + 1 else 0 end,
        due_at = due, error = event -> 'error',
        (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
            select p.*
            from _spent(
                t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
            ) as p
        )
    where t.workflow_id = s.workflow_id and t.id = s.id
    returning t.attempt into s.attempt;
    perform _write(
        array[row(
            s.workflow_id, s.id, type, s.attempt,
            jsonb_build_object('not_before', start_at, 'error', event -> 'error'), 0, event -> 'usage', due
        )::_note]
        || case when soon then
            array[row(s.workflow_id, s.id, 'step.dispatched', s.attempt, null, 0, null, null)::_note]
        end,
        moment
    );
    if soon then
        effect.started := array[row(s.workflow_id, s.id, cause)::_step_ref];
    end if;
    return effect;
end;
$$;
comment on function _retry_step is 'The next attempt of a step (step.retried, step.lease_expired), or the same one later (step.deferred).';

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
            tried < s.attempt or (event ->> 'deferrals')::integer < s.deferrals or s.status = 'WAITING'
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
comment on function _on_step is 'step.failed, .deferred, .skipped, .expanded, and .completed with children.';

create or replace function _expand_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    tried integer := (event ->> 'attempt')::integer;
    size integer := jsonb_array_length(event -> 'children');
    ids text[];
    room boolean;
begin
    select w.max_steps is null or w.steps_total + size <= w.max_steps into room from workflows as w where w.id = s.workflow_id;
    if not room then
        -- This result is known: its repetition must not pass for a late one.
        update steps as t set late = t.late || tried where t.workflow_id = s.workflow_id and t.id = s.id;
        return _fail_step(s, event || jsonb_build_object('error', jsonb_build_object(
            'type', 'BudgetExceeded', 'message', format('%s more steps would pass max_steps', size)
        )), cause, moment);
    end if;
    update workflows as w set steps_total = w.steps_total + size, steps_open = w.steps_open + size where w.id = s.workflow_id;
    perform _add_steps(s.workflow_id, s.id, event -> 'children');
    ids := array(
        select c.value ->> 'id' from jsonb_array_elements(event -> 'children') with ordinality as c order by c.ordinality
    );
    update steps as t
    set status = 'WAITING', due_at = null, needs_open = size, join_from = event ->> 'join', output = event -> 'output', error = null,
        attempt = tried, children = ids,
        (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
            select p.*
            from _spent(
                t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
            ) as p
        )
    where t.workflow_id = s.workflow_id and t.id = s.id;
    perform _write(
        array[row(
            s.workflow_id, s.id, 'step.expanded', tried, jsonb_build_object('steps', size), 0, event -> 'usage', null
        )::_note],
        moment
    );
    if size = 0 then
        perform _write(_join(array[row(s.workflow_id, s.id, cause)::_step_ref], moment), moment);
        effect.ended := array[row(s.workflow_id, s.id, cause)::_step_ref];
    else
        effect.started := _ready(s.workflow_id, ids, cause);
        perform _write(_start(effect.started, moment), moment);
    end if;
    return effect;
end;
$$;
comment on function _expand_step is 'A step gets children and waits for them: for_each, a pattern, or an agent''s spawn.';

create function _is_late(s steps, event jsonb) returns boolean
language plpgsql immutable as $$
declare
    tried integer := (event ->> 'attempt')::integer;
begin
    return case
        when tried = any(s.late) then false
        when event ->> 'type' = 'step.completed' then
            (tried <= s.attempt or s.status <> 'PENDING')
            and not (tried = s.attempt and (s.status = 'SUCCESS' or s.children is not null))
        -- An error of any other attempt may be one that was counted when it came first.
        when event ->> 'type' in ('step.failed', 'step.deferred') then
            s.status = 'CANCELLED' and s.due_at is not null and event ? 'usage'
            and tried = s.attempt and coalesce((event ->> 'deferrals')::integer, s.deferrals) = s.deferrals
        else false
    end;
end;
$$;
comment on function _is_late is 'Whether an event is news of an attempt that nobody waits for any more.';

create or replace function _repeated(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    tried integer := (event ->> 'attempt')::integer;
begin
    if _is_late(s, event) then
        update steps as t
        set late = t.late || tried,
            (model_calls, input_tokens, output_tokens, cost_microdollars, models) = (
                select p.*
                from _spent(
                    t.model_calls, t.input_tokens, t.output_tokens, t.cost_microdollars, t.models, event -> 'usage', event -> 'models'
                ) as p
            )
        where t.workflow_id = s.workflow_id and t.id = s.id;
        perform _write(
            array[row(s.workflow_id, s.id, 'step.late', tried, null, 0, event -> 'usage', null)::_note], moment
        );
    end if;
    effect.started := _again(s.workflow_id, array[s.id], cause);
    return effect;
end;
$$;
comment on function _repeated is
    'An event that was applied before returns its commands again; what came too late to count is noted once, with what it used.';

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
        deferrals = 0, error = null, due_at = null, finished_at = null
    where t.workflow_id = w.id and (t.status = 'CANCELLED' or t.id = s.id);
    get diagnostics reopened = row_count;
    update workflows as t
    set status = 'QUEUED', resumed = t.resumed + 1, error = null, finished_at = null, deadline_at = null, admitted_by = null
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
            'deadline', least(s.due_at, w.deadline_at), 'not_before', _not_before(s.due_at, s.timeout_seconds, moment),
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
    return effect;
end;
$$;

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
    freed _step_ref;
begin
    select array_agg(row(t.workflow_id, null, t.cause)::_step_ref) into touched
    from (
        select e.value ->> 'workflow' as workflow_id, max(e.ordinality)::integer - 1 as cause
        from jsonb_array_elements(events) with ordinality as e
        -- One that is refused must not make others' commands come again; one that is not says itself that it touched its workflow.
        where e.value ? 'workflow' and e.value ->> 'type' is distinct from 'step.redriven'
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
            when event.type = 'tick' then
                effect := _on_tick(event.body, event.cause, moment);
                freed.cause := event.cause;
                slots := true;
            when event.type in ('step.failed', 'step.deferred', 'step.skipped', 'step.expanded', 'step.completed') then
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
        where w.status <> 'RUNNING'
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
        end if;
        freed := row(event.id, null, event.cause)::_step_ref;
        slots := true;
        if (select _is_final(w.status) from workflows as w where w.id = event.id) then
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

create function put_document(name text, sha256 text, passages jsonb, moment timestamptz default now()) returns json
language plpgsql as $$
declare
    known text;
begin
    select d.sha256 into known from documents as d where d.name = put_document.name for update;
    if known = put_document.sha256 then
        return to_json('unchanged'::text);
    end if;
    insert into documents (name, sha256, size_bytes, added_at)
    select put_document.name, put_document.sha256, coalesce(sum(octet_length(p.value)), 0), moment
    from jsonb_array_elements_text(put_document.passages) as p
    on conflict on constraint documents_pkey do update
    set sha256 = excluded.sha256, size_bytes = excluded.size_bytes, added_at = excluded.added_at;
    delete from passages as p where p.document = put_document.name;
    insert into passages (document, position, text)
    select put_document.name, p.ordinality, p.value
    from jsonb_array_elements_text(put_document.passages) with ordinality as p;
    return to_json(case when known is null then 'added' else 'replaced' end);
end;
$$;
comment on function put_document is 'Keep a text, cut into passages, in place of what was under its name: added, replaced or, when it is the same, unchanged.';

create function list_documents() returns json
language sql stable
begin atomic
    select coalesce(json_agg(json_build_object(
        'name', d.name, 'sha256', d.sha256, 'size_bytes', d.size_bytes,
        'passages', (select count(*) from passages as p where p.document = d.name), 'added_at', d.added_at
    ) order by d.name), '[]')
    from documents as d;
end;
comment on function list_documents is 'Every document by name, without its text.';

create function remove_document(name text) returns boolean
language plpgsql as $$
begin
    delete from documents as d where d.name = remove_document.name;
    return found;
end;
$$;
comment on function remove_document is 'Forget a document; false when there is none of that name.';

create function search_documents(query text, max_rows integer default 10) returns json
language plpgsql stable as $$
declare
    wanted tsquery := websearch_to_tsquery('simple', left(query, 1000));
    most integer := least(greatest(max_rows, 0), 50);
    hits json;
begin
    select json_agg(json_build_object('document', h.document, 'position', h.position, 'text', h.text)) into hits
    from (
        select p.document, p.position, p.text from passages as p
        where p.words @@ wanted
        order by ts_rank(p.words, wanted) desc, p.document, p.position
        limit most
    ) as h;
    -- Who excludes a word means it; everybody else may have said too much for any one passage.
    if hits is null and wanted::text not like '%!%' then
        hits := _search_any(tsvector_to_array(to_tsvector('simple', wanted::text)), most);
    end if;
    return coalesce(hits, '[]');
end;
$$;
comment on function search_documents is
    'The passages that fit best, as of a web search: all words, "a phrase", or, -not. Where none has all words, those with any of them.';

create function _search_any(wanted text[], most integer) returns json
language plpgsql stable as $$
declare
    hits json;
begin
    with known as materialized (
        select plainto_tsquery('simple', w.word) as query, (
            select count(*) from passages as p where p.words @@ plainto_tsquery('simple', w.word)
        ) as passages
        from unnest(wanted[:32]) as w (word)
    ),
    best as (
        -- The rarer a word, the more it says: what is common in a language counts next to nothing, and no list of such words is needed.
        select p.document, p.position,
            sum(ts_rank(p.words, k.query) * ln(1 + (select count(*) from passages)::double precision / k.passages)) as rank
        from known as k
        join passages as p on p.words @@ k.query
        group by p.document, p.position
        order by rank desc, p.document, p.position
        limit most
    )
    select json_agg(
        json_build_object('document', p.document, 'position', p.position, 'text', p.text) order by b.rank desc, p.document, p.position
    )
    into hits
    from best as b
    join passages as p on p.document = b.document and p.position = b.position;
    return hits;
end;
$$;
comment on function _search_any is 'The passages with any of some words, those with the most and the rarest first.';

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
                'started_at', s.started_at, 'finished_at', s.finished_at,
                'usage', _usage(s.model_calls, s.input_tokens, s.output_tokens, s.cost_microdollars),
                'models', coalesce(s.models, '{}')
            ) order by s.parent nulls first, s.position), '[]')
            from steps as s where s.workflow_id = w.id
        )
    ))::json
    from workflows as w where w.id = get_workflow.id;
end;
comment on function get_workflow is 'One workflow with its steps; null when there is none.';

-- Its s.* was written out when it was made.
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
            when e.seq < r.seq then 'PENDING'
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
            case
                when exists (select from entry as e, resumption as r where e.type = 'workflow.started' and e.seq > r.seq) then 'RUNNING'
                else 'QUEUED'
            end
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
            execute format('revoke all on workflows, steps, edges, history, dead_letters, documents, passages from %I', role);
            execute format('revoke all on sequence dead_letters_id_seq from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on workflows, steps, edges, history, dead_letters, documents, passages to service_role;
    end if;
end;
$$;
