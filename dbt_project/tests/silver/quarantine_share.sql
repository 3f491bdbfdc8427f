{{ config(severity='warn') }}

with quarantine as (
    select count(*) as trades from {{ ref('coinbase_trades_quarantine') }}
    where {{ unchecked(ref('coinbase_trades_quarantine')) }}
),

silver as (
    select count(*) as trades from {{ ref('coinbase_trades') }}
    where {{ unchecked(ref('coinbase_trades_quarantine')) }}
)

select
    quarantine.trades as quarantined,
    silver.trades as accepted
from quarantine
cross join silver
where quarantine.trades > {{ var('quarantine_share_max') }} * (quarantine.trades + silver.trades)
