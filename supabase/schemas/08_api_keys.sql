-- Who may call the API. A key is kept as its SHA-256: it is 256 random bits, which nobody can try through, however fast the hash.

create table api_keys (
    id text collate "C" primary key,
    name text collate "C" not null,
    hash text not null,
    scope text not null check (scope in ('read', 'submit', 'admin')),
    created_at timestamptz not null,
    last_used_at timestamptz,
    revoked_at timestamptz
);

create unique index api_keys_name on api_keys (name) where revoked_at is null;

comment on table api_keys is 'Keys of the API, those that were revoked included: with one key ever added, the API is open no more.';
comment on column api_keys.hash is 'SHA-256 of the whole key, in hexadecimal digits.';
comment on column api_keys.last_used_at is 'At most a minute behind.';

create function add_api_key(id text, name text, hash text, scope text, moment timestamptz default now()) returns boolean
language plpgsql as $$
begin
    insert into api_keys (id, name, hash, scope, created_at)
    values (add_api_key.id, add_api_key.name, add_api_key.hash, add_api_key.scope, moment)
    on conflict do nothing;
    return found;
end;
$$;
comment on function add_api_key is 'Keep a new key; false when a key of that name is in use.';

create function list_api_keys() returns json
language sql stable
begin atomic
    select coalesce(json_agg(json_build_object(
        'id', k.id, 'name', k.name, 'scope', k.scope, 'created_at', k.created_at, 'last_used_at', k.last_used_at, 'revoked_at', k.revoked_at
    ) order by k.name, k.created_at), '[]')
    from api_keys as k;
end;
comment on function list_api_keys is 'Every key by name, without its hash; those that were revoked too.';

create function revoke_api_key(name text, moment timestamptz default now()) returns boolean
language plpgsql as $$
begin
    update api_keys as k set revoked_at = moment where k.name = revoke_api_key.name and k.revoked_at is null;
    return found;
end;
$$;
comment on function revoke_api_key is 'Take a key''s rights away for good; false when no key of that name is in use.';

create function find_api_key(id text) returns json
language sql stable
begin atomic
    select json_build_object('id', k.id, 'name', k.name, 'hash', k.hash, 'scope', k.scope)
    from api_keys as k
    where k.id = find_api_key.id and k.revoked_at is null;
end;
comment on function find_api_key is 'A key that is in use, with its hash; null when there is none of that id.';

create function use_api_key(id text, moment timestamptz default now()) returns boolean
language plpgsql as $$
begin
    update api_keys as k set last_used_at = moment
    where k.id = use_api_key.id and (k.last_used_at is null or k.last_used_at <= moment - interval '1 minute');
    return found;
end;
$$;
comment on function use_api_key is 'Note that a key was used; written once a minute at most.';

create function has_api_keys() returns boolean
language sql stable
begin atomic
    select exists (select from api_keys);
end;
comment on function has_api_keys is 'Whether a key was ever added. Revoking the last one does not open the API again.';
