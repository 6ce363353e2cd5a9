-- Nested workflows that fail alone. Like every event, what failed them can be repeated.

create function _goes_on(s steps) returns text
language plpgsql stable as $$
declare
    above steps;
begin
    while s.parent is not null loop
        select t.* into above from steps as t where t.workflow_id = s.workflow_id and t.id = s.parent;
        if above.agent like 'workflow:%' and above.on_failure = 'continue' then
            return above.id;
        end if;
        s := above;
    end loop;
    return null;
end;
$$;
comment on function _goes_on is 'The nearest nested workflow around a step that may fail without failing what it is a step of; null when there is none.';

create function _end_nested(workflow text, nested text, why jsonb, moment timestamptz) returns void
language plpgsql as $$
declare
    notes _note[];
    waited integer;
begin
    update steps as t set status = 'FAILED', error = why, due_at = null, finished_at = moment
    where t.workflow_id = workflow and t.id = nested;
    with recursive below as (
        select unnest(t.children) as id from steps as t where t.workflow_id = workflow and t.id = nested
        union all
        select unnest(t.children) from below as b join steps as t on t.workflow_id = workflow and t.id = b.id
    ),
    still_open as (
        select t.id, t.attempt, t.status = 'WAITING' and t.signal is not null as waits
        from below as b join steps as t on t.workflow_id = workflow and t.id = b.id
        where not _is_final(t.status)
    ),
    stopped as (
        update steps as t
        set status = 'CANCELLED', finished_at = moment, due_at = case when t.status = 'RUNNING' then t.due_at end
        from still_open as o
        where t.workflow_id = workflow and t.id = o.id
        returning t.id, o.attempt, o.waits
    )
    select
        array_agg(row(workflow, p.id, 'step.cancelled', nullif(p.attempt, 0), null, 1, null, null)::_note order by p.id),
        count(*) filter (where p.waits)
    into notes, waited
    from stopped as p;
    update workflows as w set steps_waiting = w.steps_waiting - waited where w.id = workflow and waited > 0;
    perform _write(
        array[row(
            workflow, nested, 'step.failed', (select t.attempt from steps as t where t.workflow_id = workflow and t.id = nested),
            why, 1, null, null
        )::_note] || notes,
        moment
    );
end;
$$;
comment on function _end_nested is 'A nested workflow fails, and with it every step of it that has not ended; what it is a step of goes on.';
