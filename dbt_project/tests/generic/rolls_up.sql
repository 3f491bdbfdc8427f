{% test rolls_up(model, candles, bucket, interval, parts, part_bucket) %}
with candles as (
    select * from {{ model }}
),

-- Used twice, PostgreSQL would else write out the whole table at every run.
parts as not materialized (
    select * from {{ parts }}
),

buckets as (
    select
        product_id,
        {{ bucket }}
    from candles
    union
    select
        product_id,
        {{ bucket_start(part_bucket, interval) }}
    from parts
    {% if 'full' not in config.get('tags', []) -%}
        where {{ unchecked(candles) }}
    {%- endif %}
),

-- Bucket by bucket, for its parts lie side by side in the index. Joined by equality, they are looked
-- up one by one, or found by reading the whole table.
expected as (
    select *
    from buckets
    cross join lateral (  -- noqa: ST05
        select
            {{ first_by('open', part_bucket) }} as open,
            max(high) as high,
            min(low) as low,
            {{ last_by('close', part_bucket) }} as close,
            sum(volume) as volume,
            sum(quote_volume) as quote_volume,
            sum(trade_count) as trade_count,
            sum(taker_buy_volume) as taker_buy_volume,
            min(first_trade_id) as first_trade_id,
            max(last_trade_id) as last_trade_id,
            sum(repaired_count) as repaired_count,
            max(bronze_id) as bronze_id
        from parts
        where
            parts.product_id = buckets.product_id
            and parts.{{ part_bucket }} >= buckets.{{ bucket }}
            and parts.{{ part_bucket }} < buckets.{{ bucket }} + interval '{{ interval }}'
    ) as merged_parts
)

select
    product_id,
    {{ bucket }}
from expected
left join {{ candles }} as candles using (product_id, {{ bucket }})
where
    -- A bucket whose parts were made anew since is not wrong: its model has not read them yet.
    coalesce(expected.bronze_id <= {{ watermark(candles, 'high') }}, true)
    and (
        candles.open, candles.high, candles.low, candles.close, candles.volume,
        candles.quote_volume, candles.trade_count, candles.taker_buy_volume,
        candles.first_trade_id, candles.last_trade_id, candles.repaired_count, candles.bronze_id
    )
    is distinct from
    (
        expected.open, expected.high, expected.low, expected.close, expected.volume,
        expected.quote_volume, expected.trade_count, expected.taker_buy_volume,
        expected.first_trade_id, expected.last_trade_id, expected.repaired_count, expected.bronze_id
    )
{% endtest %}
