-- Messages that used up their delivery attempts: recorded, shown, and handed out to be sent again.

create function _letter_state(d dead_letters) returns text
language sql immutable
return case when d.redrive_count = 0 then 'waiting' when d.failed_redrive >= d.redrive_count then 'again' else 'redriven' end;
comment on function _letter_state is 'waiting: never redriven; redriven: sent, and nothing heard since; again: dead again after its last redrive.';

create function _is_wanted(d dead_letters, filter jsonb) returns boolean
language sql stable
return (filter -> 'ids' is null or filter -> 'ids' @> to_jsonb(d.id))
    and (filter -> 'states' is null or filter -> 'states' ? _letter_state(d))
    and (filter ->> 'cause' is null or d.cause = filter ->> 'cause' or starts_with(d.cause, (filter ->> 'cause') || ':'))
    and (filter ->> 'function' is null or d.function = filter ->> 'function')
    and (filter ->> 'workflow' is null or d.workflow_id = filter ->> 'workflow')
    and (filter ->> 'since' is null or d.recorded_at >= (filter ->> 'since')::timestamptz)
    and (filter ->> 'until' is null or d.recorded_at < (filter ->> 'until')::timestamptz);
comment on function _is_wanted is 'Whether a letter fits a filter: ids, states, cause (or its group), function, workflow, since, until; what is left out is not asked.';

create function _letter_head(d dead_letters) returns jsonb
language sql stable
return jsonb_build_object(
    'id', d.id, 'message_id', d.message_id, 'subscription', d.subscription, 'topic', d.topic, 'function', d.function,
    'cause', d.cause, 'reason', d.reason, 'last_error', d.last_error, 'attempts', d.attempts,
    'workflow', d.workflow_id, 'step', d.step_id, 'attempt', d.attempt, 'state', _letter_state(d),
    'redrive_count', d.redrive_count, 'redriven_at', d.redriven_at, 'recorded_at', d.recorded_at, 'size_bytes', length(d.data)
);

create function _letter(d dead_letters) returns jsonb
language plpgsql stable as $$
declare
    w workflows;
    s steps;
begin
    select k.* into w from workflows as k where k.id = d.workflow_id;
    select k.* into s from steps as k where k.workflow_id = d.workflow_id and k.id = d.step_id;
    return _letter_head(d) || jsonb_build_object(
        'data', translate(encode(d.data, 'base64'), E'\n', ''), 'attributes', d.attributes,
        'blocked', case when d.attempt is not null then _not_resumable(w, s, d.attempt) end
    );
end;
$$;
comment on function _letter is 'A letter whole, with what keeps its step from being resumed.';

create function record_dead_letter(letter jsonb, moment timestamptz default now()) returns bigint
language plpgsql as $$
declare
    known bigint;
    tried integer := (letter ->> 'attempt')::integer;
    redrive integer := coalesce((letter ->> 'redrive')::integer, 0);
begin
    -- A redriven step starts under its next attempt, whose message has an id of its own. It is the same letter that is dead again.
    select d.id into known from dead_letters as d
    where d.subscription = letter ->> 'subscription' and d.workflow_id = letter ->> 'workflow' and d.step_id = letter ->> 'step'
        and d.redrive_count > 0 and d.message_id <> letter ->> 'message_id' and tried is not null
    order by d.attempt desc
    limit 1
    for update;
    if known is not null then
        update dead_letters as d
        set message_id = letter ->> 'message_id', attempt = tried, attempts = (letter ->> 'attempts')::integer,
            reason = letter ->> 'reason', cause = letter ->> 'cause', last_error = nullif(letter -> 'last_error', 'null'),
            data = decode(letter ->> 'data', 'base64'), attributes = letter -> 'attributes', failed_redrive = d.redrive_count
        where d.id = known and d.attempt < tried;
        return known;
    end if;

    insert into dead_letters as d (
        message_id, subscription, topic, attempts, reason, workflow_id, step_id, data, attributes, recorded_at,
        function, cause, last_error, attempt
    )
    values (
        letter ->> 'message_id', letter ->> 'subscription', letter ->> 'topic', (letter ->> 'attempts')::integer, letter ->> 'reason',
        letter ->> 'workflow', letter ->> 'step', decode(letter ->> 'data', 'base64'), letter -> 'attributes', moment,
        letter ->> 'function', letter ->> 'cause', nullif(letter -> 'last_error', 'null'), tried
    )
    on conflict (subscription, message_id) do update
    set attempts = excluded.attempts, reason = excluded.reason, cause = excluded.cause, last_error = excluded.last_error,
        failed_redrive = least(greatest(d.failed_redrive, redrive), d.redrive_count)
    -- A copy from before the last redrive says nothing about it.
    where redrive >= d.redrive_count
    returning d.id into known;
    if known is null then
        select d.id into known from dead_letters as d
        where d.subscription = letter ->> 'subscription' and d.message_id = letter ->> 'message_id';
    end if;
    return known;
end;
$$;
comment on function record_dead_letter is 'Keep a message that used up its attempts; a copy of it changes nothing but the count, and one that was redriven is marked as dead again.';

create function list_dead_letters(filter jsonb default '{}', before bigint default null, max_rows integer default 50) returns json
language sql stable
begin atomic
    select coalesce(json_agg(page.head), '[]')
    from (
        select _letter_head(d) as head from dead_letters as d
        where (before is null or d.id < before) and _is_wanted(d, filter)
        order by d.id desc
        limit max_rows
    ) as page;
end;
comment on function list_dead_letters is 'The newest letters first, without their data; before is the last id of the page before.';

create function count_dead_letters(filter jsonb default '{}') returns bigint
language sql stable
begin atomic
    select count(*) from dead_letters as d where _is_wanted(d, filter);
end;
comment on function count_dead_letters is 'How many letters fit a filter.';

create function read_dead_letters(ids bigint[]) returns json
language sql stable
begin atomic
    select coalesce(json_agg(_letter(d) order by d.id desc), '[]') from dead_letters as d where d.id = any(ids);
end;
comment on function read_dead_letters is 'Letters whole, the newest first.';

create function redrive_dead_letters(ids bigint[], states text[], moment timestamptz default now()) returns json
language plpgsql as $$
declare
    letters json;
begin
    -- Of two that redrive at once each letter goes to one: the other passes over what is locked, and later finds its state changed.
    with claimed as (
        select d.id from dead_letters as d
        where d.id = any(ids) and _letter_state(d) = any(states)
        order by d.id
        for update skip locked
    ),
    marked as (
        update dead_letters as d
        set redrive_count = d.redrive_count + 1, redriven_at = moment
        from claimed as c
        where d.id = c.id
        returning d.id, _letter(d) as letter
    )
    select json_agg(m.letter order by m.id desc) into letters from marked as m;
    return coalesce(letters, '[]');
end;
$$;
comment on function redrive_dead_letters is 'Mark letters that are in one of these states as redriven, and return them to be sent, each to one caller.';

create function return_dead_letters(ids bigint[]) returns bigint
language plpgsql as $$
declare
    returned bigint;
begin
    update dead_letters as d
    set redrive_count = d.redrive_count - 1, redriven_at = case when d.redrive_count > 1 then d.redriven_at end
    where d.id = any(ids) and d.redrive_count > d.failed_redrive;
    get diagnostics returned = row_count;
    return returned;
end;
$$;
comment on function return_dead_letters is 'Take the mark back from letters that were not sent after all.';
