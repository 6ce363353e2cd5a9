-- One function per kind of event, for those that come seldom. Each locks nothing: `advance` holds the workflow's row.
-- Applied again, each changes nothing and returns what it returned before.

create function _on_requested(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    wf text := event ->> 'workflow';
    effect _effect;
    known workflows;
    created boolean;
begin
    if event ? 'schedule' and not _take_tick(event -> 'schedule', wf) then
        effect.reply := jsonb_build_object('type', 'passed', 'cause', cause, 'workflow', wf, 'name', event ->> 'name');
        return effect;
    end if;
    insert into workflows (
        id, request_key, request_hash, name, version, status, priority, input, output_template, output_needs, output_uses_input,
        max_steps, max_tokens, max_cost_microdollars, deadline_seconds, callback_url, traceparent, steps_total, steps_open, created_at,
        tenant
    )
    values (
        wf, event ->> 'request_key', event ->> 'request_hash', event ->> 'name', (event ->> 'version')::integer, 'QUEUED',
        (event ->> 'priority')::integer, event -> 'input', event -> 'output',
        array(select jsonb_array_elements_text(event -> 'output_needs')), (event ->> 'output_uses_input')::boolean,
        (event ->> 'max_steps')::integer, (event ->> 'max_tokens')::bigint, (event ->> 'max_cost_microdollars')::bigint,
        (event ->> 'deadline_seconds')::double precision, event ->> 'callback_url', event ->> 'traceparent',
        jsonb_array_length(event -> 'steps'), jsonb_array_length(event -> 'steps'), moment,
        coalesce(event ->> 'tenant', '')
    )
    on conflict do nothing;
    created := found;
    if created then
        perform _add_steps(wf, null, event -> 'steps');
        perform _write(array[row(wf, null, 'workflow.requested', null, null, 0, null, null)::_note], moment);
    end if;

    select w.* into known from workflows as w
    where w.id = wf or w.request_key = event ->> 'request_key'
    order by w.id = wf desc limit 1 for update;
    if known.request_hash is distinct from event ->> 'request_hash' then
        effect.reply := jsonb_build_object('type', 'conflict', 'cause', cause, 'workflow', known.id);
        return effect;
    end if;
    effect.reply := jsonb_build_object('type', 'accepted', 'cause', cause, 'workflow', known.id, 'name', known.name, 'created', created);
    effect.touched := array[row(known.id, null, cause)::_step_ref];
    if not created then
        effect.started := _again(known.id, _roots(known.id), cause, true) || _admitted(known.id, cause);
    end if;
    return effect;
end;
$$;
comment on function _on_requested is
    'workflow.requested: create the workflow, QUEUED, unless its id or request key is known, or it is for a tick that starts none.';

create function _ignored(event jsonb, cause integer) returns _effect
language plpgsql as $$
declare
    effect _effect;
begin
    effect.reply := jsonb_build_object('type', 'ignored', 'cause', cause, 'workflow', event ->> 'workflow', 'step', event ->> 'step');
    return effect;
end;
$$;
comment on function _ignored is 'An event about a workflow or a step that is not there.';

create function _on_rendered(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    known workflows;
begin
    select w.* into known from workflows as w where w.id = event ->> 'workflow';
    if known.id is null then
        return _ignored(event, cause);
    end if;
    if known.status = 'RUNNING' and known.steps_open = 0 then
        perform _end_workflow(
            event ->> 'workflow',
            case event ->> 'type' when 'workflow.rendered' then 'SUCCESS' else 'FAILED' end,
            event -> 'error', event -> 'output', moment
        );
    end if;
    return effect;
end;
$$;
comment on function _on_rendered is 'workflow.rendered, workflow.failed: the output of a workflow whose steps have all ended, or why there is none.';

create function _on_cancelled(event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    known workflows;
begin
    select w.* into known from workflows as w where w.id = event ->> 'workflow';
    if known.id is null then
        return _ignored(event, cause);
    end if;
    if not _is_final(known.status) then
        perform _end_workflow(
            event ->> 'workflow', 'CANCELLED',
            jsonb_build_object('type', 'Cancelled', 'message', coalesce(event ->> 'reason', '')), null, moment,
            _receipt(known, event, moment)
        );
    end if;
    return effect;
end;
$$;
comment on function _on_cancelled is 'workflow.cancelled: stop a workflow that has not ended.';

create function _fail_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
language plpgsql as $$
declare
    effect _effect;
    nested text;
begin
    update steps as t
    set status = 'FAILED', error = event -> 'error', due_at = null, finished_at = moment, prompts = event -> 'prompts',
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
        return effect;
    end if;
    nested := _goes_on(s);
    if nested is not null then
        perform _end_nested(s.workflow_id, nested, event -> 'error' || jsonb_build_object('step', s.id), moment);
        effect.ended := array[row(s.workflow_id, nested, cause)::_step_ref];
    else
        perform _end_workflow(s.workflow_id, 'FAILED', event -> 'error' || jsonb_build_object('step', s.id), null, moment);
    end if;
    return effect;
end;
$$;
comment on function _fail_step is
    'A step has failed for good: its workflow fails, or goes on without its output or that of the nested workflow around it.';

create function _retry_step(s steps, type text, event jsonb, delay_seconds double precision, cause integer, moment timestamptz)
returns _effect
language plpgsql as $$
declare
    effect _effect;
    start_at timestamptz := moment + make_interval(secs => delay_seconds);
    -- Short delays are waited out by whoever publishes; later moments belong to the sweeper, and none is kept while paused.
    soon boolean := delay_seconds <= 10
        and exists (select from workflows as w where w.id = s.workflow_id and w.paused_at is null);
    due timestamptz := case when soon then start_at + _lease(s.timeout_seconds) else start_at end;
begin
    update steps as t
    -- One that waits for people or time is not told again what it was told, nor anything else, before its workflow goes on.
    set status = case when soon then 'RUNNING' when t.signal is null then 'WAITING' else 'PENDING' end,
        attempt = case
            when type = 'step.deferred' or not soon and t.signal is not null and t.woken is null then t.attempt else t.attempt + 1
        end,
        deferrals = case when type = 'step.deferred' then t.deferrals + 1 else 0 end,
        due_at = case when soon or t.signal is null then due end, error = event -> 'error', prompts = event -> 'prompts',
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

create function _on_step(event jsonb, cause integer, moment timestamptz) returns _effect
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

create function _expand_step(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
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
        attempt = tried, children = ids, prompts = event -> 'prompts',
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

create function _repeated(s steps, event jsonb, cause integer, moment timestamptz) returns _effect
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
