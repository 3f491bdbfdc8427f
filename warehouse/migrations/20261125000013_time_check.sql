-- migrate:up
set local role medallion_owner;

-- Before PostgreSQL 16 it catches an error, for which there is no place in a query that several
-- processes run, not even in the one that leads them: with many rows, silver failed.
do $$
begin
    if current_setting('server_version_num')::integer < 160000 then
        alter function bronze.is_timestamp(text) parallel unsafe;
    end if;
end
$$;

reset role;

-- migrate:down
set local role medallion_owner;
do $$
begin
    if current_setting('server_version_num')::integer < 160000 then
        alter function bronze.is_timestamp(text) parallel restricted;
    end if;
end
$$;
reset role;
