-- Texts that agents may search. Words are matched as they are written, in any language; how much each counts, its rarity says.

create function put_document(name text, sha256 text, passages jsonb, moment timestamptz default now()) returns json
language plpgsql as $$
declare
    known text;
begin
    select d.sha256 into known from documents as d where d.name = put_document.name for update;
    if known = put_document.sha256 then
        return to_json('unchanged'::text);
    end if;
    insert into documents (name, sha256, size_bytes, added_at)
    select put_document.name, put_document.sha256, coalesce(sum(octet_length(p.value)), 0), moment
    from jsonb_array_elements_text(put_document.passages) as p
    on conflict on constraint documents_pkey do update
    set sha256 = excluded.sha256, size_bytes = excluded.size_bytes, added_at = excluded.added_at;
    delete from passages as p where p.document = put_document.name;
    insert into passages (document, position, text)
    select put_document.name, p.ordinality, p.value
    from jsonb_array_elements_text(put_document.passages) with ordinality as p;
    return to_json(case when known is null then 'added' else 'replaced' end);
end;
$$;
comment on function put_document is 'Keep a text, cut into passages, in place of what was under its name: added, replaced or, when it is the same, unchanged.';

create function list_documents() returns json
language sql stable
begin atomic
    select coalesce(json_agg(json_build_object(
        'name', d.name, 'sha256', d.sha256, 'size_bytes', d.size_bytes,
        'passages', (select count(*) from passages as p where p.document = d.name), 'added_at', d.added_at
    ) order by d.name), '[]')
    from documents as d;
end;
comment on function list_documents is 'Every document by name, without its text.';

create function remove_document(name text) returns boolean
language plpgsql as $$
begin
    delete from documents as d where d.name = remove_document.name;
    return found;
end;
$$;
comment on function remove_document is 'Forget a document; false when there is none of that name.';

create function search_documents(query text, max_rows integer default 10) returns json
language plpgsql stable as $$
declare
    wanted tsquery := websearch_to_tsquery('simple', left(query, 1000));
    most integer := least(greatest(max_rows, 0), 50);
    hits json;
begin
    select json_agg(json_build_object('document', h.document, 'position', h.position, 'text', h.text)) into hits
    from (
        select p.document, p.position, p.text from passages as p
        where p.words @@ wanted
        order by ts_rank(p.words, wanted) desc, p.document, p.position
        limit most
    ) as h;
    -- Who excludes a word means it; everybody else may have said too much for any one passage.
    if hits is null and wanted::text not like '%!%' then
        hits := _search_any(tsvector_to_array(to_tsvector('simple', wanted::text)), most);
    end if;
    return coalesce(hits, '[]');
end;
$$;
comment on function search_documents is
    'The passages that fit best, as of a web search: all words, "a phrase", or, -not. Where none has all words, those with any of them.';

create function _search_any(wanted text[], most integer) returns json
language plpgsql stable as $$
declare
    hits json;
begin
    with known as materialized (
        select plainto_tsquery('simple', w.word) as query, (
            select count(*) from passages as p where p.words @@ plainto_tsquery('simple', w.word)
        ) as passages
        from unnest(wanted[:32]) as w (word)
    ),
    best as (
        -- The rarer a word, the more it says: what is common in a language counts next to nothing, and no list of such words is needed.
        select p.document, p.position,
            sum(ts_rank(p.words, k.query) * ln(1 + (select count(*) from passages)::double precision / k.passages)) as rank
        from known as k
        join passages as p on p.words @@ k.query
        group by p.document, p.position
        order by rank desc, p.document, p.position
        limit most
    )
    select json_agg(
        json_build_object('document', p.document, 'position', p.position, 'text', p.text) order by b.rank desc, p.document, p.position
    )
    into hits
    from best as b
    join passages as p on p.document = b.document and p.position = b.position;
    return hits;
end;
$$;
comment on function _search_any is 'The passages with any of some words, those with the most and the rarest first.';
