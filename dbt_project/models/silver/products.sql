{{ config(
    incremental_strategy='delete+insert',
    unique_key=['product_id', 'valid_from'],
    tags=['reference'],
    pre_hook="{{ make_snapshot(ref('coinbase_products_snapshot'), ref('stg_coinbase__products')) }}",
) }}

with versions as (
    select * from {{ ref('coinbase_products_snapshot') }}
),

typed as (
    select
        product_id,
        dbt_valid_from as valid_from,
        dbt_valid_to as valid_until,
        dbt_valid_to is null as is_current,
        display_name,
        base_currency,
        quote_currency,
        {% for field in ['base_increment', 'quote_increment', 'min_market_funds'] -%}
            {{ guarded_numeric(field ~ '_text') }} as {{ field }},
        {% endfor -%}
        {% for field in [
            'trading_disabled', 'post_only', 'limit_only', 'cancel_only', 'auction_mode', 'fx_stablecoin'
        ] -%}
            {{ guarded_boolean(field ~ '_text') }} as {{ field }},
        {% endfor -%}
        status,
        status_message
    from versions
)

select * from typed
