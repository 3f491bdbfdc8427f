with silver as (
    select * from {{ ref('coinbase_trades') }}
    where {{ unchecked(ref('coinbase_trades')) }}
),

staged as (
    select * from {{ ref('stg_coinbase__trades') }}
    where {{ unchecked(ref('coinbase_trades')) }}
)

select
    silver.product_id,
    silver.trade_id
from silver
left join staged
    on
        silver.bronze_id = staged.bronze_id
        and silver.product_id = staged.product_id
        and silver.trade_id = staged.trade_id
where staged.bronze_id is null
