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

newest_versions as (
    select distinct on (product_id) *
    from versions
    order by product_id asc, valid_from desc
),

lifetimes as (
    select
        product_id,
        min(valid_from) as first_seen_at,
        coalesce(max(valid_until) filter (where is_listed), min(valid_from)) as ended_at
    from versions
    group by product_id
),

products as (
    select
        product_id,
        newest_versions.display_name,
        newest_versions.base_currency,
        newest_versions.quote_currency,
        newest_versions.base_increment,
        newest_versions.quote_increment,
        newest_versions.min_market_funds,
        newest_versions.status,
        newest_versions.status_message,
        newest_versions.is_current and newest_versions.is_listed as is_listed,
        newest_versions.is_current
        and coalesce(newest_versions.status = 'online', false)
        and newest_versions.trading_disabled is not true as is_traded,
        newest_versions.trading_disabled,
        newest_versions.post_only,
        newest_versions.limit_only,
        newest_versions.cancel_only,
        newest_versions.auction_mode,
        newest_versions.fx_stablecoin,
        lifetimes.first_seen_at,
        newest_versions.valid_from as changed_at,
        case
            when not (newest_versions.is_current and newest_versions.is_listed)
                then lifetimes.ended_at
        end as delisted_at
    from newest_versions
    inner join lifetimes using (product_id)
)

select * from products
