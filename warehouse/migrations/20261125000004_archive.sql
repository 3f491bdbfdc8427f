-- migrate:up
-- Roles belong to the whole server, so another database on it may have made this one already.
do $$
begin
    if not exists (select from pg_roles where rolname = 'medallion_archive') then
        create role medallion_archive nologin;
    end if;
    execute format('grant connect on database %I to medallion_archive', current_database());
end
$$;

set local role medallion_transform;
grant usage on schema ops to medallion_archive, medallion_owner;
grant select on ops.model_watermarks to medallion_archive, medallion_owner;

set local role medallion_owner;

create table bronze.archive_files (
    url text primary key,
    day date not null,
    product_id text,
    part integer not null,
    rows bigint not null,
    checksum numeric not null,
    first_bronze_id bigint not null,
    last_bronze_id bigint not null,
    exported_at timestamptz not null default clock_timestamp(),
    verified_at timestamptz,
    dropped_at timestamptz,
    restored_at timestamptz,
    status text not null generated always as (
        case
            when restored_at is not null then 'restored'
            when dropped_at is not null then 'dropped'
            when verified_at is not null then 'verified'
            else 'exported'
        end
    ) stored,
    unique nulls not distinct (day, product_id, part)
);

comment on table bronze.archive_files is
'One row per Parquet file of the archive: which rows of coinbase_trades_raw it holds.';
comment on column bronze.archive_files.url is 'Where the file is, as fsspec finds it.';
comment on column bronze.archive_files.day is 'Day (UTC) on which its frames arrived.';
comment on column bronze.archive_files.product_id is
'Product as the frames name it; null for those that name none.';
comment on column bronze.archive_files.part is
'0 for the rows that were there when the day was archived first; what came later has the next.';
comment on column bronze.archive_files.rows is 'Rows in the file.';
comment on column bronze.archive_files.checksum is
'Sum over the rows of the first 64 bits of the SHA-256 of each, whatever their order.';
comment on column bronze.archive_files.first_bronze_id is 'Lowest bronze_id in the file.';
comment on column bronze.archive_files.last_bronze_id is 'Highest bronze_id in the file.';
comment on column bronze.archive_files.exported_at is 'When it was written last.';
comment on column bronze.archive_files.verified_at is
'When it was read back and held what bronze held; null before.';
comment on column bronze.archive_files.dropped_at is
'When its rows were last dropped from bronze; null where they never were.';
comment on column bronze.archive_files.restored_at is
'When its rows were brought back to bronze; null where they were not since they were dropped.';
comment on column bronze.archive_files.status is
'exported, verified, dropped (the archive alone has its rows), or restored (bronze has them, too).';

-- Makes an empty table beside bronze that attach_day can make the partition of a day. What a killed
-- restore left in one goes: the archive has it.
create function bronze.make_day_table(day date) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' as $$
declare
    table_name constant text := 'coinbase_trades_raw_' || to_char(day, 'YYYYMMDD') || '_detached';
begin
    execute format('drop table if exists bronze.%I', table_name);
    execute format(
        'create table bronze.%I (like bronze.coinbase_trades_raw '
        -- Attached, it need not be read to see that its rows are of the day.
        'including constraints including indexes, '
        'constraint of_the_day check (received_at >= %L and received_at < %L))',
        table_name, day::timestamptz, (day + 1)::timestamptz
    );
    execute format('grant select, insert on bronze.%I to medallion_archive', table_name);
    return table_name;
end
$$;
comment on function bronze.make_day_table is
'Makes an empty table for rows of a day, which attach_day takes into bronze, and returns its name.';

-- Takes the table of make_day_table into bronze, and what the default partition has of the day.
create function bronze.attach_day(day date) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s' as $$
declare
    partition_name constant text := 'coinbase_trades_raw_' || to_char(day, 'YYYYMMDD');
    table_name constant text := partition_name || '_detached';
begin
    if to_regclass('bronze.' || partition_name) is not null then
        execute format(
            'insert into bronze.%I overriding system value select * from bronze.%I',
            partition_name, table_name
        );
        execute format('drop table bronze.%I', table_name);
        return;
    end if;
    lock table bronze.coinbase_trades_raw in share update exclusive mode;
    lock table only bronze.coinbase_trades_raw_default in access exclusive mode;
    execute format(
        'insert into bronze.%I select * from bronze.coinbase_trades_raw_default '
        'where received_at >= %L and received_at < %L',
        table_name, day::timestamptz, (day + 1)::timestamptz
    );
    -- Nobody else comes between: the lock is held until the end of the transaction.
    alter table bronze.coinbase_trades_raw_default disable trigger append_only;
    delete from bronze.coinbase_trades_raw_default
    where received_at >= day::timestamptz and received_at < (day + 1)::timestamptz;
    alter table bronze.coinbase_trades_raw_default enable trigger append_only;
    execute format('alter table bronze.%I rename to %I', table_name, partition_name);
    execute format(
        'alter table bronze.coinbase_trades_raw attach partition bronze.%I '
        'for values from (%L) to (%L)',
        partition_name, day::timestamptz, (day + 1)::timestamptz
    );
    execute format('alter table bronze.%I drop constraint of_the_day', partition_name);
    execute format('revoke all on bronze.%I from medallion_archive', partition_name);
    execute format(
        'create trigger append_only before update or delete or truncate on bronze.%I '
        'for each statement execute function bronze.refuse_change()',
        partition_name
    );
