{{ config(severity='warn') }}

with traded as (
    select
        product_id,
        count(*) as trades
    from {{ ref('coinbase_trades') }}
    where {{ unchecked(ref('coinbase_trades')) }}
    group by product_id
),

products as (
    select * from {{ ref('products') }}
)

select
    traded.product_id,
    traded.trades
from traded
where
    not exists (
        select from products
        where products.product_id = traded.product_id
    )
    -- Without a catalogue all would be; catalogue_is_recent says what is to be done.
    and exists (select from products)
