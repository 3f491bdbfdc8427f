-- migrate:up
set local role medallion_owner;

-- The newest sessions are looked at every few seconds. One row is added per connection, so the index
-- costs nothing.
create index on bronze.feed_sessions (started_at);

-- A view's functions run with the rights of whoever reads it.
grant execute on function bronze.is_timestamp to medallion_reader;

reset role;

-- What the market page may see of bronze: medallion_reader has no right to bronze itself. Views here,
-- not of dbt: there are sessions and gaps before the first build, and builds need not make them anew.
set local role medallion_transform;

create view ops.feed_sessions as
select session_id, source, products, started_at, ended_at, frames, trades, end_reason
from bronze.feed_sessions;
comment on view ops.feed_sessions is 'One row per connection to Coinbase.';
comment on column ops.feed_sessions.session_id is 'Drawn by the ingester for each connection.';
comment on column ops.feed_sessions.source is 'Interface of Coinbase, for example exchange_ws.';
comment on column ops.feed_sessions.products is 'The products that were subscribed.';
comment on column ops.feed_sessions.started_at is 'When it was opened.';
comment on column ops.feed_sessions.ended_at is
'When it ended; null while it runs, or where the ingester was killed.';
comment on column ops.feed_sessions.frames is 'Frames received, of every type.';
comment on column ops.feed_sessions.trades is 'Trades received.';
comment on column ops.feed_sessions.end_reason is 'Why it ended.';

create view ops.trade_gaps as
select
    gap_id, product_id, first_id, last_id, found_by, found_at,
    (
        select coalesce(sum(upper(ids) - lower(ids)), 0)::bigint from unnest(missing) as ids
    ) as missing,
    (
        select coalesce(sum(upper(ids) - lower(ids)), 0)::bigint from unnest(absent) as ids
    ) as absent,
    repaired, tries, next_try_at, closed_at, status
from bronze.trade_gaps;
comment on view ops.trade_gaps is
'One row per gap: trades of a product that the feed did not bring, and what became of them.';
comment on column ops.trade_gaps.gap_id is 'Order of discovery.';
comment on column ops.trade_gaps.product_id is 'Product, for example BTC-USD.';
comment on column ops.trade_gaps.first_id is 'The first trade id of the gap.';
comment on column ops.trade_gaps.last_id is 'The last trade id of the gap.';
comment on column ops.trade_gaps.found_by is 'jump, announced or backfill: bronze.trade_gaps.';
comment on column ops.trade_gaps.found_at is 'When it was found, by the clock of the database.';
comment on column ops.trade_gaps.missing is 'Number of trades that are missing still.';
comment on column ops.trade_gaps.absent is 'Number of ids that the exchange itself does not have.';
comment on column ops.trade_gaps.repaired is 'Trades that the repair has brought to bronze.';
comment on column ops.trade_gaps.tries is
'How often the exchange was asked and did not have all of them.';
comment on column ops.trade_gaps.next_try_at is
'When it is asked again; infinity: not before a backfill wants these ids.';
comment on column ops.trade_gaps.closed_at is 'When nothing was missing any more.';
comment on column ops.trade_gaps.status is
'open (some ids are missing), absent (none is, but some do not exist), or repaired.';

create view ops.layers as
with newest as (
    select bronze_id, received_at from bronze.coinbase_trades_raw order by bronze_id desc limit 1
),

-- Few: after a build most tables have read equally far.
positions as (
    select distinct high from ops.model_watermarks where model <> 'bronze.coinbase_trades_raw'
),

read_frames as (
    select positions.high, frame.received_at
    from positions
    left join lateral (
        select received_at from bronze.coinbase_trades_raw
        where bronze_id <= positions.high
        order by bronze_id desc
        limit 1
    ) as frame on true
)

select
    'bronze.coinbase_trades_raw' as table_name,
    bronze_id as read_to,
    0::bigint as frames_behind,
    interval '0' as time_behind,
    received_at,
    received_at as updated_at
from newest
union all
select
    watermark.model,
    watermark.high,
    greatest(coalesce(newest.bronze_id, 0) - watermark.high, 0),
    newest.received_at - read_frames.received_at,
    read_frames.received_at,
    watermark.updated_at
from ops.model_watermarks as watermark
inner join read_frames on read_frames.high = watermark.high
left join newest on true
where watermark.model <> 'bronze.coinbase_trades_raw';
comment on view ops.layers is
'One row per table that is filled from bronze, and one for bronze: how far behind bronze it is.';
comment on column ops.layers.table_name is 'Schema and name.';
comment on column ops.layers.read_to is 'The bronze_id up to which it has read.';
comment on column ops.layers.frames_behind is 'How many frames of bronze it has not read, at most.';
comment on column ops.layers.time_behind is
'From the arrival of the newest frame that it has read to that of the newest there is.';
comment on column ops.layers.received_at is 'When the newest frame that it has read arrived.';
comment on column ops.layers.updated_at is 'When it was last brought up to date.';

grant select on ops.feed_sessions, ops.trade_gaps, ops.layers to medallion_reader;

reset role;

-- migrate:down
drop view ops.layers;
drop view ops.trade_gaps;
drop view ops.feed_sessions;
drop index bronze.feed_sessions_started_at_idx;
