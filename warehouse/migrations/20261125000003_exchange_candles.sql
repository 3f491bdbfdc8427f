-- migrate:up
set local role medallion_owner;

-- Numbered with the trades, for one cursor leads through the house: what reads both sees in one window
-- what is new of either.
create table bronze.coinbase_candles_raw (
    bronze_id bigint primary key
    default nextval('bronze.coinbase_trades_raw_bronze_id_seq'),
    received_at timestamptz not null default clock_timestamp(),
    product_id text not null,
    granularity integer not null check (granularity in (60, 3600)),
    first_bucket timestamptz not null,
    last_bucket timestamptz not null,
    payload jsonb not null,
    -- Coinbase gives no more than 300 candles at once.
    check (
        last_bucket >= first_bucket
        and last_bucket < first_bucket + 300 * make_interval(secs => granularity)
    )
);
create index on bronze.coinbase_candles_raw (product_id, granularity);

comment on table bronze.coinbase_candles_raw is
'One row per answer of the exchange that was asked for its own candles, exactly as received; append-only.';
comment on column bronze.coinbase_candles_raw.bronze_id is
'Order of arrival among the trades of coinbase_trades_raw: both are numbered together.';
comment on column bronze.coinbase_candles_raw.received_at is
'When the answer was saved, by the clock of the database.';
comment on column bronze.coinbase_candles_raw.product_id is
'Product that was asked for, for example BTC-USD.';
comment on column bronze.coinbase_candles_raw.granularity is
'Length of the candles that were asked for, in seconds: 60 or 3600.';
comment on column bronze.coinbase_candles_raw.first_bucket is
'Start of the first candle that was asked for.';
comment on column bronze.coinbase_candles_raw.last_bucket is
'Start of the last candle that was asked for. A bucket from first to last that is not in the answer had no trade.';
comment on column bronze.coinbase_candles_raw.payload is
'The answer: an array of [time, low, high, open, close, volume], the time in seconds since 1970.';

create trigger append_only
before update or delete or truncate on bronze.coinbase_candles_raw
for each statement execute function bronze.refuse_change();

-- bronze.settle() waits for whoever writes trades. It must not pass over a number that was drawn for
-- candles either: their writers hold what it waits for, from before they draw one.
create function bronze.write_with_the_trades() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    lock table bronze.coinbase_trades_raw in row exclusive mode;
    return null;
end
$$;
revoke execute on function bronze.write_with_the_trades from public;

create trigger settles_with_the_trades
before insert on bronze.coinbase_candles_raw
for each statement execute function bronze.write_with_the_trades();

grant select on bronze.coinbase_candles_raw to medallion_ingest, medallion_transform;
-- Nobody chooses a number.
grant insert (product_id, granularity, first_bucket, last_bucket, payload)
on bronze.coinbase_candles_raw to medallion_ingest;
grant usage on sequence bronze.coinbase_trades_raw_bronze_id_seq to medallion_ingest;

reset role;

-- migrate:down
set local role medallion_owner;
revoke usage on sequence bronze.coinbase_trades_raw_bronze_id_seq from medallion_ingest;
drop table bronze.coinbase_candles_raw;
drop function bronze.write_with_the_trades;
reset role;
