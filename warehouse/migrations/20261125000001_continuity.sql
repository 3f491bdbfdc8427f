-- migrate:up
set local role medallion_owner;

-- What is missing, as sets of ids: a repair takes out what it has fetched, page by page, so it goes on
-- where it stopped.
create table bronze.trade_gaps (
    gap_id bigint generated always as identity primary key,
    product_id text not null,
    first_id bigint not null,
    last_id bigint not null,
    found_by text not null check (found_by in ('jump', 'announced', 'backfill')),
    found_at timestamptz not null default clock_timestamp(),
    missing int8multirange not null,
    absent int8multirange not null default '{}',
    repaired bigint not null default 0,
    tries integer not null default 0,
    next_try_at timestamptz not null default clock_timestamp(),
    closed_at timestamptz,
    status text not null generated always as (
        case
            when not isempty(missing) then 'open'
            when not isempty(absent) then 'absent'
            else 'repaired'
        end
    ) stored,
    check (first_id <= last_id),
    check ((closed_at is null) = (not isempty(missing)))
);
create index on bronze.trade_gaps (product_id) where closed_at is null;
-- For the check that every missing trade is explained.
create index on bronze.trade_gaps (product_id, last_id) where status <> 'repaired';

comment on table bronze.trade_gaps is
'One row per gap: trades of a product that the feed did not bring, and what became of them.';
comment on column bronze.trade_gaps.gap_id is 'Order of discovery.';
comment on column bronze.trade_gaps.product_id is 'Product, for example BTC-USD.';
comment on column bronze.trade_gaps.first_id is 'The first trade id of the gap.';
comment on column bronze.trade_gaps.last_id is 'The last trade id of the gap.';
comment on column bronze.trade_gaps.found_by is
'jump (a trade came whose id skips some, also those of a time without an ingester), '
'announced (the exchange told of trades that never came, or that came while neither the database '
'nor the disk had room), or backfill (a user asked).';
comment on column bronze.trade_gaps.found_at is 'When it was found, by the clock of the database.';
comment on column bronze.trade_gaps.missing is
'The ids that are missing still; [4,7) holds 4, 5 and 6.';
comment on column bronze.trade_gaps.absent is
'The ids that the exchange itself does not have: it was asked three times, an hour apart.';
comment on column bronze.trade_gaps.repaired is 'Trades that the repair has brought to bronze.';
comment on column bronze.trade_gaps.tries is
'How often the exchange was asked and did not have all of them.';
comment on column bronze.trade_gaps.next_try_at is
'When it is asked again; infinity: not before a backfill wants these ids.';
comment on column bronze.trade_gaps.closed_at is 'When nothing was missing any more.';
comment on column bronze.trade_gaps.status is
'open (some ids are missing), absent (none is, but some do not exist), or repaired.';

-- Where the ingester goes on after a restart. Read it as a promise: it is written only when these
-- trades are committed, and their gaps recorded.
create table bronze.trade_coverage (
    product_id text primary key,
    ids int8multirange not null,
    bronze_id bigint not null,
    updated_at timestamptz not null default clock_timestamp()
);
comment on table bronze.trade_coverage is
'One row per product: the trade ids that are accounted for, in bronze or as a gap in trade_gaps.';
comment on column bronze.trade_coverage.product_id is 'Product, for example BTC-USD.';
comment on column bronze.trade_coverage.ids is 'The ids that are accounted for.';
comment on column bronze.trade_coverage.bronze_id is
'The rows of bronze after this one may hold trades that are not in ids yet.';
comment on column bronze.trade_coverage.updated_at is 'When it was written.';

grant select, insert, update on bronze.trade_gaps, bronze.trade_coverage to medallion_ingest;
grant select on bronze.trade_gaps, bronze.trade_coverage to medallion_transform;
-- Products are listed and delisted while a session lasts.
grant update (products) on bronze.feed_sessions to medallion_ingest;
grant select on sequence bronze.coinbase_trades_raw_bronze_id_seq to medallion_ingest;

reset role;

-- migrate:down
drop table bronze.trade_coverage;
drop table bronze.trade_gaps;
revoke update (products) on bronze.feed_sessions from medallion_ingest;
revoke select on sequence bronze.coinbase_trades_raw_bronze_id_seq from medallion_ingest;