end
$$;
comment on function bronze.attach_day is
'Takes the table of make_day_table into bronze, with what the default partition has of the day.';

-- Drops the partition of a day, and only if nothing is lost by it: each row is in a file that was
-- verified, and each check of silver that reads bronze has passed it. As rows never change, their
-- number tells whether some have come since the files were written.
create function bronze.drop_day(day date) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s' as $$
declare
    partition_name constant text := 'coinbase_trades_raw_' || to_char(day, 'YYYYMMDD');
    last_id bigint;
    rows_here bigint;
    rows_in_files bigint;
    checked_id bigint;
begin
    if day >= current_date then
        raise exception '% is not over', day using errcode = 'object_not_in_prerequisite_state';
    end if;
    if to_regclass('bronze.' || partition_name) is null then
        raise exception 'bronze has no partition of %', day using errcode = 'undefined_table';
    end if;
    -- Of late frames of this day, the writers wait; all others go on while it is counted.
    execute format('lock table bronze.%I in share mode', partition_name);
    execute format('select count(*), max(bronze_id) from bronze.%I', partition_name)
    into rows_here, last_id;
    select coalesce(sum(file.rows), 0) into rows_in_files
    from bronze.archive_files as file
    where
        file.day = drop_day.day
        and file.verified_at is not null
        and file.status in ('verified', 'restored');
    if rows_here <> rows_in_files then
        raise exception 'bronze has % rows of %, and the verified files have %',
            rows_here, day, rows_in_files
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Frames of that day came meanwhile: run `medallion archive` again.';
    end if;
    checked_id := bronze.checked_id();
    if last_id > checked_id then
        raise exception 'dbt has not transformed and checked all of %: it has come to bronze_id %, '
            'and the day goes to %', day, checked_id, last_id
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run `dbt build`; if a check of silver fails, put that right first.';
    end if;
    lock table bronze.coinbase_trades_raw in access exclusive mode;
    execute format('drop table bronze.%I', partition_name);
    update bronze.archive_files as file
    set dropped_at = clock_timestamp(), restored_at = null
    where file.day = drop_day.day and file.status in ('verified', 'restored');
    return rows_here;
end
$$;
comment on function bronze.drop_day is
'Drops the partition of a day whose rows are all archived, transformed and checked.';

-- The two models that read trades of bronze, whose checks do so as well.
create function bronze.checked_id() returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (
    select case when count(*) = 2 then min(checked) else 0 end
    from ops.model_watermarks
    where model in ('silver.coinbase_trades', 'silver.coinbase_trades_quarantine')
);
comment on function bronze.checked_id is
'The bronze_id up to which silver has read bronze, and no check of it will read it again.';

create function bronze.require_whole_history() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp as $$
declare
    days bigint;
    first_day date;
    last_day date;
begin
    select count(distinct day), min(day), max(day) into days, first_day, last_day
    from bronze.archive_files
    where status = 'dropped';
    if days > 0 then
        raise exception 'Refused: silver can''t be made anew, for bronze no longer holds % archived '
            'days from % to %', days, first_day, last_day
            using hint = 'Gold alone can be made anew: dbt build -s gold --full-refresh. For silver, '
                'bring the days back with `medallion restore --day DAY`, or accept to lose them: '
                '--vars ''{without_archived_days: true}''.';
    end if;
end
$$;
comment on function bronze.require_whole_history is
'Fails where rows that bronze once had are in the archive alone.';

revoke execute on function
bronze.make_day_table, bronze.attach_day, bronze.drop_day, bronze.checked_id,
bronze.require_whole_history
from public;
grant usage on schema bronze to medallion_archive;
grant select on bronze.coinbase_trades_raw, bronze.coinbase_trades_raw_default to medallion_archive;
grant select, insert on bronze.archive_files to medallion_archive;
grant update (
    url, rows, checksum, first_bronze_id, last_bronze_id, exported_at, verified_at, restored_at
)
on bronze.archive_files to medallion_archive;
grant execute on function
bronze.make_day_table, bronze.attach_day, bronze.drop_day, bronze.checked_id
to medallion_archive;
grant select on bronze.archive_files to medallion_transform;
grant execute on function bronze.require_whole_history to medallion_transform;

reset role;

-- migrate:down
drop function bronze.require_whole_history;
drop function bronze.drop_day;
drop function bronze.attach_day;
drop function bronze.make_day_table;
drop function bronze.checked_id;
drop table bronze.archive_files;
revoke usage on schema bronze from medallion_archive;
revoke select on bronze.coinbase_trades_raw, bronze.coinbase_trades_raw_default
from medallion_archive;
revoke select on ops.model_watermarks from medallion_archive, medallion_owner;
revoke usage on schema ops from medallion_archive, medallion_owner;
