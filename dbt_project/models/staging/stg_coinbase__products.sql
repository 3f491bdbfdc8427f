{{ config(tags=['reference']) }}

with newest_answer as (
    select * from {{ source('coinbase', 'coinbase_products_raw') }}
    order by catalogue_id desc
    limit 1
),

listed as (
    select
        newest_answer.received_at,
        elements.position,
        elements.product,
        elements.product ->> 'id' as product_id
    from newest_answer
    cross join
        lateral jsonb_array_elements(newest_answer.payload)
        with ordinality as elements (product, position)
),

-- An id of another form can be that of no trade in silver.
products as (
    select distinct on (product_id)
        product_id,
        {% for field in [
            'base_increment', 'quote_increment', 'min_market_funds', 'trading_disabled', 'post_only',
            'limit_only', 'cancel_only', 'auction_mode', 'fx_stablecoin'
        ] -%}
            product ->> '{{ field }}' as {{ field }}_text,
        {% endfor -%}
        product ->> 'display_name' as display_name,
        product ->> 'base_currency' as base_currency,
        product ->> 'quote_currency' as quote_currency,
        product ->> 'status' as status,
        product ->> 'status_message' as status_message,
        received_at
    from listed
    where length(product_id) <= 40 and product_id ~ '^[A-Z0-9]+(-[A-Z0-9]+)+$'
    order by product_id, position
)

select * from products
