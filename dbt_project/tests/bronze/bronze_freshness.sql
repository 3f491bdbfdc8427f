{{ config(severity='warn') }}

with newest as (
    select received_at from {{ source('coinbase', 'coinbase_trades_raw') }}
    order by bronze_id desc
    limit 1
)

select max(received_at) as newest
from newest
having coalesce(max(received_at) < now() - interval '10 minutes', true)
