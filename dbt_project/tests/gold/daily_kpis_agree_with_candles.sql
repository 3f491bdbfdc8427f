-- Used twice, PostgreSQL would else write out the whole table at every run.
with candles as not materialized (
    select * from {{ ref('ohlc_1d') }}
),

kpis as not materialized (
    select
        *,
        day::timestamp at time zone 'UTC' as bucket_1d
    from {{ ref('daily_kpis') }}
),

days as (
    select
        product_id,
        bucket_1d
    from candles
    where {{ unchecked(ref('daily_kpis')) }}
    union
    select
        product_id,
        bucket_1d
    from kpis
    where {{ unchecked(ref('daily_kpis')) }}
)

select
    product_id,
    bucket_1d
from days
left join candles using (product_id, bucket_1d)
left join kpis using (product_id, bucket_1d)
where
    -- A day whose candle was made anew since is not wrong: its KPIs have not read it yet.
    coalesce(candles.bronze_id <= {{ watermark(ref('daily_kpis'), 'high') }}, true)
    and (
        candles.trade_count, candles.volume, candles.quote_volume, candles.vwap,
        candles.open, candles.high, candles.low, candles.close
    )
    is distinct from
    (
        kpis.trades, kpis.volume, kpis.quote_volume, kpis.vwap,
        kpis.open, kpis.high, kpis.low, kpis.close
    )
