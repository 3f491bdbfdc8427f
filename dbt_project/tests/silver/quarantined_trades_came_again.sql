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
)

select
    quarantined.product_id,
    quarantined.trade_id
from quarantined
left join silver using (product_id, trade_id)
where quarantined.trade_id is not null and silver.trade_id is null
