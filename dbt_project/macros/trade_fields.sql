{% macro trade_fields(trade, product_id) -%}
    cross join lateral (  -- noqa: ST05
        select
            {{ product_id }} as product_id_text,
            {% for field in ['trade_id', 'price', 'size', 'side', 'time'] -%}
                {{ trade }} ->> '{{ field }}' as {{ field }}_text,
            {% endfor -%}
            {{ trade }} ->> 'maker_order_id' as maker_order_id,
            {{ trade }} ->> 'taker_order_id' as taker_order_id
        -- A fence: else the planner reads the trade anew for each use of a column.
        offset 0  -- noqa: PRS
    ) as fields
{%- endmacro %}
