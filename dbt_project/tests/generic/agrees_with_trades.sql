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

sums as (
    select
        minutes.product_id,
        minutes.bucket_1m,
        sum(due_trades.size) as volume,
        count(due_trades.trade_id) as trade_count
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
from sums
left join {{ candles }} as candles using (product_id, bucket_1m)
where
    (candles.volume, candles.trade_count) is distinct from (sums.volume, sums.trade_count)
{% endtest %}
