-- migrate:up
set local role medallion_owner;

-- One row per trade-carrying frame. bronze_id is the cursor of the whole house. Its sequence has no
-- cache: a cached block hands out low ids late.
-- The primary key is the only index: each further one costs 10 to 30 % of the COPY rate.
create table bronze.coinbase_trades_raw (
    bronze_id bigint generated always as identity,
    received_at timestamptz not null,
    source text not null check (source in ('exchange_ws', 'advanced_ws', 'rest')),
    channel text not null,
    session_id uuid not null,
    product_id text,
    payload jsonb not null,
    primary key (bronze_id, received_at)
) partition by range (received_at);

create table bronze.coinbase_trades_raw_default partition of bronze.coinbase_trades_raw default;

comment on table bronze.coinbase_trades_raw is
'One row per frame that carries trades, exactly as received; append-only, partitioned by day.';
comment on column bronze.coinbase_trades_raw.bronze_id is
'Order of arrival. Every later row carries the bronze_id that it came from.';
comment on column bronze.coinbase_trades_raw.received_at is
'When the frame arrived, by the clock of the ingester.';
comment on column bronze.coinbase_trades_raw.source is
'Which interface of Coinbase it came from: exchange_ws, advanced_ws or rest.';
comment on column bronze.coinbase_trades_raw.channel is 'Channel of the feed, for example matches.';
comment on column bronze.coinbase_trades_raw.session_id is
'The connection that it arrived on: bronze.feed_sessions.';
comment on column bronze.coinbase_trades_raw.product_id is
'Product as the frame names it, for example BTC-USD; null where it names none.';
comment on column bronze.coinbase_trades_raw.payload is 'The frame.';

-- Frames that jsonb refuses, as the bytes that came.
create table bronze.coinbase_frames_rejected (
    rejected_id bigint generated always as identity primary key,
    received_at timestamptz not null,
    source text not null,
    session_id uuid not null,
    frame bytea not null,
    error text not null
);

comment on table bronze.coinbase_frames_rejected is
'One row per frame that could not be stored as jsonb or is no JSON object: the bytes and why.';
comment on column bronze.coinbase_frames_rejected.rejected_id is 'Order of arrival.';
comment on column bronze.coinbase_frames_rejected.received_at is
'When the frame arrived, by the clock of the ingester.';
comment on column bronze.coinbase_frames_rejected.source is 'As in coinbase_trades_raw.';
comment on column bronze.coinbase_frames_rejected.session_id is 'As in coinbase_trades_raw.';
comment on column bronze.coinbase_frames_rejected.frame is 'The bytes that arrived.';
comment on column bronze.coinbase_frames_rejected.error is 'Why the frame was refused.';

create table bronze.feed_sessions (
    session_id uuid primary key,
    source text not null,
    url text not null,
    products text[] not null,
    started_at timestamptz not null,
    ended_at timestamptz,
    frames bigint not null default 0,
    trades bigint not null default 0,
    end_reason text
);

comment on table bronze.feed_sessions is 'One row per connection to Coinbase.';
comment on column bronze.feed_sessions.session_id is 'Drawn by the ingester for each connection.';
comment on column bronze.feed_sessions.source is 'As in coinbase_trades_raw.';
comment on column bronze.feed_sessions.url is 'Where the connection went.';
comment on column bronze.feed_sessions.products is 'The products that were subscribed.';
comment on column bronze.feed_sessions.started_at is 'When it was opened.';
comment on column bronze.feed_sessions.ended_at is
'When it ended; null while it runs, or where the ingester was killed.';
comment on column bronze.feed_sessions.frames is 'Frames received, of every type.';
comment on column bronze.feed_sessions.trades is 'Trades received.';
comment on column bronze.feed_sessions.end_reason is 'Why it ended.';

create function bronze.refuse_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '% on %.% is refused: bronze is append-only', tg_op, tg_table_schema, tg_table_name
        using errcode = 'insufficient_privilege',
              hint = 'Correct a trade by appending the right one; silver keeps the first valid row.';
end
$$;

create trigger append_only
before update or delete or truncate on bronze.coinbase_trades_raw
for each statement execute function bronze.refuse_change();

