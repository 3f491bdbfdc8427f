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

expected as (
    select
        minutes.product_id,
        minutes.bucket_1m,
        {{ first_by('due_trades.price', 'due_trades.trade_time', 'due_trades.trade_id') }} as open,
        max(due_trades.price) as high,
        min(due_trades.price) as low,
        {{ last_by('due_trades.price', 'due_trades.trade_time', 'due_trades.trade_id') }} as close,
        sum(due_trades.size) as volume,
        count(due_trades.trade_id) as trade_count,
        min(due_trades.trade_id) as first_trade_id,
        max(due_trades.trade_id) as last_trade_id,
        count(*) filter (where due_trades.source = 'rest') as repaired_count,
        max(due_trades.bronze_id) as bronze_id
    from minutes
    left join due_trades
        on
            minutes.product_id = due_trades.product_id
            and minutes.bucket_1m = due_trades.trade_minute
    group by minutes.product_id, minutes.bucket_1m
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
