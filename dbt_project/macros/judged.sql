{# From a row the planner takes an expression apart again wherever its column is used, but not where one
   makes rows; each does, for else it is worked out twice. Citus pushes a union down through no join. #}
{% macro judged(trades) -%}
typed as (
    select
        *,
        {{ 'frame_product_id' if is_citus() else 'product_id_text' }} as product_id,
        unnest(array[{{ guarded_bigint('trade_id_text') }}]) as trade_id,
        unnest(array[{{ guarded_numeric('price_text') }}]) as price,
        unnest(array[{{ guarded_numeric('size_text') }}]) as size,
        unnest(array[
            case when lower(side_text) in ('buy', 'sell') then lower(side_text) end
        ]) as side,
        unnest(array[{{ guarded_timestamp('time_text') }}]) as trade_time
    from {{ trades }}
),

judged as (
    select
        *,
        array_remove(array[
            case
                when product_id_text is null then 'missing_product_id'
                when
                    product_id_text !~ '^[A-Z0-9]+(-[A-Z0-9]+)+$'
                    -- On Citus it is that of the frame, where the row lies.
                    or product_id <> product_id_text
                    then 'invalid_product_id'
            end,
            {% for field in ['trade_id', 'price', 'size', 'side'] -%}
                case
                    when {{ field }}_text is null then 'missing_{{ field }}'
                    when {{ field }} is null then 'invalid_{{ field }}'
                end,
            {% endfor -%}
            case
                when time_text is null then 'missing_time'
                when trade_time is null then 'invalid_time'
                -- Older than the exchange, or newer than its arrival by more than any clock is off.
                when
                    trade_time < timestamptz '2012-01-01 00:00:00+00'
                    or trade_time > received_at + interval '1 day'
                    then 'implausible_time'
            end,
            case when price <= 0 then 'non_positive_price' end,
            case when size <= 0 then 'non_positive_size' end
        ], null) as reject_reasons
    from typed
)
{%- endmacro %}
