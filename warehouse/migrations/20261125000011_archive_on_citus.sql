-- migrate:up
set local role medallion_owner;

-- As before, but for a table that Citus spreads: it has no triggers there.
create or replace function bronze.attach_day(day date) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s' as $$
declare
    partition_name constant text := 'coinbase_trades_raw_' || to_char(day, 'YYYYMMDD');
    table_name constant text := partition_name || '_detached';
    has_triggers constant boolean := exists (
        select 1 from pg_trigger
        where tgrelid = 'bronze.coinbase_trades_raw'::regclass and tgname = 'append_only'
    );
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
    if has_triggers then
        alter table bronze.coinbase_trades_raw_default disable trigger append_only;
    end if;
    delete from bronze.coinbase_trades_raw_default
    where received_at >= day::timestamptz and received_at < (day + 1)::timestamptz;
    if has_triggers then
        alter table bronze.coinbase_trades_raw_default enable trigger append_only;
    end if;
    execute format('alter table bronze.%I rename to %I', table_name, partition_name);
    execute format(
        'alter table bronze.coinbase_trades_raw attach partition bronze.%I '
        'for values from (%L) to (%L)',
        partition_name, day::timestamptz, (day + 1)::timestamptz
    );
    execute format('alter table bronze.%I drop constraint of_the_day', partition_name);
    execute format('revoke all on bronze.%I from medallion_archive', partition_name);
    if has_triggers then
        execute format(
            'create trigger append_only before update or delete or truncate on bronze.%I '
            'for each statement execute function bronze.refuse_change()',
            partition_name
        );
    end if;
end
$$;
comment on function bronze.attach_day is
'Takes the table of make_day_table into bronze, on every node, with what the default partition has '
'of the day.';

reset role;

-- migrate:down
-- On plain PostgreSQL the function does what it did before.
comment on function bronze.attach_day is
'Takes the table of make_day_table into bronze, with what the default partition has of the day.';
