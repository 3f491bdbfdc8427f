-- migrate:up
-- Roles belong to the whole server, so another database on it may have made them already.
do $$
declare
    role_name text;
begin
    foreach role_name in array array[
        'medallion_owner', 'medallion_ingest', 'medallion_transform', 'medallion_reader'
    ]
    loop
        if not exists (select from pg_roles where rolname = role_name) then
            execute format('create role %I nologin', role_name);
        end if;
    end loop;
end
$$;

-- The migrating user acts as the owner below; a superuser may anyhow, a managed admin may not.
grant medallion_owner, medallion_transform to current_user;

-- dbt asks for temp tables; nobody else needs anything of the database but to connect.
do $$
begin
    execute format('revoke all on database %I from public', current_database());
    execute format(
        'grant connect on database %I to medallion_owner, medallion_ingest, medallion_transform, '
        'medallion_reader',
        current_database()
    );
    execute format('grant temporary on database %I to medallion_transform', current_database());
    -- UTC for every session, whatever the server's or the client's habit.
    execute format('alter database %I set timezone to ''UTC''', current_database());
    -- Each build reads a little of much: compiling such a query takes longer than running it.
    execute format('alter database %I set jit to off', current_database());
end
$$;
revoke all on schema public from public;

create schema bronze authorization medallion_owner;
create schema silver authorization medallion_transform;
create schema gold authorization medallion_transform;
create schema ops authorization medallion_transform;

grant usage on schema bronze to medallion_ingest, medallion_transform;
grant usage on schema gold, ops to medallion_reader;

comment on schema bronze is 'Trades exactly as received; append-only.';
comment on schema silver is 'Trades typed and deduplicated, or quarantined with reasons.';
comment on schema gold is 'Candles, daily KPIs and top movers, for BI tools.';
comment on schema ops is 'How far each model has read, and the history of runs and checks.';

-- migrate:down
drop schema ops cascade;
drop schema gold cascade;
drop schema silver cascade;
drop schema bronze cascade;
