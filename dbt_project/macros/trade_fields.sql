{# One that makes rows is a fence: else the planner reads the trade anew for each use of a column. A
   lateral subquery is one, too, but keeps PostgreSQL from reading with several processes. #}
{% macro trade_fields(trade, product_id) -%}
    unnest(array[{{ product_id }}]) as product_id_text,
    {% for field in ['trade_id', 'price', 'size', 'side', 'time'] -%}
        {{ trade }} ->> '{{ field }}' as {{ field }}_text,
    {% endfor -%}
    {{ trade }} ->> 'maker_order_id' as maker_order_id,
    {{ trade }} ->> 'taker_order_id' as taker_order_id
{%- endmacro %}
