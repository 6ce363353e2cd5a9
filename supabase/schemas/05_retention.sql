-- What is old enough goes: workflows that have ended, with all that belongs to them, and dead letters that nobody waits for.

create function purge(older_than_seconds double precision, max_rows integer default 1000, moment timestamptz default now()) returns json
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
comment on function purge is
    'Delete about max_rows rows of what ended longer ago than that, the oldest first.';

create function purgeable(older_than_seconds double precision, moment timestamptz default now()) returns json
language sql stable
begin atomic
    select json_build_object(
        'workflows', (
            select count(*) from workflows as w
            where w.finished_at < moment - make_interval(secs => older_than_seconds) and _is_final(w.status)
        ),
        'dead_letters', (
            select count(*) from dead_letters as d
            where d.recorded_at < moment - make_interval(secs => older_than_seconds)
                and coalesce(d.redriven_at < moment - make_interval(secs => older_than_seconds), true)
                and not exists (select from workflows as w where w.id = d.workflow_id and not _is_final(w.status))
        )
    );
end;
comment on function purgeable is 'How many workflows and dead letters `purge` would delete by and by.';

create function outputs_in_use(hashes text[]) returns json
language sql stable
begin atomic
    with texts as (
        select s.output::text as value from steps as s
        union all select s.spec::text from steps as s
        union all select w.output::text from workflows as w
        -- What is redriven is asked for again under the same hash.
        union all select encode(d.data, 'escape') from dead_letters as d
    ),
    used as (
        select distinct found.match[1] as hash
        from texts as t, regexp_matches(t.value, '[0-9a-f]{64}', 'g') as found (match)
        where strpos(t.value, '"$output"') > 0
    )
    select coalesce(json_agg(u.hash), '[]') from used as u where u.hash = any(hashes);
end;
comment on function outputs_in_use is 'Those of `hashes` that a row refers to: outputs that are kept outside of the state.';
