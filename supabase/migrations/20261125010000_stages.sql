-- A stage of a pattern is decided on without a message of its own, as a wait is: its agent is written with a colon.

create or replace function _is_decided(s steps) returns boolean
language sql immutable
return s.children is not null or s.status in ('FAILED', 'SKIPPED', 'CANCELLED') or s.status = 'SUCCESS' and s.agent like '%:%';
