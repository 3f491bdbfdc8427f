{% test rolls_up(model, candles, bucket, interval, parts, part_bucket, part_interval) %}
with candles as (
    select * from {{ model }}
),

candle_parts as (
    select
        product_id,
        {{ bucket }},
        volume,
        quote_volume,
        trade_count,
        taker_buy_volume,
        {{ bucket }} + part * interval '{{ part_interval }}' as {{ part_bucket }}
    from candles
    cross join {{ each_part(interval, part_interval) }} as part
)

select
    candle_parts.product_id,
    candle_parts.{{ bucket }}
from candle_parts
left join {{ parts }} as parts using (product_id, {{ part_bucket }})
group by candle_parts.product_id, candle_parts.{{ bucket }}
having
    -- A candle whose parts were made anew since is not wrong: its own model has not read them yet.
    coalesce(max(parts.bronze_id) <= {{ watermark(candles, 'high') }}, true)
    and (
        max(candle_parts.volume) is distinct from sum(parts.volume)
        or max(candle_parts.quote_volume) is distinct from sum(parts.quote_volume)
        or max(candle_parts.trade_count) is distinct from sum(parts.trade_count)
        or max(candle_parts.taker_buy_volume) is distinct from sum(parts.taker_buy_volume)
    )
{% endtest %}
