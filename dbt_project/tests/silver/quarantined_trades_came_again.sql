{{ config(severity='warn') }}

with quarantined as (
    select
        product_id,
        {{ guarded_bigint('trade_id') }} as trade_id
    from {{ ref('coinbase_trades_quarantine') }}
    where {{ unchecked(ref('coinbase_trades_quarantine')) }}
),

silver as (
    select * from {{ ref('coinbase_trades') }}
),

came_again as (
    select
        quarantined.product_id,
        quarantined.trade_id
    from quarantined
    inner join silver using (product_id, trade_id)
)

select
    quarantined.product_id,
    quarantined.trade_id
from quarantined
left join came_again using (product_id, trade_id)
where quarantined.trade_id is not null and came_again.trade_id is null
