-- Used several times, PostgreSQL would else write out the whole table at every run.
with candles as not materialized (
    select * from {{ ref('ohlc_1d') }}
),

completeness as not materialized (
    select
        *,
        day::timestamp at time zone 'UTC' as bucket_1d
    from {{ ref('trade_completeness') }}
),

days as (
    select
        product_id,
        bucket_1d
    from candles
    where {{ unchecked(ref('trade_completeness')) }}
    union
    select
        product_id,
        bucket_1d
    from completeness
    where {{ unchecked(ref('trade_completeness')) }}
),

-- What a day counts from, its row tells; it must be where the day before ends.
expected as (
    select
        days.product_id,
        days.bucket_1d,
        candles.first_trade_id,
        candles.last_trade_id,
        candles.trade_count,
        candles.repaired_count,
        candles.bronze_id,
        coalesce(day_before.last_trade_id, candles.first_trade_id - 1) as counted_from
    from days
    left join candles using (product_id, bucket_1d)
    left join lateral (  -- noqa: ST05
        select earlier_candles.last_trade_id
        from candles as earlier_candles
        where
            earlier_candles.product_id = days.product_id
            and earlier_candles.bucket_1d < days.bucket_1d
        order by earlier_candles.bucket_1d desc
        limit 1
    ) as day_before on true
)

select
    product_id,
    bucket_1d
from expected
left join completeness using (product_id, bucket_1d)
where
    -- A day whose candle was made anew since is not wrong: its row has not read it yet.
    coalesce(expected.bronze_id <= {{ watermark(ref('trade_completeness'), 'high') }}, true)
    and (
        expected.first_trade_id, expected.last_trade_id, expected.trade_count,
        expected.repaired_count, expected.counted_from
    )
    is distinct from
    (
        completeness.first_trade_id, completeness.last_trade_id, completeness.trades,
        completeness.repaired,
        completeness.last_trade_id - completeness.trades - completeness.missing
    )
