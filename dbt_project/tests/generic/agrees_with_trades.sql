{% test agrees_with_trades(model, candles, trades) %}
with candles as (
    select * from {{ model }}
),

-- Trades beyond the candles' watermark are not late: their candles are not made yet.
-- Used twice, PostgreSQL would else write out the whole table at every run.
due_trades as not materialized (
    select * from {{ trades }}
    where bronze_id <= {{ watermark(candles, 'high') }}
),

minutes as (
    select
        product_id,
        bucket_1m
    from candles
    union
    select
        product_id,
        trade_minute
    from due_trades
    {% if 'full' not in config.get('tags', []) -%}
        where {{ unchecked(candles) }}
    {%- endif %}
),

-- Minute by minute, for its trades lie side by side in the index.
expected as (
    select *
    from minutes
    cross join lateral (  -- noqa: ST05
        select
            {{ first_by('price', 'trade_time', 'trade_id') }} as open,
            max(price) as high,
            min(price) as low,
            {{ last_by('price', 'trade_time', 'trade_id') }} as close,
            sum(size) as volume,
            count(*) as trade_count,
            min(trade_id) as first_trade_id,
            max(trade_id) as last_trade_id,
            count(*) filter (where source = 'rest') as repaired_count,
            max(bronze_id) as bronze_id
        from due_trades
        where
            due_trades.product_id = minutes.product_id
            and due_trades.trade_minute = minutes.bucket_1m
    ) as merged_trades
)

select
    product_id,
    bucket_1m
from expected
left join {{ candles }} as candles using (product_id, bucket_1m)
where
    (
        candles.open, candles.high, candles.low, candles.close, candles.volume,
        candles.trade_count, candles.first_trade_id, candles.last_trade_id, candles.repaired_count,
        candles.bronze_id
    )
    is distinct from
    (
        expected.open, expected.high, expected.low, expected.close, expected.volume,
        expected.trade_count, expected.first_trade_id, expected.last_trade_id, expected.repaired_count,
        expected.bronze_id
    )
{% endtest %}
