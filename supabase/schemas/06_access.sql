-- Only the server speaks to these tables: row-level security is on without a policy, and the API's public roles get nothing.

alter table workflows enable row level security;
alter table turns enable row level security;
alter table steps enable row level security;
alter table edges enable row level security;
alter table history enable row level security;
alter table signals enable row level security;
alter table dead_letters enable row level security;
alter table documents enable row level security;
alter table passages enable row level security;

revoke all on workflows, turns, steps, edges, history, signals, dead_letters, documents, passages from public;

do $$
declare
    role name;
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and (p.proname like '\_%' or p.proname in (
            'advance', 'get_workflow', 'list_workflows', 'cancel_receipt', 'count_queued', 'workflow_history', 'workflow_snapshot', 'record_dead_letter',
            'list_dead_letters', 'count_dead_letters', 'read_dead_letters', 'redrive_dead_letters', 'return_dead_letters',
            'put_document', 'list_documents', 'remove_document', 'search_documents',
            'fork_plan', 'fork_workflow', 'rerun_workflow', 'purge', 'purgeable', 'outputs_in_use'
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
            execute format('revoke all on workflows, turns, steps, edges, history, signals, dead_letters, documents, passages from %I', role);
            execute format('revoke all on sequence dead_letters_id_seq, turns_turn_seq from %I', role);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant select, insert, update, delete on workflows, turns, steps, edges, history, signals, dead_letters, documents, passages to service_role;
    end if;
end;
$$;
