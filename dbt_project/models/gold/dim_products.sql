{{ config(
    unique_key=['product_id'],
    tags=['reference'],
) }}

with versions as (
    select
        *,
        coalesce(status, '') <> 'delisted' as is_listed
    from {{ ref('products') }}
),

lifetimes as (
    select
        *,
        min(valid_from) over history as first_seen_at,
        coalesce(
            max(valid_until) filter (where is_listed) over history, min(valid_from) over history
        ) as ended_at
    from versions
    window history as (partition by product_id)
),

newest_versions as (
    select distinct on (product_id) *
    from lifetimes
    order by product_id asc, valid_from desc
),

products as (
    select
        product_id,
        display_name,
        base_currency,
        quote_currency,
        base_increment,
        quote_increment,
        min_market_funds,
        status,
        status_message,
        is_current and is_listed as is_listed,
        is_current
        and coalesce(status = 'online', false)
        and trading_disabled is not true as is_traded,
        trading_disabled,
        post_only,
        limit_only,
        cancel_only,
        auction_mode,
        fx_stablecoin,
        first_seen_at,
        valid_from as changed_at,
        case when not (is_current and is_listed) then ended_at end as delisted_at
    from newest_versions
)

select * from products
