{{ config(severity='warn') }}

-- The newest frames by arrival: received_at has no index, and bronze grows without bound.
with newest as (
    select received_at from {{ source('coinbase', 'coinbase_trades_raw') }}
    order by bronze_id desc
    limit 1000
)

select count(*) filter (where received_at >= now() - interval '5 minutes') as frames
from newest
having count(*) filter (where received_at >= now() - interval '5 minutes') = 0