create trigger append_only
before update or delete or truncate on bronze.coinbase_frames_rejected
for each statement execute function bronze.refuse_change();

-- Makes the partitions of today and the days after, and returns how many it made. A partition can
-- neither be emptied nor changed past its parent's trigger: each gets its own.
-- A day that already has rows in the default partition stays there: moving them would rewrite bronze.
create function bronze.make_partitions(days_ahead integer default 7) returns integer
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
            select from bronze.coinbase_trades_raw_default
            where received_at >= partition_day and received_at < partition_day + 1
        );
        execute format(
            'create table bronze.%I partition of bronze.coinbase_trades_raw '
            'for values from (%L) to (%L)',
            partition_name, partition_day::timestamptz, (partition_day + 1)::timestamptz
        );
        execute format(
            'create trigger append_only before update or delete or truncate on bronze.%I '
            'for each statement execute function bronze.refuse_change()',
            partition_name
        );
        made := made + 1;
    end loop;
    return made;
end
$$;
comment on function bronze.make_partitions is
'Makes the day partitions of coinbase_trades_raw that are missing from yesterday to days_ahead.';

create trigger append_only
before update or delete or truncate on bronze.coinbase_trades_raw_default
for each statement execute function bronze.refuse_change();

select bronze.make_partitions();

-- Waits for the batches in flight and returns the id up to which every row is committed: writers
-- commit out of order, so max(bronze_id) alone would pass over rows that appear later. The caller
-- commits at once, for new batches wait meanwhile.
create function bronze.settle() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '30s' as $$
begin
    lock table bronze.coinbase_trades_raw in share mode;
    return coalesce(
        pg_sequence_last_value(
            pg_get_serial_sequence('bronze.coinbase_trades_raw', 'bronze_id')::regclass
        ),
        0
    );
exception
    when lock_not_available then
        raise exception 'bronze did not settle within 30 s: another session holds a lock on it'
            using errcode = 'lock_not_available',
                  hint = 'Find it with: select pid, state, query from pg_stat_activity '
                         'where pid in (select pid from pg_locks where relation = '
                         '''bronze.coinbase_trades_raw''::regclass);';
end
$$;
comment on function bronze.settle is
'Waits for the batches in flight and returns the highest bronze_id below which nothing can appear.';

-- Tells whether a text can be cast to timestamptz without an error. PostgreSQL 16 brought
-- pg_input_is_valid; before it, only an exception can tell.
do $do$
begin
    if current_setting('server_version_num')::integer >= 160000 then
        execute $$
            create function bronze.is_timestamp(value text) returns boolean
            language sql stable strict parallel safe
            return pg_catalog.pg_input_is_valid(value, 'timestamptz')
        $$;
    else
        execute $$
            create function bronze.is_timestamp(value text) returns boolean
            language plpgsql stable strict parallel restricted
            set search_path = pg_catalog, pg_temp as $body$
            begin
                perform value::timestamptz;
                return true;
            exception
                when data_exception then return false;
            end
            $body$
        $$;
    end if;
end
$do$;
comment on function bronze.is_timestamp is 'Tells whether a text can be cast to timestamptz.';

revoke execute on all functions in schema bronze from public;
grant execute on function bronze.make_partitions to medallion_ingest;
grant execute on function bronze.settle, bronze.is_timestamp to medallion_transform;
grant select on all tables in schema bronze to medallion_ingest, medallion_transform;
grant insert on
bronze.coinbase_trades_raw, bronze.coinbase_frames_rejected, bronze.feed_sessions
to medallion_ingest;
grant update (ended_at, frames, trades, end_reason) on bronze.feed_sessions to medallion_ingest;
-- Partitions made later are read through their parent, whose rights count.

reset role;

-- migrate:down
set local role medallion_owner;
drop function bronze.is_timestamp;
drop function bronze.settle;
drop function bronze.make_partitions;
drop table bronze.feed_sessions;
drop table bronze.coinbase_frames_rejected;
drop table bronze.coinbase_trades_raw;
drop function bronze.refuse_change;
reset role;
