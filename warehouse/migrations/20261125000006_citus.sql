-- migrate:up
set local role medallion_owner;

-- As before, but for a table that Citus spreads: it knows no empty select list there, and no triggers.
create or replace function bronze.make_partitions(days_ahead integer default 7) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '5s' as $$
declare
    first_day constant date := current_date - 1;
    partition_day date;
    partition_name text;
    made integer := 0;
begin
    for partition_day in
        select generate_series(first_day, current_date + days_ahead, interval '1 day')::date
    loop
        partition_name := 'coinbase_trades_raw_' || to_char(partition_day, 'YYYYMMDD');
        continue when to_regclass('bronze.' || partition_name) is not null;
        continue when exists (
            select 1 from bronze.coinbase_trades_raw_default
            where received_at >= partition_day and received_at < partition_day + 1
        );
        execute format(
            'create table bronze.%I partition of bronze.coinbase_trades_raw '
            'for values from (%L) to (%L)',
            partition_name, partition_day::timestamptz, (partition_day + 1)::timestamptz
        );
        if exists (
            select 1 from pg_trigger
            where tgrelid = 'bronze.coinbase_trades_raw'::regclass and tgname = 'append_only'
        ) then
            execute format(
                'create trigger append_only before update or delete or truncate on bronze.%I '
                'for each statement execute function bronze.refuse_change()',
                partition_name
            );
        end if;
        made := made + 1;
    end loop;
    return made;
end
$$;

-- As before, and on Citus waits for the batches that a worker has promised to commit but has not yet:
-- where one is lost in between, they appear when it is back and Citus has finished them, every minute.
create or replace function bronze.settle() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '30s' as $$
declare
    patience constant interval := '90 seconds';
    away text;
    promised bigint;
begin
    lock table bronze.coinbase_trades_raw in share mode;
    while exists (select 1 from pg_extension where extname = 'citus') loop
        execute $citus$
            select
                string_agg(format('%s:%s: %s', nodename, nodeport, result), ', ')
                filter (where not success),
                coalesce(sum(case when success then result::bigint end), 0)
            from
                run_command_on_workers(
                    'select count(*) from pg_prepared_xacts '
                    'where database = current_database() and gid like ''citus\_%'''
                )
            inner join pg_dist_node using (nodename, nodeport)
        $citus$ into away, promised;
        if away is not null then
            raise exception 'bronze did not settle: a worker is away (%)', away
                using errcode = 'connection_failure', hint = 'Start it again; nothing is lost.';
        end if;
        exit when promised = 0;
        if clock_timestamp() > now() + patience then
            raise exception 'bronze did not settle within %: % transactions are prepared on workers',
                patience, promised
                using errcode = 'lock_not_available',
                      hint = 'As a superuser: select recover_prepared_transactions();';
        end if;
        perform pg_sleep(0.01);
    end loop;
    return coalesce(
        pg_sequence_last_value(
            pg_get_serial_sequence('bronze.coinbase_trades_raw', 'bronze_id')::regclass
        ),
        0
    );
exception
    when lock_not_available then
        if promised > 0 then
            raise;
        end if;
        raise exception 'bronze did not settle within 30 s: another session holds a lock on it'
            using errcode = 'lock_not_available',
                  hint = 'Find it with: select pid, state, query from pg_stat_activity '
                         'where pid in (select pid from pg_locks where relation = '
                         '''bronze.coinbase_trades_raw''::regclass);';
end
$$;

comment on function bronze.settle is
'Waits for the batches in flight, on every node, and returns the highest bronze_id below which '
'nothing can appear.';

reset role;

-- migrate:down
-- On plain PostgreSQL the functions do what they did before.
comment on function bronze.settle is
'Waits for the batches in flight and returns the highest bronze_id below which nothing can appear.';
