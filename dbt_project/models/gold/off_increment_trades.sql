{{ config(
    unique_key=['product_id', 'trade_minute', 'trade_id'],
    indexes=[{'columns': ['bronze_id']}],
) }}

with trades as (
    select * from {{ ref('coinbase_trades') }}
    where {{ is_touched('bronze_id', 'trade_minute') }}
),

products as (
    select * from {{ ref('products') }}
),

-- The first version holds for what came before it, too, and each until the next, though the product
-- was gone meanwhile.
versions as (
    select
        product_id,
        base_increment,
        quote_increment,
        case
            when lag(valid_from) over history is null then '-infinity' else valid_from
        end as holds_from,
        coalesce(lead(valid_from) over history, 'infinity') as holds_until
    from products
    window history as (partition by product_id order by valid_from)
),

judged as (
    select
        trades.product_id,
        trades.trade_minute,
        trades.trade_id,
        trades.trade_time,
        trades.price,
        versions.quote_increment,
        coalesce(
            case when versions.quote_increment > 0 then trades.price % versions.quote_increment end,
            0
        ) <> 0 as price_is_off,
        trades.size,
        versions.base_increment,
        coalesce(
            case when versions.base_increment > 0 then trades.size % versions.base_increment end,
            0
        ) <> 0 as size_is_off,
        trades.bronze_id
    from trades
    inner join versions
        on
            trades.product_id = versions.product_id
            and trades.trade_time >= versions.holds_from
            and trades.trade_time < versions.holds_until
)

select * from judged
where price_is_off or size_is_off
