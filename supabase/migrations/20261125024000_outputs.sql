-- Outputs that are kept outside of the state go when no row refers to them any more.

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

do $$
declare
    role name;
begin
    revoke execute on function outputs_in_use(text[]) from public;
    -- These roles are Supabase's; a plain PostgreSQL has none of them.
    foreach role in array array['anon', 'authenticated'] loop
        if exists (select from pg_roles where rolname = role) then
            execute format('revoke execute on function outputs_in_use(text[]) from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant execute on function outputs_in_use(text[]) to service_role;
    end if;
end;
$$;
