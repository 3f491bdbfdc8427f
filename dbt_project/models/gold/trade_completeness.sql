{{ config(
    unique_key=['product_id', 'day'],
    indexes=[{'columns': ['day']}, {'columns': ['bronze_id']}],
) }}

-- Used several times, PostgreSQL would else write out the whole table at every run.
with days as not materialized (
    select * from {{ ref('ohlc_1d') }}
),

-- Likewise.
touched_days as not materialized (
    select
        product_id,
        bucket_1d
    from days
    where {{ is_touched('bronze_id', 'bucket_1d') }}
),

-- A day counts from the last id of the day before, whatever its own trades are.
recounted_days as (
    select * from touched_days
    union
    select
        touched_days.product_id,
        next_day.bucket_1d
    from touched_days
    cross join lateral (  -- noqa: ST05
        select days.bucket_1d from days
        where
            days.product_id = touched_days.product_id
            and days.bucket_1d > touched_days.bucket_1d
        order by days.bucket_1d
        limit 1
    ) as next_day
),

counted as (
    select
        days.product_id,
        (days.bucket_1d at time zone 'UTC')::date as day,
        days.first_trade_id,
        days.last_trade_id,
        days.trade_count as trades,
        days.last_trade_id
        - coalesce(day_before.last_trade_id, days.first_trade_id - 1)
        - days.trade_count as missing,
        days.repaired_count as repaired,
        greatest(days.bronze_id, day_before.bronze_id) as bronze_id
    from recounted_days
    inner join days using (product_id, bucket_1d)
    left join lateral (  -- noqa: ST05
        select
            earlier_days.last_trade_id,
            earlier_days.bronze_id
        from days as earlier_days
        where
            earlier_days.product_id = recounted_days.product_id
            and earlier_days.bucket_1d < recounted_days.bucket_1d
        order by earlier_days.bucket_1d desc
        limit 1
    ) as day_before on true
),

completeness as (
    select
        product_id,
        day,
        first_trade_id,
        last_trade_id,
        trades,
        missing,
        repaired,
        trades / greatest(trades + missing, trades)::numeric as share_complete,
        bronze_id
    from counted
)

select * from completeness
