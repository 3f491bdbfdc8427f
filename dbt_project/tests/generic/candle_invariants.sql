{% test candle_invariants(model) %}
select * from {{ model }}
where
    not (
        low > 0
        and open between low and high
        and close between low and high
        and vwap between low and high
        and volume > 0
        and taker_buy_volume between 0 and volume
        and trade_count between 1 and last_trade_id - first_trade_id + 1
        and repaired_count between 0 and trade_count
    )
{% endtest %}
