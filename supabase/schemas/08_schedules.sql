-- How far the schedules of definitions have come. When one is due is worked out outside; that no tick starts two workflows is held here.

create table schedules (
    name text collate "C" primary key,
    cron text not null,
    last_tick timestamptz not null,
    workflow_id text collate "C"
);

comment on table schedules is 'One row per definition that has a schedule, from when it was first seen with it.';
comment on column schedules.last_tick is 'Every tick up to this moment was decided on: it started a workflow, or was passed over. None of them starts one any more.';
comment on column schedules.workflow_id is 'The workflow that was started last; perhaps no longer there.';

create function _take_tick(schedule jsonb, workflow text) returns boolean
language plpgsql as $$
declare
    tick timestamptz := (schedule ->> 'tick')::timestamptz;
begin
    update schedules as s set last_tick = tick, workflow_id = _take_tick.workflow
    where s.name = schedule ->> 'name' and s.cron = schedule ->> 'cron' and s.last_tick < tick;
    return found or exists (select from workflows as w where w.id = _take_tick.workflow);
end;
$$;
comment on function _take_tick is
    'Whether a tick may start its workflow, or has: not when it was passed over, or belongs to an expression that is no longer in force.';

create function read_schedules(moment timestamptz default now()) returns json
language sql stable
begin atomic
    select json_build_object('moment', moment, 'schedules', coalesce((
        select json_agg(json_build_object(
            'name', s.name, 'cron', s.cron, 'last_tick', s.last_tick, 'workflow', s.workflow_id
        ) order by s.name)
        from schedules as s
    ), '[]'));
end;
comment on function read_schedules is 'How far each schedule has come, and the time here, which is the one that they go by.';

create function note_schedules(notes jsonb) returns integer
language plpgsql as $$
declare
    note record;
    changed integer := 0;
begin
    for note in
        select n.value ->> 'name' as name, n.value ->> 'cron' as cron, (n.value ->> 'tick')::timestamptz as tick
        from jsonb_array_elements(notes) as n
        -- In one order, so that two calls cannot wait for each other.
        order by 1
    loop
        if note.cron is null then
            delete from schedules as s where s.name = note.name;
        else
            insert into schedules as s (name, cron, last_tick) values (note.name, note.cron, note.tick)
            on conflict (name) do update set cron = excluded.cron, last_tick = greatest(s.last_tick, excluded.last_tick)
            where s.cron <> excluded.cron or s.last_tick < excluded.last_tick;
        end if;
        changed := changed + found::integer;
    end loop;
    return changed;
end;
$$;
comment on function note_schedules is
    'Note ticks that are passed over, the moment from which an expression counts, and (without one) that a definition has no schedule any more.';
