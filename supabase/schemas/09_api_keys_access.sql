-- Only the server looks at keys. Like 06_access.sql this can be run again: a restored database gets its rights from these files.

alter table api_keys enable row level security;
revoke all on api_keys from public;

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and p.proname in (
            'add_api_key', 'list_api_keys', 'revoke_api_key', 'find_api_key', 'use_api_key', 'has_api_keys'
        )
    loop
        execute format('revoke execute on function %s from public', function);
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
            execute format('revoke all on api_keys from %I', role);
        end if;
    end loop;
    -- Keys are kept as evidence of who could do what: nobody deletes them.
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update on api_keys to service_role;
    end if;
end;
$$;
