-- What an agent spawns is held to the limits of its step, and what remains of a budget tells of steps, too.

create function _spawn_refusal(limits jsonb, children jsonb) returns text
language plpgsql immutable as $$
declare
    size integer := jsonb_array_length(children);
    allowed text[] := case when limits ? 'agents' then array(select jsonb_array_elements_text(limits -> 'agents')) end;
    stranger text;
begin
    if size = 0 then
        return null;
    end if;
    if (limits ->> 'max_depth')::integer < 1 then
        return format('it spawns %s steps, and steps so deep may spawn none; let them be spawned further up or raise max_depth of spawn', size);
    end if;
    if size > (limits ->> 'max_steps')::integer then
        return format('it spawns %s steps and may spawn %s; spawn fewer or raise max_steps of spawn', size, limits ->> 'max_steps');
    end if;
    select c.value ->> 'agent' into stranger
    from jsonb_array_elements(children) as c where c.value ->> 'agent' <> all (allowed) limit 1;
    if stranger is not null then
        return format(
            'it spawns a step for %s, which it may not use; it may use: %s',
            stranger, coalesce(nullif(array_to_string(allowed, ', '), ''), 'no agent')
        );
    end if;
    return null;
end;
$$;
comment on function _spawn_refusal is 'Which of its limits an agent''s spawn breaks; null when it keeps them all.';

create function _bequeathed(limits jsonb, children jsonb) returns jsonb
language plpgsql immutable as $$
declare
    size integer := jsonb_array_length(children);
    left_over jsonb := limits || jsonb_build_object('max_depth', (limits ->> 'max_depth')::integer - 1);
begin
    if size > 0 and limits ? 'max_steps' then
        left_over := left_over || jsonb_build_object('max_steps', ((limits ->> 'max_steps')::integer - size) / size);
    end if;
    return (
        select coalesce(jsonb_agg(jsonb_set(c.value, '{spec,spawn}', left_over) order by c.ordinality), '[]')
        from jsonb_array_elements(children) with ordinality as c
    );
end;
$$;
comment on function _bequeathed is
    'Spawned steps with what their parent leaves them of its limits: one level less, an equal share of the steps. So all of them together keep its limits.';

create or replace function _expand_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    tried integer := (event ->> 'attempt')::integer;
    size integer := jsonb_array_length(event -> 'children');
    ids text[];
    added jsonb := event -> 'children';
    limits jsonb;
    refusal jsonb;
begin
    if event ->> 'type' = 'step.completed' then
        -- Patterns and for_each stand in the definition; what an agent spawns is limited.
        limits := '{"max_depth": 5}' || coalesce(s.spec -> 'spawn', '{}');
        refusal := jsonb_build_object('type', 'InputError', 'message', _spawn_refusal(limits, added));
        added := _bequeathed(limits, added);
    end if;
    if refusal ->> 'message' is null and not (
        select w.max_steps is null or w.steps_total + size <= w.max_steps from workflows as w where w.id = s.workflow_id
    ) then
        refusal := jsonb_build_object('type', 'BudgetExceeded', 'message', format('%s more steps would pass max_steps', size));
    end if;
    if refusal ->> 'message' is not null then
        -- This result is known: its repetition must not pass for a late one.
        update steps as t set late = t.late || tried where t.workflow_id = s.workflow_id and t.id = s.id;
        return _fail_step(s, event || jsonb_build_object('error', refusal), cause, moment);
    end if;
    update workflows as w set steps_total = w.steps_total + size, steps_open = w.steps_open + size where w.id = s.workflow_id;
    perform _add_steps(s.workflow_id, s.id, added);
    ids := array(
        select c.value ->> 'id' from jsonb_array_elements(added) with ordinality as c order by c.ordinality
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
                'max_tokens', w.max_tokens, 'max_cost_microdollars', w.max_cost_microdollars,
                'steps', least(
                    case when w.max_steps is not null then greatest(0, w.max_steps - w.steps_total) end,
                    (s.spec #>> '{spawn,max_steps}')::integer
                )
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

comment on column steps.spec is
    'Opaque here: templates, conditions and literal input, decided on when the step is about to be dispatched. But for spawn, which limits what its agent adds.';

do $$
declare
    role name;
    function regprocedure;
begin
    foreach function in array array['_spawn_refusal(jsonb, jsonb)'::regprocedure, '_bequeathed(jsonb, jsonb)'::regprocedure] loop
        execute format('revoke execute on function %s from public', function);
        foreach role in array array['anon', 'authenticated'] loop
            if exists (select from pg_roles as r where r.rolname = role) then
                execute format('revoke execute on function %s from %I', function, role);
            end if;
        end loop;
        if exists (select from pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', function);
        end if;
    end loop;
end;
$$;
