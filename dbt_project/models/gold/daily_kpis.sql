{{ config(
    unique_key=['product_id', 'day'],
    indexes=[{'columns': ['day']}, {'columns': ['bronze_id']}],
) }}

with days as (
    select * from {{ ref('ohlc_1d') }}
),

candles_5m as (
    select * from {{ ref('ohlc_5m') }}
),

-- What is used twice is else written out, on Citus at the coordinator.
touched_days as not materialized (
    select * from days
    where {{ is_touched('bronze_id', 'bucket_1d') }}
),

-- By range: a day has up to 288 candles side by side in the index, each dear to look up alone.
returns as (
    select
        touched_days.product_id,
        touched_days.bucket_1d,
        candles_5m.bucket_5m,
        ln(
            (candles_5m.close / lag(candles_5m.close, 1, candles_5m.open) over day_so_far)
            ::double precision
        ) as log_return
    from touched_days
    inner join candles_5m
        on
            touched_days.product_id = candles_5m.product_id
            and touched_days.bucket_1d <= candles_5m.bucket_5m
            and touched_days.bucket_1d + interval '1 day' > candles_5m.bucket_5m
    window day_so_far as (
        partition by touched_days.product_id, touched_days.bucket_1d
        order by candles_5m.bucket_5m
    )
),

-- Summed in a fixed order: doubles added in another order differ in their last digits.
volatility as (
    select
        product_id,
        bucket_1d,
        sqrt(sum(log_return * log_return order by bucket_5m)) as realised_volatility
    from returns
    group by product_id, bucket_1d
),

kpis as (
    select
        touched_days.product_id,
        (touched_days.bucket_1d at time zone 'UTC')::date as day,
        touched_days.trade_count as trades,
        touched_days.volume,
        touched_days.quote_volume,
        touched_days.vwap,
        touched_days.high,
        touched_days.low,
        touched_days.open,
        touched_days.close,
        round(
            100 * (touched_days.close - touched_days.open) / touched_days.open, 4
        ) as price_change_pct,
        round(volatility.realised_volatility::numeric, 10) as realised_volatility,
        round(touched_days.taker_buy_volume / touched_days.volume, 6) as taker_buy_share,
        touched_days.bronze_id
    from touched_days
    inner join volatility using (product_id, bucket_1d)
)

select * from kpis
